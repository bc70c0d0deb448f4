"""A release: python -m tools.release {build,prove,image}

build makes the source archive and the wheel of what is committed; prove shows what they are and do on this machine;
image builds and starts the container. All need git; packages come from the registry that pip is set up for.
"""

import hashlib
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from gemma_edge.converter.convert import convert
from gemma_edge.profiles.sizes import format_bytes
from tools.release.archives import (
    Archives,
    WrongError,
    build_wheel,
    check_same,
    check_source,
    check_tag,
    check_wheel,
    clone,
    run,
    tracked_files,
)
from tools.release.environments import BASE, REPOSITORY, Environment, bare, check_completion, extras
from tools.release.image import Engine, Options
from tools.release.pythons import VERSIONS, find_python

say = partial(click.echo, err=True)
TINY = REPOSITORY / "tests" / "fixtures" / "tiny-gemma3n"


@dataclass(frozen=True)
class Row:
    """One environment. Times are the best of several starts, in milliseconds of processor time."""

    python: str
    extra: str
    packages_bytes: int
    python_ms: float
    import_converter_cli_ms: float
    import_runtime_ms: float
    help_ms: float
    convert_help_ms: float


@click.group()
def main() -> None:
    """A release: its archives, the proof of them, its container."""


@main.command("build")
@click.option("--out", type=click.Path(path_type=Path), default=Path("dist"), show_default=True)
@click.option("--tag", help="Refuse unless this is the version, and CHANGELOG.md gives its day.")
def build_main(out: Path, tag: str | None) -> None:
    """Build the source archive and the wheel of what is committed; print their digests."""
    with _work() as work:
        checkout = clone(REPOSITORY, work / "clone")
        if tag is not None:
            check_tag(tag, checkout)
        archives = Archives.of(checkout, work / "out")
        out.mkdir(parents=True, exist_ok=True)
        for path in (archives.source, archives.wheel):
            print(_digest(path), shutil.copy(path, out))


@main.command("prove")
@click.option("--python", "versions", multiple=True, help=f"Only these.  [default: {', '.join(VERSIONS)}, as found]")
@click.option("--extra", "chosen", multiple=True, help="Only these; base is none.  [default: all but dev and real]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def prove_main(versions: tuple[str, ...], chosen: tuple[str, ...], as_json: bool) -> None:
    """Build twice and compare; install into empty environments; convert, complete, pipx.

    Builds are of two clones, and each Python that is found builds the wheel again. Exit status 1 where something is
    wrong, or a Python that was asked for is not there.
    """
    with _work() as work:
        found = _pythons(versions)
        archives = _proven_archives(work)
        rows, bundles = [], set()
        for version, python in found.items():
            for extra in chosen or (BASE, *extras()):
                rows.append(_measured(archives.wheel, version, extra, Environment.of(python, work / "environment")))
                say(" ".join(map(str, asdict(rows[-1]).values())))
                shutil.rmtree(work / "environment")
            bundles.add(_used(archives, version, python, work))
        digests = {path.name: _digest(path) for path in (archives.source, archives.wheel)}
        if len(bundles) > 1:
            raise WrongError("tiny.litertlm: converted under different Pythons, its bytes differ")
    if as_json:
        print(json.dumps({"archives": digests, "environments": [asdict(row) for row in rows]}, indent=2))
    else:
        Console(width=120).print(_table(rows))


@main.command("image")
@click.option("--engine", default="podman", show_default=True, help="podman or docker, with options of its own.")
@click.option("--debian", is_flag=True, help="Base the image on Debian by debootstrap; where no registry is reached.")
@click.option("--build-option", multiple=True, help="Of the engine's build; repeatable.")
@click.option("--run-option", multiple=True, help="Of the engine's run; repeatable.")
def image_main(engine: str, debian: bool, build_option: tuple[str, ...], run_option: tuple[str, ...]) -> None:
    """Build the container that serves a tiny model, and start it with nothing to write to."""
    with _work() as work:
        engine_of = Engine(tuple(shlex.split(engine)))
        base = [f"--build-arg=BASE={engine_of.make_debian(work)}"] if debian else []
        archives = Archives.of(clone(REPOSITORY, work / "clone"), work / "out")
        bundle = work / "tiny.litertlm"
        convert("custom-int4", checkpoint=TINY, out=bundle, measure=False)
        (work / "image").mkdir()
        options = Options([*base, *build_option], run_option)
        print(engine_of.prove(archives.wheel, REPOSITORY / "constraints.txt", bundle, work / "image", options))


def _pythons(versions: tuple[str, ...]) -> dict[str, Path]:
    """By version: those that were asked for, or that are there. Raises WrongError: one is not, or none is."""
    found = {version: python for version in versions or VERSIONS if (python := find_python(version)) is not None}
    if missing := [version for version in versions or VERSIONS if version not in found]:
        say(f"not on this machine: Python {', '.join(missing)}")
    if not found or any(version in missing for version in versions):
        raise WrongError(f"Python {', '.join(missing)}: not found, or without ensurepip; install it")
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _proven_archives(work: Path) -> Archives:
    first = clone(REPOSITORY, work / "first")
    second = clone(first, work / "second")  # not of what was committed meanwhile
    archives, again = Archives.of(first, work / "out"), Archives.of(second, work / "again")
    check_source(archives.source, tracked_files(first))
    check_wheel(archives.wheel)
    check_same(archives.source, again.source)
    check_same(archives.wheel, again.wheel)
    check_same(archives.wheel, build_wheel(second, work / "checkout"))
    for path in (archives.source, archives.wheel):
        say(f"{path.name}: {format_bytes(path.stat().st_size)}, the same twice")
    say(f"{archives.wheel.name}: the same of the archive and of the checkout, gemma_edge alone")
    return archives


def _measured(wheel: Path, version: str, extra: str, environment: Environment) -> Row:
    environment.install(str(wheel) if extra == BASE else f"{wheel}[{extra}]")
    environment.check_installed()
    idle = environment.best_ms("python", "-c", "")
    return Row(
        version,
        extra,
        environment.packages_bytes(),
        idle,
        environment.best_ms("python", "-c", "import gemma_edge.converter.cli"),
        environment.best_ms("python", "-c", "import gemma_edge.runtime"),
        environment.best_ms("gemma-edge", "--help"),
        environment.best_ms("gemma-edge", "convert", "--help"),
    )


def _used(archives: Archives, version: str, python: Path, work: Path) -> str:
    """What a user does, after `pipx install`; the digest of the bundle that is converted. Raises WrongError."""
    tool = Environment.of(python, work / "pipx")
    wheels = str(work / "wheels")
    tool.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, str(archives.source))
    check_same(archives.wheel, Path(wheels, archives.wheel.name))
    tool.install("pipx")
    home = Environment(work / "home")
    options = ["--python", str(python), "--pip-args", f"--constraint {REPOSITORY / 'constraints.txt'}"]
    folders = {
        "PIPX_HOME": str(home.folder),
        "PIPX_BIN_DIR": str(home.scripts),
        "PIPX_MAN_DIR": str(home.folder / "man"),
    }
    run([str(tool.scripts / "pipx"), "install", *options, f"{archives.wheel}[litert]"], bare() | folders)
    said = home.run("gemma-edge", "--version").strip()
    check_completion(home.scripts)
    bundle = work / "tiny.litertlm"
    home.convert_demo(TINY, bundle)
    digest = _digest(bundle)
    say(f"Python {version}: built again, the same; pipx: {said}; completes in bash; converts {digest[:12]}")
    for path in (tool.folder, home.folder, Path(wheels)):
        shutil.rmtree(path)
    bundle.unlink()
    return digest


def _table(rows: list[Row]) -> Table:
    table = Table("Python", "extra", title="installed", title_justify="left")
    for heading in ("packages", "python", "import converter.cli", "import runtime", "--help", "convert --help"):
        table.add_column(heading, justify="right")
    for row in rows:
        python, extra, packages_bytes, *times = asdict(row).values()
        table.add_row(python, extra, format_bytes(packages_bytes), *(f"{ms:.0f}" for ms in times))
    return table


@contextmanager
def _work() -> Iterator[Path]:
    """A folder for as long as it takes. What is wrong becomes one line."""
    try:
        with tempfile.TemporaryDirectory(prefix="gemma-edge-release-") as name:
            yield Path(name)
    except WrongError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
