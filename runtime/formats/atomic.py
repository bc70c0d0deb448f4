"""A file, or a directory, that appears under its name complete, or not at all.

Bytes go to a hidden partial file beside the target and are renamed over it at the end (POSIX rename is atomic within a
directory). A run that is killed cannot tidy up, so the next run for the same target does: it removes every partial
whose lock is free. The kernel drops a lock when its process dies, whichever way, and unlike a process id it can't be
mistaken for a living stranger's (containers hand out the same few ids every time).
"""

import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.formats.lock import LockHeldError, held, lock

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class OutputError(GemmaEdgeError):
    """The output cannot be written where the user asked for it."""


@contextmanager
def output_lock(path: Path) -> Iterator[None]:
    """Until the block ends, no other run writes the output `path`, of however many files it consists.

    Raises OutputError, which says who holds it; or where the lock cannot be made beside the output.
    """
    target = _resolved(path)
    _check_parent(path, target)
    with ExitStack() as stack:
        try:
            if target.name:  # else it is /, which nobody writes
                stack.enter_context(held(target.with_name(f".{target.name}.lock"), wait=False))
        except LockHeldError as error:
            raise OutputError(f"{path}: {error.holder} is writing it; wait, or choose another output") from None
        except OSError as error:
            raise OutputError(
                f"{path}: cannot write ({_reason(error)}); choose a directory you may write to"
            ) from error
        yield


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a seekable binary file, open for reading and writing, that becomes `path` when the block ends well.

    On any exception, KeyboardInterrupt included, the partial file is removed and `path` stays what it was. A symbolic
    link is followed; what exists and is no regular file (a directory, /dev/null) is never replaced.

    Raises OutputError: the directory is missing or cannot be written, `path` is no file, the disk is full, the file
    system cannot hold a file so large.
    """
    try:
        target = _resolved(path)
        _check_target(path, target)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise OutputError(f"{path}: this process is already writing it; wait, or choose another output") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot write ({error.strerror}); choose a directory you may write to") from error
    with os.fdopen(fd, "w+b") as file:
        try:
            _lock(path, fd)
            yield file
            file.flush()
            os.fsync(fd)
            partial.replace(target)
        except BaseException as error:
            message = _disk_message(path, target, error)
            partial.unlink(missing_ok=True)
            with suppress(OSError):  # leave no buffered bytes for the with statement to fail on a second time
                file.close()
            if message is not None:
                raise OutputError(message) from error
            raise
    _sync_directory(target.parent)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields an empty directory that becomes `path` when the block ends well; as atomic_file otherwise.

    What exists is replaced only if it is an empty directory. The block must have closed, and synced, its files.

    Raises OutputError: the parent is missing or cannot be written, `path` exists and is no empty directory, the disk is
    full, the file system cannot hold a file so large.
    """
    try:
        target = _resolved(path)
        _check_directory(path, target)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        partial.mkdir()
    except FileExistsError:
        raise OutputError(f"{path}: this process is already writing it; wait, or choose another output") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot write ({error.strerror}); choose a directory you may write to") from error
    fd = os.open(partial, os.O_RDONLY)
    try:
        _lock(path, fd)
        yield partial
        os.fsync(fd)
        partial.replace(target)
    except BaseException as error:
        message = _disk_message(path, target, error)
        shutil.rmtree(partial, ignore_errors=True)
        if message is not None:
            raise OutputError(message) from error
        raise
    finally:
        os.close(fd)
    _sync_directory(target.parent)


@contextmanager
def disk_errors_of(path: Path) -> Iterator[None]:
    """What a disk refuses within the block is said of `path`, whatever other outputs are open around it.

    Raises OutputError as atomic_file does.
    """
    try:
        yield
    except OSError as error:
        message = _disk_message(path, _resolved(path), error)
        if message is not None:
            raise OutputError(message) from error
        raise


def require_space(path: Path, needed_bytes: int) -> None:
    """Raises OutputError unless the disk of the output `path` has that much room left."""
    free_bytes = shutil.disk_usage(Path(path).resolve().parent).free
    if free_bytes < needed_bytes:
        raise OutputError(_disk_full(path, f"{needed_bytes / 2**20:,.0f} MiB needed, ", free_bytes))


def _lock(path: Path, fd: int) -> None:
    """From now on the partial is a living run's."""
    lock(fd, fcntl.LOCK_EX)
    if not os.fstat(fd).st_nlink:  # until now it was not, and another run for the same target has tidied it up
        raise OutputError(f"{path}: another process has begun to write it; wait, or choose another output")


def _resolved(path: Path) -> Path:
    """The file that `path` leads to, through links."""
    with suppress(RuntimeError):  # of a link that leads to itself; from Python 3.13 on, it stays a link
        found = Path(path).resolve()
        if not found.is_symlink():
            return found
    raise OutputError(f"{path}: a link that leads to itself; remove it or choose another output")


def require_directory(path: Path) -> None:
    """Raises OutputError where the directory that `path` would lie in does not exist."""
    _check_parent(path, _resolved(path))


def _check_parent(path: Path, target: Path) -> None:
    if not target.parent.is_dir():
        raise OutputError(f"{path}: the directory {target.parent} does not exist; create it or choose another output")


def _check_target(path: Path, target: Path) -> None:
    _check_parent(path, target)
    if target.exists() and not target.is_file():
        raise OutputError(f"{path}: exists and is not a file; choose another output")
    _remove_stale(target)


def _check_directory(path: Path, target: Path) -> None:
    _check_parent(path, target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{path}: exists and is not an empty directory; remove it or choose another output")
    _remove_stale(target)


def _remove_stale(target: Path) -> None:
    """Removes partial files and directories of `target` that no living process holds."""
    for partial in target.parent.glob(glob.escape(f".{target.name}.") + "*.partial"):
        if partial.name.removeprefix(f".{target.name}.").removesuffix(".partial").isdigit():
            with suppress(OSError):  # in use, or not ours to open or remove: leave it
                fd = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
                finally:
                    os.close(fd)


def _reason(error: OSError) -> str:
    """What is wrong, and with which file where that is not the output."""
    named = "" if error.filename is None else f", {Path(error.filename).name}"
    return f"{error.strerror}{named}"


def _disk_message(path: Path, target: Path, error: BaseException) -> str | None:
    """What to say of an error that is the disk's; None of any other."""
    if not isinstance(error, OSError):
        return None
    if error.errno in _NO_SPACE:
        return _disk_full(path, "", shutil.disk_usage(target.parent).free)
    if error.errno == errno.EFBIG:
        return f"{path}: too large for this file system (FAT32 ends at 4 GiB); choose another disk"
    return None


def _sync_directory(directory: Path) -> None:
    """Makes the rename durable; a file system that can't sync a directory (EINVAL) has nothing to sync."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def _disk_full(path: Path, needed: str, free_bytes: int) -> str:
    return f"{path}: disk full, {needed}{free_bytes / 2**20:,.0f} MiB free; free some space or choose another disk"
