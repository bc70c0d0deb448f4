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
from gemma_edge.runtime.executors.litert.sections import check_section
from gemma_edge.runtime.formats.file_range import FileRange

_CPU_FILES = (Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/possible"))
_CRASHES = {-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)}
_LEAST_S, _BYTES_PER_S = 120, 1 << 20  # a child that takes longer hangs; a Raspberry Pi 4 packs 20 times as much


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
        if not path.exists():  # what was packed here before was checked, and did not crash
            check_section(section)
            with exclusive(path.with_suffix(".lock")):
                if not path.exists():
                    _build(section, path, threads)
    except OSError as error:
        raise WeightCacheError(
            f"cannot write the weight cache in {cache_dir} ({error}); choose another cache_dir"
        ) from error
    return path


def compile_section(
    section: FileRange, threads: int, cache_dir: Path | None, notes: Path | None = None
) -> tuple[CompiledSection, Path | None]:
    """A model with its weights mapped from the cache, and the cache; without a folder they are packed into memory.

    notes: where it is then noted that the section can be loaded; by default the default cache folder.
    Raises WeightCacheError: it cannot be loaded, or LiteRT does not use the cache. BundleError, BundleMismatchError:
    the section is damaged.
    """
    if cache_dir is None:
        _try(section, threads, notes)
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
    try:
        _load_in_child(section, threads, partial)
        if not partial.exists():
            raise WeightCacheError(
                f"packing the weights of {section.path} wrote no cache to {path.parent}; choose another cache_dir"
            )
    except WeightCacheError:
        partial.unlink(missing_ok=True)
        raise
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _try(section: FileRange, threads: int, notes: Path | None) -> None:
    """Load a section in a child first, where it was never loaded before: a crash is then an error, not the caller's.

    A note remembers that it did not crash; where none can be written, each start tries.
    """
    digest = section_sha256(section, notes=None)
    note = None
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: no home
        note = (notes or default_cache_dir()) / f"{digest}.{litert_version()}.{cpu_key()}.loaded"
        if note.exists():
            return
    check_section(section)
    _load_in_child(section, threads, None)
    if note is not None:
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()


def _load_in_child(section: FileRange, threads: int, out: Path | None) -> None:
    """Load a section in a process of its own; out: the weight cache that it writes.

    Raises WeightCacheError: it did not load, or the child crashed, hangs or was killed.
    """
    command = [
        sys.executable, "-m", "gemma_edge.runtime.executors.litert.weight_cache",
        str(section.path), str(section.offset), str(section.nbytes), str(threads), "" if out is None else str(out),
    ]  # fmt: skip
    limit_s = _LEAST_S + section.nbytes / _BYTES_PER_S
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise WeightCacheError(
            f"packing the weights of {section.path} took more than {limit_s:.0f} s; "
            "the file is damaged: copy it again, or convert the model again"
        ) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if line.startswith("ERROR: ")), lines[-1])  # LiteRT's own, if it gave one
        raise WeightCacheError(
            f"packing the weights of {section.path} failed with status {done.returncode} ({reason}); "
            f"{_remedy(done.returncode)}"
        )


def _remedy(status: int) -> str:
    if status == -signal.SIGKILL:
        return "close other programs, it was killed"
    if status not in _CRASHES:
        return "convert the checkpoint again"
    if unread := [str(path) for path in _CPU_FILES if not path.exists()]:
        # cpuinfo, which chooses the kernels, then finds nothing about an ARM.
        return f"LiteRT crashed, and {' and '.join(unread)} cannot be read: make it readable"
    return "LiteRT crashed on it: the file is damaged, copy it again, or convert the model again"


def _main(arguments: list[str]) -> None:
    path, offset, nbytes, threads, out = arguments
    CompiledSection(FileRange(Path(path), int(offset), int(nbytes)), int(threads), Path(out) if out else None).close()


if __name__ == "__main__":
    _main(sys.argv[1:])
