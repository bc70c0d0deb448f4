"""A lock file: one process at a time, and no trace of it afterwards.

The kernel drops the lock of a process that dies, whichever way; the file that it leaves is taken over by the next.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STANDARD_ERROR = 2
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems say that know no locks: there each goes on without."""


class LockHeldError(Exception):
    """Another process has it. `holder` says which, as far as it is known: "process 1234"."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[int]:
    """Hold the lock file `path` until the block ends. Yields its descriptor: a child that inherits it holds it, too.

    Whatever lies there under that name keeps its content, unless it is a lock file: no link is followed.

    Raises LockHeldError unless `wait`; OSError where the file cannot be made, or is something else.
    """
    fd = _locked(path, wait)
    try:
        os.truncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield fd
    finally:
        with suppress(OSError):  # it then stays, and is nobody's
            path.unlink()  # before it is free: whoever waits for it sees that, and begins anew
        os.close(fd)


def lock(fd: int, how: int) -> None:
    """`flock`, without effect where the file system knows none. Raises BlockingIOError with LOCK_NB."""
    try:
        fcntl.flock(fd, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def descriptor(path: Path, flags: int) -> int:
    """Open a file, never as number 0, 1 or 2: those are free where standard input is closed, and a child that inherits
    the descriptor gets others in their place.
    """
    fd = os.open(path, flags, 0o600)
    if fd > _STANDARD_ERROR:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STANDARD_ERROR + 1)
    finally:
        os.close(fd)


def _locked(path: Path, wait: bool) -> int:
    while True:
        fd = descriptor(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise OSError(errno.EEXIST, "is not a lock file; remove it", str(path))
            lock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_there(path, status):
                return fd
        except BlockingIOError:
            pid = os.pread(fd, 20, 0)
            raise LockHeldError(f"process {pid.decode()}" if pid.isdigit() else "another process") from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _is_still_there(path: Path, locked: os.stat_result) -> bool:
    """The one who had it before has removed it, or has not."""
    try:
        return os.path.samestat(path.lstat(), locked)
    except FileNotFoundError:
        return False
