"""A part of a file, as a value."""

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
