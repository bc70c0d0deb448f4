"""The XNNPACK weight cache of a decoder section: packed once, mapped ever after.

With it the packed weights are file-backed pages; without it they are anonymous memory (E2B: 2.5 GB). Three traps shape
this module:

- XNNPACK does not notice that a cache belongs to other weights and then computes nonsense. The file is therefore named
  by the content of the section, by the version that packed it and by the CPU it was packed for.
- The process that packs keeps about 500 MB and does not lock the file. A subprocess packs into a partial file that is
  renamed when complete.
- A cache that cannot be used is silently ignored or rewritten. `check_used` looks after loading.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gemma_edge.runtime.executors.base import ExecutorError
from gemma_edge.runtime.executors.litert.library import CompiledSection, litert_version
from gemma_edge.runtime.executors.litert.section_hash import section_sha256
from gemma_edge.runtime.formats.file_range import FileRange

_REMEDIES = {
    -signal.SIGKILL: "close other programs, it was killed",
    # Seen where cpuinfo, which chooses the kernels, finds nothing about an ARM in either.
    -signal.SIGSEGV: "LiteRT crashed, check that this machine's /proc/cpuinfo and /sys/devices/system/cpu can be read",
}


class WeightCacheError(ExecutorError):
    """The weight cache cannot be built or is not used."""


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/gemma-edge`, by default `~/.cache/gemma-edge`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemma-edge"


def weight_cache(section: FileRange, cache_dir: Path, threads: int) -> Path:
    """The cache file of a section, packed now if this content was not packed before on this CPU."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        path = cache_dir / f"{section_sha256(section, cache_dir)}.{litert_version()}.{cpu_key()}.xnnpack"
        if not path.exists():
            with exclusive(path.with_suffix(".lock")):
                if not path.exists():
                    _build(section, path, threads)
    except OSError as error:
        raise WeightCacheError(
            f"cannot write the weight cache in {cache_dir} ({error}); choose another cache_dir"
        ) from error
    return path


def compile_section(section: FileRange, threads: int, cache_dir: Path | None) -> tuple[CompiledSection, Path | None]:
    """A model with its weights mapped from the cache, and the cache; without a folder they are packed into memory.

    Raises WeightCacheError: a cache that LiteRT does not use. BundleError: the section is damaged.
    """
    if cache_dir is None:
        section_sha256(section, notes=None)
        return CompiledSection(section, threads, None), None
    for _ in range(2):  # a damaged cache is removed and packed again, once
        cache = weight_cache(section, cache_dir, threads)
        check = UseCheck(cache)
        model = CompiledSection(section, threads, cache)
        if check.used():
            return model, cache
        model.close()
        cache.unlink(missing_ok=True)
    raise WeightCacheError(
        f"the weight cache {cache} is not used by LiteRT, the packed weights would stay in memory; "
        "choose another cache_dir, or none to accept that"
    )


class UseCheck:
    """Proves that a cache was mapped as it was, not ignored or rewritten. Make it before loading."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = _identity(path)

    def used(self) -> bool:
        """Call after loading."""
        if _identity(self._path) != self._before:
            return False
        maps = Path("/proc/self/maps")
        return not maps.exists() or str(self._path.resolve()) in maps.read_text()


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def cpu_key() -> str:
    """Weights are packed for the widest kernels of the CPU: machines that share a cache directory need a file each."""
    features = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One builder at a time; the kernel drops the lock of a process that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(section: FileRange, path: Path, threads: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < section.nbytes:
        raise WeightCacheError(
            f"the weight cache needs about {section.nbytes >> 20} MiB in {path.parent}, {free >> 20} MiB are free; "
            "free some space or choose another cache_dir"
        )
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)  # under the lock: what is left here belongs to a builder that died
    command = [
        sys.executable, "-m", "gemma_edge.runtime.executors.litert.weight_cache",
        str(section.path), str(section.offset), str(section.nbytes), str(threads), str(partial),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not partial.exists():
        partial.unlink(missing_ok=True)
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if line.startswith("ERROR: ")), lines[-1])  # LiteRT's own, if it gave one
        remedy = _REMEDIES.get(done.returncode, "convert the checkpoint again")
        raise WeightCacheError(
            f"packing the weights of {section.path} failed with status {done.returncode} ({reason}); {remedy}"
        )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _main(arguments: list[str]) -> None:
    path, offset, nbytes, threads, out = arguments
    CompiledSection(FileRange(Path(path), int(offset), int(nbytes)), int(threads), Path(out)).close()


if __name__ == "__main__":
    _main(sys.argv[1:])
