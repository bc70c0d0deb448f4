"""Opening what is a file: no pipe that nobody writes to, no device that never ends.

Every path that is read comes from a command line, a checkpoint or a cache, and any of them may be a named pipe: `open`
then waits for ever. Lives in the lowest layer so that every other layer can use it.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

MOST_BYTES: Final = 256 << 20
"""Of a file that is read whole: tokenizer.json of Gemma 3 has 33 MB."""
_KINDS: Final = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def open_plain(path: Path) -> BinaryIO:
    """The file open for reading. Raises OSError, also where it is no regular file; `strerror` says what it is."""
    require_plain(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # what it is may have changed since
    try:
        _check(path, os.fstat(fd).st_mode)
    except OSError:
        os.close(fd)
        raise
    return os.fdopen(fd, "rb")


def require_plain(path: Path) -> None:
    """For what is opened elsewhere. Raises OSError as open_plain does."""
    _check(path, os.stat(path).st_mode)  # noqa: PTH116  Path.stat of a str


def read_plain(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """All of a file. Raises OSError as open_plain does, and where it has more than `most_bytes`."""
    with open_plain(path) as file:
        nbytes = os.fstat(file.fileno()).st_size
        if nbytes > most_bytes:
            raise OSError(errno.EFBIG, f"{nbytes:,} bytes, expected at most {most_bytes:,}", str(path))
        return file.read()


def read_plain_text(path: Path, encoding: str = "utf-8") -> str:
    """All of a text, with line ends as "\\n". Raises OSError as read_plain does, UnicodeDecodeError."""
    return read_plain(path).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def _check(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise OSError(errno.EINVAL, f"{kind}, expected a file", str(path))
