"""Build the wheel twice, install it into empty environments, and print what that costs: size, import, `--help`.

    python -m tools.wheel_proof
    python -m tools.wheel_proof --extra base --extra onnx

The wheel must be the same to the byte both times, for any platform, and hold gemma_edge and its metadata and nothing
else. Times are the best of several starts, in milliseconds. Packages come from the registry that pip is set up for.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from gemma_edge.profiles.sizes import format_bytes

REPOSITORY: Final = Path(__file__).resolve().parents[1]
BASE: Final = "base"
NOT_FOR_USERS: Final = ("dev", "real")
EPOCH: Final = "1767225600"
"""2026-01-01, of every file in the wheel: SOURCE_DATE_EPOCH, see reproducible-builds.org."""
_SOURCES: Final = ("profiles", "runtime", "converter", "pyproject.toml", "README.md", "LICENSE")
_STARTS: Final = 5


class WrongError(Exception):
    """What a wheel or an environment should not be."""


def extras() -> list[str]:
    """Those that users install."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [name for name in project["optional-dependencies"] if name not in NOT_FOR_USERS]


def build(repository: Path, folder: Path) -> Path:
    """The wheel, of a copy of the sources, which stays in `folder` / "source". Raises WrongError."""
    source, out = folder / "source", folder / "wheel"
    source.mkdir(parents=True)
    for name in _SOURCES:
        place = repository / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(place, source)
    built = shutil.copytree(source, folder / "built")  # a build leaves folders of its own
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    _run([*command, "--wheel-dir", str(out), str(built)], os.environ | {"SOURCE_DATE_EPOCH": EPOCH})
    [wheel] = out.iterdir()
    return wheel


def check_wheel(first: Path, second: Path) -> None:
    """Raises WrongError unless both are the same, for any platform, and hold one package."""
    if first.read_bytes() != second.read_bytes():
        raise WrongError(f"{first.name}: two builds of the same sources differ")
    if not first.name.endswith("-py3-none-any.whl"):
        raise WrongError(f"{first.name}: expected a wheel for any platform, py3-none-any")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(first).namelist()}
    if others := {top for top in tops if top != "gemma_edge" and not top.endswith(".dist-info")}:
        raise WrongError(f"{first.name}: holds {', '.join(sorted(others))}; expected gemma_edge alone")


def install(wheel: Path, extra: str, folder: Path) -> Path:
    """An environment with the wheel and nothing that was there before; its Python."""
    venv.EnvBuilder(with_pip=True).create(folder)
    python = folder / "bin" / "python"
    asked = str(wheel) if extra == BASE else f"{wheel}[{extra}]"
    options = ["--quiet", "--disable-pip-version-check", "--constraint", str(REPOSITORY / "constraints.txt")]
    _run([str(python), "-m", "pip", "install", *options, asked], dict(os.environ))
    return python


def installed_by_us(python: Path) -> set[str]:
    """The first part of every path in our RECORD that lies among packages."""
    script = "from importlib.metadata import files; print(*{f.parts[0] for f in files('gemma-edge')}, sep='\\n')"
    return set(_run([str(python), "-c", script], _bare()).split())


def packages_bytes(folder: Path) -> int:
    """Of everything but pip and what comes with it."""
    [site] = folder.glob("lib/python*/site-packages")
    kept = (path for path in site.rglob("*") if path.is_file() and path.relative_to(site).parts[0] not in _WITH_PIP)
    return sum(path.stat().st_size for path in kept if not path.relative_to(site).parts[0].startswith("pip-"))


_WITH_PIP: Final = ("pip", "_distutils_hack", "distutils-precedence.pth")


def best_ms(command: list[str]) -> float:
    """Of a few starts, the first of which writes what Python compiles."""
    return min(_cpu_ms(command) for _ in range(_STARTS))


def _cpu_ms(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(command, _bare())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def _bare() -> dict[str, str]:
    """Nothing of this environment."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WrongError(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def measured(wheel: Path, extra: str, folder: Path) -> tuple[str, ...]:
    """One row. Raises WrongError where more is installed than gemma_edge, or it does not start."""
    python = install(wheel, extra, folder)
    expected = {"gemma_edge", ".."}  # its scripts lie in ../../../bin
    others = {top for top in installed_by_us(python) - expected if not top.endswith(".dist-info")}
    if others:
        raise WrongError(f"{extra}: gemma-edge installs {', '.join(sorted(others))}; expected gemma_edge alone")
    script = str(python.with_name("gemma-edge"))
    idle, imported, runtime, helped, planned = (
        best_ms(command)
        for command in (
            [str(python), "-c", ""],
            [str(python), "-c", "import gemma_edge.converter.cli"],
            [str(python), "-c", "import gemma_edge.runtime"],
            [script, "--help"],
            [script, "convert", "--help"],
        )
    )
    times = (f"{ms:.0f}" for ms in (idle, imported, runtime, helped, planned))
    return extra, format_bytes(packages_bytes(folder)), *times


@click.command(help=__doc__)
@click.option("--extra", "chosen", multiple=True, help="Only these; base is none.  [default: all but dev and real]")
def main(chosen: tuple[str, ...]) -> None:
    """Prints a table; exit status 1 where something is wrong."""
    table = Table("extra", title="installed", title_justify="left")
    for heading in ("packages", "python", "import converter.cli", "import runtime", "--help", "convert --help"):
        table.add_column(heading, justify="right")
    try:
        with tempfile.TemporaryDirectory(prefix="wheel-proof-") as name:
            work = Path(name)
            wheel = build(REPOSITORY, work / "first")
            again = build(work / "first" / "source", work / "second")
            check_wheel(wheel, again)
            print(f"{wheel.name}: {format_bytes(wheel.stat().st_size)}, the same twice, gemma_edge alone", flush=True)
            for extra in chosen or (BASE, *extras()):
                row = measured(wheel, extra, work / extra)
                print(*row, flush=True)
                table.add_row(*row)
                shutil.rmtree(work / extra)
    except WrongError as error:
        sys.exit(f"error: {error}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
