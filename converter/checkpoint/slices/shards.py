"""Write a Hugging Face checkpoint's safetensors files, tensor by tensor, so that size is bounded by disk alone."""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma_edge.runtime.formats.atomic import atomic_file, require_space

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
INDEX = "model.safetensors.index.json"
_ALL_BYTES = {**ITEM_BYTES, "I32": 4, "I64": 8}


@dataclass(frozen=True)
class Header:
    """How a tensor is stored: safetensors' dtype name and the shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _ALL_BYTES[self.dtype]


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
    groups = split({name: stored.nbytes for name, stored in tensors.items()}, shards)
    if len(groups) == 1:
        path = directory / "model.safetensors"
        _write_file(path, tensors, values)
        return [path]
    paths = [directory / shard_name(i, len(groups)) for i in range(1, len(groups) + 1)]
    for path, names in zip(paths, groups, strict=True):
        _write_file(path, {name: tensors[name] for name in names}, values)
    files = {name: path.name for path, names in zip(paths, groups, strict=True) for name in names}
    with atomic_file(directory / INDEX) as file:
        file.write(index_json(sum(stored.nbytes for stored in tensors.values()), files))
    return paths


def shard_name(number: int, count: int) -> str:
    """As transformers names them. number: from 1."""
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def index_json(total: int, files: Mapping[str, str]) -> bytes:
    """model.safetensors.index.json. total: bytes of all tensors; files: by tensor."""
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(files)}, indent=2).encode() + b"\n"


def split(sizes: Mapping[str, int], shards: int) -> list[list[str]]:
    """Consecutive names, cut where the running total passes each multiple of total / shards. sizes: bytes by name."""
    total_bytes = sum(sizes.values())
    groups: dict[int, list[str]] = {}
    begin = 0
    for name, nbytes in sizes.items():
        groups.setdefault(begin * shards // total_bytes, []).append(name)
        begin += nbytes
    return list(groups.values())


def header_bytes(tensors: Mapping[str, Header]) -> tuple[bytes, dict[str, int]]:
    """The beginning of a safetensors file of these tensors in their order, and where in the file each begins."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, stored in tensors.items():
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [begin, begin + stored.nbytes]}
        begin += stored.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes by padding the header
    places, offset = {}, 8 + len(text)
    for name, stored in tensors.items():
        places[name] = offset
        offset += stored.nbytes
    return struct.pack("<Q", len(text)) + text, places


def _write_file(
    path: Path, tensors: Mapping[str, Header], values: Callable[[str], Iterable[bytes | memoryview]]
) -> None:
    header, _ = header_bytes(tensors)
    require_space(path, len(header) + sum(stored.nbytes for stored in tensors.values()))
    with atomic_file(path) as file:
        file.write(header)
        for name, stored in tensors.items():
            written = sum(file.write(piece) for piece in values(name))
            if written != stored.nbytes:
                raise ValueError(f"{name}: {written} bytes, expected {stored.nbytes}")
