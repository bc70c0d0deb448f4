"""The XNNPACK weight cache of a decoder section: packed once, mapped ever after.

With it the packed weights are file-backed pages; without it they are anonymous memory (E2B: 2.5 GB). Three traps shape
this module:

- XNNPACK does not notice that a cache belongs to other weights and then computes nonsense. The file is therefore named
  by the content of the section, by the version that packed it and by the CPU it was packed for.
- The process that packs keeps about 500 MB and does not lock the file. A subprocess packs into a partial file that is
  renamed when complete.
- A cache that cannot be used is silently ignored or rewritten. `UseCheck` looks after loading.

Where other users may write, packed weights lie in a folder of their own: `packing/folder.py`.
"""

import contextlib
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
from gemma_edge.runtime.packing.child import refuse_to_pack_again, run_child
from gemma_edge.runtime.packing.folder import CacheFolder, CacheFolderError, own_folder

_CPU_FILES = (Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/possible"))
_CRASHES = {-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)}
_LEAST_S, _BYTES_PER_S = 120, 1 << 20  # a child that takes longer hangs; a Raspberry Pi 4 packs 20 times as much


class WeightCacheError(ExecutorError):
    """The weight cache cannot be built or is not used."""


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/gemma-edge`, by default `~/.cache/gemma-edge`. Raises WeightCacheError: there is no home."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "gemma-edge"
    try:
        return Path.home() / ".cache" / "gemma-edge"
    except RuntimeError as error:
        raise WeightCacheError(
            f"user {os.geteuid()} has no home folder for packed weights: HOME is not set, and no account says; "
            'pass cache_dir (--cache-dir), ":nocache" to pack at every start, or set XDG_CACHE_HOME'
        ) from error


def weight_cache(section: FileRange, cache_dir: Path, threads: int) -> Path:
    """The cache file of a section, packed now if this content was not packed before on this CPU."""
    with cache_opened(cache_dir) as folder:
        return folder.path / _packed(section, folder, threads).name


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
    with cache_opened(cache_dir) as folder:
        for _ in range(2):  # a damaged cache is removed and packed again, once
            cache = _packed(section, folder, threads)
            check = UseCheck(cache)
            model = CompiledSection(section, threads, cache)
            if check.used():
                return model, folder.path / cache.name
            model.close()
            folder.remove(cache.name)
        raise WeightCacheError(
            f"the weight cache {folder.path / cache.name} is not used by LiteRT, the packed weights would stay in "
            "memory; choose another cache_dir, or none to accept that"
        )


@contextlib.contextmanager
def cache_opened(cache_dir: Path) -> Iterator[CacheFolder]:
    """As `own_folder`. Raises WeightCacheError for what is wrong with the folder."""
    try:
        with own_folder(cache_dir) as folder:
            yield folder
    except CacheFolderError as error:
        raise WeightCacheError(str(error)) from error
    except OSError as error:
        raise WeightCacheError(
            f"cannot write the weight cache in {cache_dir} ({error.strerror or error}); choose another cache_dir"
        ) from error


def _packed(section: FileRange, folder: CacheFolder, threads: int) -> Path:
    """Where the packed section can be read while the folder is open."""
    name = f"{section_sha256(section, folder)}.{litert_version()}.{cpu_key()}.xnnpack"
    locking = f"{name.removesuffix('.xnnpack')}.lock"
    if (found := folder.own(name)) is not None:  # what was packed here before was checked, and did not crash
        folder.tidy(locking)
        return found
    check_section(section)
    refuse_to_pack_again()
    with folder.locked(locking) as lock:
        return folder.own(name) or _build(section, folder, name, threads, lock)


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
        lines = _CPU_FILES[0].read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def _build(section: FileRange, folder: CacheFolder, name: str, threads: int, lock: int) -> Path:
    free = shutil.disk_usage(folder.anchor).free
    if free < section.nbytes:
        raise WeightCacheError(
            f"the weight cache needs about {section.nbytes >> 20} MiB in {folder.path}, {free >> 20} MiB are free; "
            "free some space or choose another cache_dir"
        )
    partial = folder.anchor / f"{name.removesuffix('.xnnpack')}.partial"
    folder.remove(partial.name)  # under the lock: what is left here belongs to a builder that died
    try:
        _load_in_child(section, threads, partial, lock)
        if not partial.exists():
            raise WeightCacheError(
                f"packing the weights of {section.path} wrote no cache to {folder.path}; choose another cache_dir"
            )
    except WeightCacheError:
        folder.remove(partial.name)
        raise
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    return folder.put(partial.name, name)


def _try(section: FileRange, threads: int, notes: Path | None) -> None:
    """Load a section in a child first, where it was never loaded before: a crash is then an error, not the caller's.

    A note remembers that it did not crash; where none can be written, each start tries.
    """
    name = f"{section_sha256(section, notes=None)}.{litert_version()}.{cpu_key()}.loaded"
    with contextlib.ExitStack() as stack:
        folder = None
        with contextlib.suppress(OSError, CacheFolderError, WeightCacheError):  # the last: no home
            folder = stack.enter_context(own_folder(notes or default_cache_dir()))
            if folder.own(name) is not None:
                return
        check_section(section)
        _load_in_child(section, threads, None, None)
        if folder is not None:
            with contextlib.suppress(OSError):
                (folder.anchor / name).touch(0o644)


def _load_in_child(section: FileRange, threads: int, out: Path | None, lock: int | None) -> None:
    """Load a section in a process of its own. out: the weight cache that it writes, under this lock.

    Raises WeightCacheError: it did not load, or the child crashed, hangs or was killed.
    """
    place = [str(section.path.absolute()), str(section.offset), str(section.nbytes), str(threads)]
    here = (lambda: None) if out is None else (lambda: _load(section, threads, out))
    limit_s = _LEAST_S + section.nbytes / _BYTES_PER_S
    try:
        if out is None:
            status, errors = run_child(__name__, [*place, ""], here, limit_s)
        else:
            status, errors = run_child(__name__, [*place, out.name], here, limit_s, folder=out.parent, lock=lock)
    except subprocess.TimeoutExpired:
        raise WeightCacheError(
            f"packing the weights of {section.path} took more than {limit_s:.0f} s; "
            "the file is damaged: copy it again, or convert the model again"
        ) from None
    if status:
        lines = errors.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if line.startswith("ERROR: ")), lines[-1])  # LiteRT's own, if it gave one
        raise WeightCacheError(
            f"packing the weights of {section.path} failed with status {status} ({reason}); {_remedy(status)}"
        )


def _remedy(status: int) -> str:
    if status == -signal.SIGKILL:
        return "close other programs, it was killed"
    if unread := [str(path) for path in _CPU_FILES if not path.exists()]:
        # cpuinfo, which chooses the kernels, then finds nothing about an ARM, and on no CPU anything without /proc.
        happened = "crashed" if status in _CRASHES else "did not load it"
        return f"LiteRT {happened}, and {' and '.join(unread)} cannot be read: make it readable"
    if status not in _CRASHES:
        return "convert the checkpoint again"
    return "LiteRT crashed on it: the file is damaged, copy it again, or convert the model again"


def _load(section: FileRange, threads: int, out: Path | None) -> None:
    CompiledSection(section, threads, out).close()


def _main(path: str, offset: str, nbytes: str, threads: str, out: str) -> None:
    _load(FileRange(Path(path), int(offset), int(nbytes)), int(threads), Path(out) if out else None)


if __name__ == "__main__":
    _main(*sys.argv[1:])
