"""A path that leads to nothing: whether a path was meant, and what is there instead."""

import difflib
from pathlib import Path

from gemma_edge.converter.printing import listed

_SUFFIXES = (
    ".gguf", ".safetensors", ".bin", ".pt", ".pth", ".json", ".litertlm", ".task", ".onnx", ".zip", ".gz", ".tar",
)  # fmt: skip
_NEAR = 0.5  # difflib's likeness


def is_meant_as_path(text: str) -> bool:
    """Whether what a user wrote can only be a path, or begins with a directory that exists."""
    path = Path(text)
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or text.endswith("/"):
        return True
    return (text.endswith(_SUFFIXES) and ":" not in text) or ("/" in text and path.parent.is_dir())


def nearby(path: Path) -> str:
    """What there is on the way to a path that leads to nothing, on one line."""
    missing = path.name
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        missing, folder = folder.name, folder.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be looked into ({error.strerror})"
    where = "the current directory" if folder == Path() else str(folder)
    folded = {name.lower(): name for name in names}
    near = [folded[match] for match in difflib.get_close_matches(missing.lower(), folded, 3, _NEAR)]
    if near:
        return f"{where} has no {missing}, but {listed(near)}"
    return f"{where} has no {missing}" + (f", it holds {listed(names)}" if names else ", it is empty")
