"""The XNNPACK weight cache of a decoder section: packed once, mapped ever after.

With it the packed weights are file-backed pages; without it they are anonymous memory (E2B: 2.5 GB). Three traps shape
this module:

- XNNPACK does not notice that a cache belongs to other weights and then computes nonsense. The file is therefore named
  by the content of the section, by the version that packed it and by the CPU it was packed for.
- The process that packs keeps about 500 MB and does not lock the file. A subprocess packs into a partial file that is
  renamed when complete.
- A cache that cannot be used is silently ignored or rewritten. `UseCheck` looks after loading.

Where other users may write, packed weights lie in a folder of their own: `cache/folder.py`.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from gemma_edge.runtime.cache.child import pack_in_child, refuse_to_pack_again
from gemma_edge.runtime.cache.folder import CacheFolder, CacheFolderError, own_folder
from gemma_edge.runtime.executors.base import ExecutorError
from gemma_edge.runtime.executors.litert.library import CompiledSection, litert_version
from gemma_edge.runtime.executors.litert.section_hash import section_sha256
from gemma_edge.runtime.formats.file_range import FileRange

_CPUINFO = Path("/proc/cpuinfo")
_REMEDIES = {
    -signal.SIGKILL: "close other programs, it was killed",
    # Seen where cpuinfo, which chooses the kernels, finds nothing about an ARM in either.
    -signal.SIGSEGV: "LiteRT crashed, check that this machine's /proc/cpuinfo and /sys/devices/system/cpu can be read",
}


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


def compile_section(section: FileRange, threads: int, cache_dir: Path | None) -> tuple[CompiledSection, Path | None]:
    """A model with its weights mapped from the cache, and the cache; without a folder they are packed into memory.

    Raises WeightCacheError: a cache that LiteRT does not use. BundleError: the section is damaged.
    """
    if cache_dir is None:
        section_sha256(section, notes=None)
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
    if (found := folder.own(name)) is not None:
        folder.tidy(locking)
        return found
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
        lines = _CPUINFO.read_text().splitlines()
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
    place = [str(section.path.absolute()), str(section.offset), str(section.nbytes), str(threads)]
    status, errors = pack_in_child(
        __name__, [*place, partial.name], folder.anchor, lock, lambda: _pack(section, threads, partial)
    )
    if status or not partial.exists():
        folder.remove(partial.name)
        lines = errors.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if line.startswith("ERROR: ")), lines[-1])  # LiteRT's own, if it gave one
        remedy = _REMEDIES.get(status, "convert the checkpoint again")
        if not _CPUINFO.exists():  # LiteRT chooses its kernels by it
            remedy = f"mount {_CPUINFO.parent}: LiteRT reads {_CPUINFO}"
        raise WeightCacheError(
            f"packing the weights of {section.path} failed with status {status} ({reason}); {remedy}"
        )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    return folder.put(partial.name, name)


def _pack(section: FileRange, threads: int, out: Path) -> None:
    CompiledSection(section, threads, out).close()


def _main(path: str, offset: str, nbytes: str, threads: str, out: str) -> None:
    _pack(FileRange(Path(path), int(offset), int(nbytes)), int(threads), Path(out))


if __name__ == "__main__":
    _main(*sys.argv[1:])
