"""Write a Hugging Face checkpoint's safetensors files, tensor by tensor, so that size is bounded by disk alone."""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma_edge.runtime.formats.atomic import atomic_file, require_space

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8}


@dataclass(frozen=True)
class Header:
    """How a tensor is stored: safetensors' dtype name and the shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def write_shards(
    directory: Path,
    tensors: Mapping[str, Header],
    values: Callable[[str], Iterable[bytes | memoryview]],
    shards: int,
) -> list[Path]:
    """Write `tensors` in their order into at most `shards` files of about equal size, named as transformers names them.

    values: the bytes of one tensor, in pieces.
    Returns the files. Each appears under its name when it is complete, the index last: what was interrupted has no
    index, and is refused as a checkpoint.
    """
    groups = _split(tensors, shards)
    if len(groups) == 1:
        path = directory / "model.safetensors"
        _write_file(path, tensors, values)
        return [path]
    paths = [directory / f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    for path, names in zip(paths, groups, strict=True):
        _write_file(path, {name: tensors[name] for name in names}, values)
    index = {
        "metadata": {"total_size": sum(stored.nbytes for stored in tensors.values())},
        "weight_map": {name: path.name for path, names in zip(paths, groups, strict=True) for name in names},
    }
    with atomic_file(directory / "model.safetensors.index.json") as file:
        file.write(json.dumps(index, indent=2).encode() + b"\n")
    return paths


def _split(tensors: Mapping[str, Header], shards: int) -> list[list[str]]:
    """Consecutive names, cut where the running total passes each multiple of total / shards."""
    total_bytes = sum(stored.nbytes for stored in tensors.values())
    groups: dict[int, list[str]] = {}
    begin = 0
    for name, stored in tensors.items():
        groups.setdefault(begin * shards // total_bytes, []).append(name)
        begin += stored.nbytes
    return list(groups.values())


def _write_file(
    path: Path, tensors: Mapping[str, Header], values: Callable[[str], Iterable[bytes | memoryview]]
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, stored in tensors.items():
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [begin, begin + stored.nbytes]}
        begin += stored.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes by padding the header
    require_space(path, 8 + len(text) + begin)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, stored in tensors.items():
            written = sum(file.write(piece) for piece in values(name))
            if written != stored.nbytes:
                raise ValueError(f"{name}: {written} bytes, expected {stored.nbytes}")
