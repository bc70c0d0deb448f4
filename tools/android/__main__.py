"""Build and test the Android demo without Gradle: python -m tools.android {test,build,pages}

Exits with 77, as test suites do for "skipped", where a tool is absent.
"""

import sys
from pathlib import Path

import click

from tools.aarch64 import default_cache
from tools.android import apk as apks
from tools.android.core_tests import run_core_tests
from tools.android.errors import CompileError, ToolError
from tools.android.kotlin import java_version
from tools.android.pages import misaligned
from tools.android.toolchain import kotlin

REPOSITORY = Path(__file__).resolve().parents[2]
WORK = REPOSITORY / "build/android"
SKIPPED = 77


@click.group()
def main() -> None:
    """Build and test the Android demo without Gradle."""


@main.command("test")
def test_main() -> None:
    """Compile core and run its JUnit tests."""
    java_version()
    passed = run_core_tests(kotlin(default_cache()), WORK)
    click.echo(f"{passed} passed, 0 failed")


@main.command("build")
def build_main() -> None:
    """Compile all Kotlin and resources into a signed APK that shows that they compile."""
    java_version()
    apk = apks.build_apk(apks.Demo(REPOSITORY / "android_demo"), kotlin(default_cache()), default_cache(), WORK)
    click.echo(apk)


@main.command("pages")
@click.argument("apk", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def pages_main(apk: Path) -> None:
    """Check that an APK's libraries load where memory pages have 16 KiB."""
    if problems := misaligned(apk):
        raise CompileError("; also ".join(problems))
    click.echo(f"{apk.name}: every 64-bit library is aligned to 16 KiB")


if __name__ == "__main__":
    try:
        main()
    except ToolError as error:
        click.echo(f"skipped: {error}", err=True)
        sys.exit(SKIPPED)
    except CompileError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
