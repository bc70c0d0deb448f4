"""Where packed weights are kept: on a disk, or they are no cache but memory."""

import re
from pathlib import Path

from gemma_edge.profiles.paths import user_path
from gemma_edge.runtime.executors.litert.weight_cache import default_cache_dir

NO_CACHE = ":nocache"  # litert_lm's spelling
_MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs", "devtmpfs"}


def cache_folder(cache_dir: str | None, bundle: Path, *, prefer_disk: bool) -> Path | None:
    """The folder of the weight cache; None for ":nocache".

    prefer_disk: where nothing was asked for and the default folder is memory, as in many containers, take the bundle's.
    """
    if cache_dir == NO_CACHE:
        return None
    if cache_dir:
        return user_path(cache_dir)
    default = default_cache_dir()
    return bundle.resolve().parent if prefer_disk and is_memory(default) and not is_memory(bundle) else default


def is_memory(path: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether files at `path`, which need not exist yet, live in memory: mapped, they count as RssShmem."""
    if not mounts.exists():
        return False
    found, kind = -1, ""
    target = path.resolve()
    for mount, file_system in re.findall(r"(?m)^\S+ (\S+) (\S+) ", mounts.read_text()):
        point = Path(mount.replace(r"\040", " "))  # the kernel writes a space so
        if target.is_relative_to(point) and len(point.parts) >= found:
            found, kind = len(point.parts), file_system
    return kind in _MEMORY_FILE_SYSTEMS
