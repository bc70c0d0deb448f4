"""The source archive and the wheel: built, and what they must be."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BACKEND: Final = Path("tools/release")
_BUILD_SDIST: Final = "import backend, sys; backend.build_sdist(sys.argv[1])"


class WrongError(Exception):
    """What a release should not be."""


@dataclass(frozen=True)
class Archives:
    """Both files of a release."""

    source: Path
    wheel: Path

    @classmethod
    def of(cls, checkout: Path, out: Path, *, isolated: bool = True) -> "Archives":
        """Built into `out`: the archive of a checkout of git, and the wheel of that archive. Raises WrongError.

        isolated: pip fetches setuptools as pyproject.toml pins it; otherwise this environment's is used.
        """
        source = build_source(checkout, out)
        return cls(source, build_wheel(source, out, isolated=isolated))


def build_source(checkout: Path, out: Path) -> Path:
    """The archive of a checkout of git. Raises WrongError."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _BUILD_SDIST, str(out.absolute())]
    run(command, os.environ | {"PYTHONPATH": str(checkout / _BACKEND)}, folder=checkout)
    [source] = out.glob("*.tar.gz")
    return source


def build_wheel(source: Path, out: Path, *, isolated: bool = True) -> Path:
    """The wheel of an archive or a folder of sources. Raises WrongError."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    options = [] if isolated else ["--no-build-isolation"]
    run([*command, *options, "--wheel-dir", str(out), str(source)], os.environ)
    [wheel] = out.glob("*.whl")
    return wheel


def check_same(first: Path, second: Path) -> None:
    """Raises WrongError unless both hold the same bytes."""
    if first.read_bytes() != second.read_bytes():
        raise WrongError(f"{first.name}: two builds of the same sources differ")


def check_wheel(wheel: Path) -> None:
    """Raises WrongError unless it is for any platform and holds one package."""
    if not wheel.name.endswith("-py3-none-any.whl"):
        raise WrongError(f"{wheel.name}: expected a wheel for any platform, py3-none-any")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    if others := {top for top in tops if top != "gemma_edge" and not top.endswith(".dist-info")}:
        raise WrongError(f"{wheel.name}: holds {', '.join(sorted(others))}; expected gemma_edge alone")


def check_source(source: Path, tracked: Sequence[str]) -> None:
    """Raises WrongError unless it holds the files that git tracks, PKG-INFO, and nothing else."""
    root = source.name.removesuffix(".tar.gz")
    with tarfile.open(source) as archive:
        held = {name.removeprefix(f"{root}/") for name in archive.getnames()}
    if wrong := sorted(held ^ {*tracked, "PKG-INFO"}):
        raise WrongError(f"{source.name}: {', '.join(wrong[:5])}: expected what git tracks and PKG-INFO")


def tracked_files(checkout: Path) -> list[str]:
    """By git."""
    listed = run(["git", "ls-files", "-z"], os.environ, folder=checkout)
    return [name for name in listed.split("\0") if name]


def check_tag(tag: str, checkout: Path) -> None:
    """Raises WrongError unless it is v and the version of pyproject.toml, of which CHANGELOG.md gives the day."""
    version = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if tag != f"v{version}":
        raise WrongError(f"tag {tag}: pyproject.toml says {version}, expected v{version}; change one of them")
    changes = (checkout / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes, flags=re.MULTILINE):
        raise WrongError(f"CHANGELOG.md: no line '## [{version}] - YYYY-MM-DD'; say what is new, and the day")


def clone(repository: Path, out: Path) -> Path:
    """A checkout of what is committed, as someone else has it: files that only their owner reads, of now."""
    command = 'umask 077 && git clone --quiet --no-hardlinks "$0" "$1"'
    run(["sh", "-ec", command, str(repository), str(out)], os.environ)
    return out


def run(command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None) -> str:
    """What it prints. Raises WrongError, with the end of its errors."""
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WrongError(
            f"{' '.join(command)}: status {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}"
        )
    return done.stdout
