"""Environments that hold the wheel and what it requires: what they weigh, how fast they start, what they can do."""

import os
import resource
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.release.archives import WrongError, run

REPOSITORY: Final = Path(__file__).resolve().parents[2]
BASE: Final = "base"
NOT_FOR_USERS: Final = ("dev", "real")
PROMPT: Final = "And God said unto"
_STARTS: Final = 5
_WITH_PIP: Final = ("pip", "setuptools", "_distutils_hack", "distutils-precedence.pth", "pkg_resources")


def extras() -> list[str]:
    """Those that users install."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [name for name in project["optional-dependencies"] if name not in NOT_FOR_USERS]


@dataclass(frozen=True)
class Environment:
    """A virtual environment in `folder`."""

    folder: Path

    @classmethod
    def of(cls, python: Path, folder: Path) -> "Environment":
        """An empty one. Raises WrongError."""
        run([str(python), "-m", "venv", str(folder)], bare())
        return cls(folder)

    @property
    def scripts(self) -> Path:
        """Where programs lie."""
        return self.folder / "bin"

    def run(self, program: str, *arguments: str) -> str:
        """What one of its programs prints. Raises WrongError."""
        return run([str(self.scripts / program), *arguments], bare(), folder=self.folder)

    def install(self, *requirements: str) -> None:
        """In the versions of constraints.txt. Raises WrongError."""
        options = ["--quiet", "--disable-pip-version-check", "--constraint", str(REPOSITORY / "constraints.txt")]
        self.run("python", "-m", "pip", "install", *options, *requirements)

    def check_installed(self) -> None:
        """Raises WrongError where gemma-edge has put anything but gemma_edge and its two programs."""
        script = "from importlib.metadata import files; print(*files('gemma-edge'), sep='\\n')"
        expected = {"gemma_edge", "../../../bin/gemma-edge", "../../../bin/convert"}
        placed = self.run("python", "-c", script).splitlines()
        tops = {path if path.startswith("..") else path.partition("/")[0] for path in placed}
        if others := {top for top in tops - expected if not top.endswith(".dist-info")}:
            raise WrongError(f"gemma-edge installs {', '.join(sorted(others))}; expected gemma_edge alone")

    def packages_bytes(self) -> int:
        """Of everything but pip and what comes with it."""
        [site] = self.folder.glob("lib/python*/site-packages")
        kept = (path for path in site.rglob("*") if path.is_file() and not _is_pip(path.relative_to(site).parts[0]))
        return sum(path.stat().st_size for path in kept)

    def best_ms(self, program: str, *arguments: str) -> float:
        """Processor time of a few starts, the first of which writes what Python compiles."""
        return min(self._cpu_ms(program, *arguments) for _ in range(_STARTS))

    def _cpu_ms(self, program: str, *arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.run(program, *arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)

    def convert_demo(self, checkpoint: Path, out: Path) -> None:
        """`make demo`'s conversion, and a sentence from it. Raises WrongError: no bundle or no text."""
        source = ("--target", "custom-int4", "--checkpoint", str(checkpoint))
        self.run("convert", *source, "--out", str(out), "--profile", "phone-2gb")
        text = self.run("gemma-edge", "run", str(out), "--prompt", PROMPT, "--max-output-tokens", "8")
        if not text.strip():
            raise WrongError(f"{out.name}: gemma-edge run printed nothing; expected a text")


def check_completion(scripts: Path) -> None:
    """In bash, with `scripts` on the path. Raises WrongError where `convert --target e2b-int` is not continued."""
    script = """
eval "$(gemma-edge completion bash)"
COMP_WORDS=(convert --target e2b-int) COMP_CWORD=2
_convert_completion convert
echo "${COMPREPLY[*]}"
"""
    environment = bare() | {"PATH": f"{scripts}:{os.environ['PATH']}"}
    offered = run(["bash", "--norc", "-c", script], environment).split()
    if sorted(offered) != ["e2b-int4", "e2b-int8"]:
        raise WrongError(f"convert --target e2b-int: bash is offered {offered}; expected e2b-int4 and e2b-int8")


def bare() -> dict[str, str]:
    """Nothing of this environment."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def _is_pip(name: str) -> bool:
    return name in _WITH_PIP or name.startswith(("pip-", "setuptools-"))
