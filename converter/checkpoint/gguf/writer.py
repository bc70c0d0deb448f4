"""The header of a GGUF file that is to be written: bytes and places, before a weight is read. file.py reads it again.

The layout is described there. Places follow from shapes and types alone, so that tensors can be written in any order.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gemma_edge.converter.checkpoint.gguf.file import MAGIC, SCALARS, GgufTensor
from gemma_edge.converter.checkpoint.gguf.values import TYPES

_VERSION: Final = 3
_ALIGNMENT: Final = 32  # GGUF_DEFAULT_ALIGNMENT
_STRING, _ARRAY = 8, 9
_NUMBERS: Final = {"u32": 4, "i32": 5, "f32": 6, "bool": 7, "string": _STRING}


@dataclass(frozen=True)
class Value:
    """A value of the metadata. kind: a key of _NUMBERS; of a list, that of its elements."""

    kind: str
    value: Any

    def __post_init__(self) -> None:
        if self.kind not in _NUMBERS:
            raise ValueError(f"{self.kind}: no type of metadata; expected one of {', '.join(_NUMBERS)}")

    def encoded(self) -> bytes:
        """Its type and itself."""
        number = _NUMBERS[self.kind]
        if not isinstance(self.value, list):
            return struct.pack("<I", number) + _element(number, self.value)
        head = struct.pack("<IIQ", _ARRAY, number, len(self.value))
        if number == _STRING:
            return head + b"".join(_element(number, item) for item in self.value)
        return head + struct.pack(f"<{len(self.value)}{SCALARS[number]}", *self.value)


@dataclass(frozen=True)
class Layout:
    """header: up to where the data begins, padding included. tensors: with their places. nbytes: of the whole file."""

    header: bytes
    tensors: Mapping[str, GgufTensor]
    nbytes: int

    @classmethod
    def of(cls, metadata: Mapping[str, Value], tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> "Layout":
        """tensors: (name, a key of TYPES, shape with the slowest axis first), one after the other in the file."""
        parts = [struct.pack("<4sIQQ", MAGIC, _VERSION, len(tensors), len(metadata))]
        parts += [_element(_STRING, key) + value.encoded() for key, value in metadata.items()]
        offset, places = 0, []
        for name, kind, shape in tensors:
            parts.append(_element(_STRING, name))
            parts.append(struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), TYPES[kind].number, offset))
            nbytes = math.prod(shape) // TYPES[kind].block * TYPES[kind].nbytes
            places.append((name, kind, shape, offset, nbytes))
            offset = _aligned(offset + nbytes)
        header = b"".join(parts)
        header += bytes(_aligned(len(header)) - len(header))
        placed = {name: GgufTensor(name, kind, shape, len(header) + at, n) for name, kind, shape, at, n in places}
        return cls(header, placed, len(header) + offset)


def _element(number: int, value: Any) -> bytes:
    if number == _STRING:
        text = str(value).encode()
        return struct.pack("<Q", len(text)) + text
    return struct.pack(f"<{SCALARS[number]}", value)


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT
