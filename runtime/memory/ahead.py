"""Packed weights read ahead of their first use, on a thread, while a prompt is being prepared.

After a boot they lie on storage alone, and are read in small pieces as the model comes to each. Reading ahead fills the
kernel's own copy and maps nothing, so no memory of this process grows. Weights that are in memory already cost the
thread some milliseconds.
"""

import os
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.memory.cgroup_limit import CgroupLimit, own_limit

_PIECE_BYTES = 4 * MIB  # `close` waits for one


class ReadAhead:
    """Begins at once, where memory holds these ranges, and ends when they are read, or with `close`.

    spare_bytes: what a budget leaves beside all of a run, these ranges included; None without a budget.
    """

    def __init__(self, ranges: Sequence[FileRange], spare_bytes: int | None) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        nbytes = sum(item.nbytes for item in ranges)
        if nbytes and spare_bytes != 0 and has_room(nbytes, own_limit()):
            args = (tuple(ranges), self._stop)
            self._thread = threading.Thread(target=read_pieces, args=args, name="gemma-edge read ahead", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop. Closing twice is fine."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


def has_room(nbytes: int, limit: CgroupLimit | None, meminfo: Path = Path("/proc/meminfo")) -> bool:
    """Whether memory holds so many bytes of files, and a third as much for what a run still takes; False if unknown.

    Where it does not, what is read first would be dropped again before it is used.
    """
    try:
        available = re.search(r"(?m)^MemAvailable:\s+(\d+) kB$", meminfo.read_text())
        rooms = [] if limit is None else [limit.limit_bytes - limit.stuck_bytes()]
    except OSError:
        return False
    if available is None:
        return False
    return nbytes * 4 <= min([int(available[1]) * 1024, *rooms]) * 3


def read_pieces(ranges: Sequence[FileRange], stop: threading.Event) -> None:
    """Have the kernel read these ranges, piece by piece. A file that is gone is left out: mapped, it is still there."""
    for item in ranges:
        with suppress(OSError):
            descriptor = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for first in range(item.offset, item.offset + item.nbytes, _PIECE_BYTES):
                    if stop.is_set():
                        return
                    piece = min(_PIECE_BYTES, item.offset + item.nbytes - first)
                    os.posix_fadvise(descriptor, first, piece, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
