"""A part of a file, and a file as it is now, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileRange:
    """A byte range of a file, and the SHA-256 it should have where that is known."""

    path: Path
    offset: int
    nbytes: int
    sha256: str | None = None

    @classmethod
    def whole(cls, path: Path) -> "FileRange":
        """All of a file as it is now. Raises OSError."""
        return cls(path, 0, path.stat().st_size)


FileState = tuple[int, ...]
"""What changes when a file is replaced or written to."""


def file_states(path: Path) -> Mapping[Path, FileState | None]:
    """A file as it is now, or all that is in a directory; None of what is not there."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return {file: _state(file) for file in files}


def have_changed(files: Mapping[Path, FileState | None]) -> bool:
    """Whether one of them is no longer as it was."""
    return any(_state(file) != was for file, was in files.items())


def _state(path: Path) -> FileState | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
