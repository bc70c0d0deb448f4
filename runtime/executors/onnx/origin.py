"""What a packed graph was made from, noted beside it."""

from collections.abc import Iterable
from pathlib import Path

ORIGIN = "made_from.json"
"""{"path": the directory, "files": `file_stamps`}, in the folder of the packed graph."""


def file_stamps(directory: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Size in bytes and time of the last change in ns, by name; a file that is not there is left out."""
    found = ((name, directory / name) for name in names)
    return {
        name: [status.st_size, status.st_mtime_ns] for name, path in found if path.exists() for status in [path.stat()]
    }
