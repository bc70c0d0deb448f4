"""Paths as a user writes them."""

import os
from pathlib import Path

from gemma_edge.profiles.errors import GemmaEdgeError


class PathError(GemmaEdgeError, ValueError):
    """A path that leads nowhere, whatever the disk holds."""


def user_path(path: str | os.PathLike[str]) -> Path:
    """`~/models` and `~name/models` as a shell takes them, where no shell did: in Python, and after --out=.

    A file or folder that is really called so is meant by it. Raises PathError: nobody of that name, or no home folder.
    """
    given = Path(path)
    if not str(given).startswith("~") or os.path.lexists(given):
        return given
    try:
        return given.expanduser()
    except RuntimeError:
        home = given.parts[0]
        raise PathError(f"{given}: there is no home folder {home}; write the path without it, from /") from None
