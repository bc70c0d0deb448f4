"""Which file of a directory or a repository is the GGUF to convert, and which files belong to it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from gemma_edge.converter.checkpoint.gguf.file import is_gguf
from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError
from gemma_edge.converter.printing import listed

SUFFIX: Final = ".gguf"
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")  # llama.cpp's LLM_KV_SPLIT names
_BESIDE: Final = ("mmproj", "imatrix")  # encoders and importance matrices, which lie beside models


def parts_of(name: str) -> list[str]:
    """The names of all files that a GGUF of that name is split into: "m-00002-of-00003.gguf" is one of three."""
    part = _PART.fullmatch(name)
    if part is None or not 0 < int(part["count"]) < 10_000:
        return [name]
    return [f"{part['stem']}-{number + 1:05}-of-{part['count']}{SUFFIX}" for number in range(int(part["count"]))]


def choose(names: Iterable[str]) -> str | list[str] | None:
    """The GGUF among file names, the first of its parts; a list where there are several, None where there is none."""
    found = dict.fromkeys(parts_of(name)[0] for name in sorted(names) if name.endswith(SUFFIX))
    models = [name for name in found if not any(word in name.lower() for word in _BESIDE)] or list(found)
    return models[0] if len(models) == 1 else models or None


def gguf_at(path: Path) -> Path | None:
    """The GGUF behind a path: the file itself, or the one in a directory without safetensors. None: there is none.

    Raises CheckpointError where a directory holds several.
    """
    if path.is_file():
        return path if path.name.endswith(SUFFIX) or is_gguf(path) else None
    if not path.is_dir():
        return None
    names = [file.name for file in path.iterdir()]
    if any(name.endswith(".safetensors") or name == "model.safetensors.index.json" for name in names):
        return None
    match choose(names):
        case str(name):
            return path / name
        case [first, *rest]:
            raise CheckpointError(
                f"{path}: holds {len(rest) + 1} GGUF files ({listed([first, *rest])}), expected one; "
                f"name it: {path / first}"
            )
    return None
