"""Run Python as a Raspberry Pi 4 would: emulated, with the wheels that a Pi gets.

    apt-get install qemu-user-static
    python -m tools.aarch64 -m tools.greedy model.litertlm --prompt "In the beginning"

qemu's user-mode emulation of a Cortex-A72 (ARMv8.0: no LSE atomics, no dot products, no half floats) runs Debian's
arm64 Python with the aarch64 wheels of `gemma-edge[litert,serve]`. Both are unpacked into a folder of 0.4 GB under
~/.cache/gemma-edge-tests, which may be deleted at any time; nothing is installed and no root is needed.
"""

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from gemma_edge.profiles.errors import GemmaEdgeError

REPOSITORY = Path(__file__).resolve().parents[1]
QEMU = "qemu-aarch64-static"
DEBIAN_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
# Wheels say the oldest glibc they run on; Debian 12, the oldest that this works on, and Raspberry Pi OS have 2.36.
PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)), "manylinux2014_aarch64")
CORES = 4
CORE = {  # /proc/cpuinfo of a Raspberry Pi 4; from ARMv8.1 on, Features lists `atomics`
    "BogoMIPS": "108.00",
    "Features": "fp asimd evtstrm crc32 cpuid",
    "CPU implementer": "0x41",
    "CPU architecture": "8",
    "CPU variant": "0x0",
    "CPU part": "0xd08",
    "CPU revision": "3",
}


class EmulatorError(GemmaEdgeError):
    """The emulated machine cannot be set up."""


@dataclass(frozen=True)
class EmulatedPi:
    """A folder that qemu looks into before the real root folder (its option -L)."""

    root: Path

    @property
    def python(self) -> Path:
        """A shell script that is the emulated Python. What Python itself starts (`sys.executable`) is this again."""
        return self.root / "usr/bin/pi-python"

    def run(self, arguments: Sequence[str], *, capture: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments in the repository's folder, `gemma_edge` being its sources.

        capture: keep what it prints in the result; otherwise it goes where this process prints.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=REPOSITORY,
            # .types spells the installed package names; the emulated system has no locales.
            env=environment | {"PYTHONPATH": str(REPOSITORY / ".types"), "PYTHONUTF8": "1"},
            capture_output=capture,
            encoding="utf-8",
            check=False,
        )


def default_cache() -> Path:
    """Where tests keep what they download."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemma-edge-tests"


def emulated_pi(cache: Path) -> EmulatedPi:
    """The machine, downloaded and unpacked if this version of it is not in `cache` yet.

    Raises:
        EmulatorError: no qemu, no apt, or a download failed.
    """
    if shutil.which(QEMU) is None:
        raise EmulatorError(f"{QEMU} not found, it emulates a Raspberry Pi 4; apt-get install qemu-user-static")
    root = cache / f"aarch64-{_version()}"
    cache.mkdir(parents=True, exist_ok=True)
    with _exclusive(cache / "aarch64.lock"):
        if not root.exists():
            partial = root.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            install_debian(partial)
            install_wheels(partial)
            describe_board(partial)
            write_launcher(partial, root)
            partial.rename(root)
    return EmulatedPi(root)


def _requirements() -> list[str]:
    """What `pip install gemma-edge[litert,serve]` installs beside gemma-edge itself."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["litert"], *extras["serve"]]
    return [requirement for requirement in requirements if not requirement.startswith(f"{project['name']}[")]


def _version() -> str:
    constraints = (REPOSITORY / "constraints.txt").read_text()
    contents = "\n".join([Path(__file__).read_text(), constraints, *_requirements()])
    return hashlib.sha256(contents.encode()).hexdigest()[:12]


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install_debian(root: Path) -> None:
    """Unpack Debian's arm64 Python and what it depends on, from the archives that this system's apt uses.

    apt gets a state of its own in which nothing is installed: the system's list of architectures stays as it is.
    """
    with tempfile.TemporaryDirectory() as scratch:
        lists, archives, status = Path(scratch, "lists"), Path(scratch, "archives"), Path(scratch, "status")
        for folder in (lists, archives):
            (folder / "partial").mkdir(parents=True)
        status.touch()
        settings = {
            "APT::Architecture": "arm64",
            "APT::Architectures": "arm64",
            "APT::Sandbox::User": "root",  # apt's own user cannot enter a private folder
            "Dir::State": scratch,
            "Dir::State::lists": lists,
            "Dir::State::status": status,
            "Dir::Cache": scratch,
            "Dir::Cache::archives": archives,
        }
        apt = ["apt-get", "--quiet", *(f"--option={name}={value}" for name, value in settings.items())]
        install = ["install", "--yes", "--no-install-recommends", "--download-only", *DEBIAN_PACKAGES]
        run_step([*apt, "update"], "updating apt's arm64 lists")
        run_step([*apt, *install], "downloading arm64 packages")
        for package in sorted(archives.glob("*.deb")):
            run_step(["dpkg-deb", "--extract", str(package), str(root)], f"unpacking {package.name}")
    if not (root / "lib").exists():  # from Debian 13 on, packages no longer hold /lib
        (root / "lib").symlink_to("usr/lib")


def install_wheels(root: Path) -> None:
    """Unpack the wheels, in the versions that the suite runs with, where Debian's Python looks for packages."""
    python_version = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    target = [f"--target={root / 'usr/lib/python3/dist-packages'}", f"--constraint={REPOSITORY / 'constraints.txt'}"]
    machine = ["--implementation=cp", f"--python-version={python_version}", *(f"--platform={p}" for p in PLATFORMS)]
    run_step([*pip, *target, *machine, *_requirements()], "installing aarch64 wheels")


def describe_board(root: Path) -> None:
    """/proc/cpuinfo and /sys/devices/system/cpu of a Raspberry Pi 4: qemu would show those of the machine below.

    LiteRT reads both to choose its kernels, and crashes where they make no sense for an ARM; we read the first.
    """
    core = "".join(f"{name}\t: {value}\n" for name, value in CORE.items())
    _write(root / "proc/cpuinfo", "\n".join(f"processor\t: {index}\n{core}" for index in range(CORES)))
    cpus = root / "sys/devices/system/cpu"
    for name in ("possible", "present", "online"):
        _write(cpus / name, f"0-{CORES - 1}\n")
    for index in range(CORES):
        _write(cpus / f"cpu{index}/topology/physical_package_id", "0\n")
        _write(cpus / f"cpu{index}/topology/core_id", f"{index}\n")
        _write(cpus / f"cpu{index}/topology/core_siblings_list", f"0-{CORES - 1}\n")
        _write(cpus / f"cpu{index}/topology/thread_siblings_list", f"{index}\n")
        _write(cpus / f"cpu{index}/cpufreq/cpuinfo_max_freq", "1500000\n")
        _write(cpus / f"cpu{index}/cpufreq/cpuinfo_min_freq", "600000\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_launcher(folder: Path, root: Path) -> None:
    """Write `EmulatedPi.python` into `folder`, for use when that is called `root`.

    Its argv[0] (-0) is its own path, which Python takes for `sys.executable` and finds its library from.
    """
    launcher = EmulatedPi(folder).python
    quoted = shlex.quote(str(root))
    launcher.write_text(f'#!/bin/sh\nexec {QEMU} -cpu cortex-a72 -L {quoted} -0 "$0" {quoted}/usr/bin/python3 "$@"\n')
    launcher.chmod(0o755)


def run_step(command: Sequence[str], doing: str) -> None:
    """Run a command of the set-up. Raises EmulatorError with the last line that it wrote."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise EmulatorError(f"{doing}: {command[0]} not found; run this on Debian 12 or newer") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EmulatorError(
            f"{doing} failed with status {done.returncode} ({last}); check the network and run it again"
        )


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED)
def main(arguments: tuple[str, ...]) -> None:
    """Run the emulated Python with ARGUMENTS: a script, or -m and a module."""
    try:
        machine = emulated_pi(default_cache())
    except EmulatorError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    sys.exit(machine.run(arguments, capture=False).returncode)


if __name__ == "__main__":
    main()
