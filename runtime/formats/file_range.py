"""A part of a file: a section, a table, packed weights."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileRange:
    """A byte range of a file, and the SHA-256 it should have where that is known."""

    path: Path
    offset: int
    nbytes: int
    sha256: str | None = None
