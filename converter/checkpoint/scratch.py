"""Temporary folders that go with their owner; those of a process that was killed, when the next one is made."""

import fcntl
import os
import re
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

_PREFIX = "gemma-edge-scratch-"
_NAME = re.compile(_PREFIX + "[a-z0-9_]{8}")  # as mkdtemp makes it


class Scratch:
    """A new, empty folder in TMPDIR, until this object is gone. Raises OSError: it cannot be made."""

    def __init__(self) -> None:
        _remove_left()
        self.path, lock = _locked_folder()
        self._remove = weakref.finalize(self, _remove, self.path, lock)

    def remove(self) -> None:
        """The folder goes now."""
        self._remove()


def _locked_folder() -> tuple[Path, int]:
    """The lock says that its process lives; the kernel drops it."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:  # else another process has taken it for one of a dead process
            return path, lock
        os.close(lock)


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_left() -> None:
    """What processes of this user that were killed have left."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not _NAME.fullmatch(path.name):
            continue
        with suppress(OSError):  # in use, or not ours
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(folder).st_uid == os.geteuid():
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(folder)
