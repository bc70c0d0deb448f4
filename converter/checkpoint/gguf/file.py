"""The header of a GGUF file: its metadata and where each tensor lies, checked against the file before a value is read.

Layout (ggml docs/gguf.md, version 3; version 2 is the same): "GGUF", u32 version, u64 tensors, u64 pairs of metadata;
each pair a string key, u32 type, value; each tensor a string name, u32 number of axes, u64 sizes (the fastest first),
u32 type, u64 offset from the data, which begins at the next multiple of `general.alignment`. A string is u64 length and
UTF-8. All little-endian. The tensors follow each other, each padded to the alignment (gguf.cpp demands it as well).

Parsed here rather than by gguf.GGUFReader: that keeps every element of every array as an object of its own (2 GB for
Gemma's vocabulary), and meets a damaged file with whatever exception comes.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final

import numpy as np

from gemma_edge.converter.checkpoint.gguf.values import TYPES
from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError, unreadable
from gemma_edge.profiles.plain_file import open_plain

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_STRING, _ARRAY = 8, 9
SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_AXES: Final = 4  # GGML_MAX_DIMS
_LARGEST_AXIS: Final = 1 << 40
_DEFAULT_ALIGNMENT: Final = 32  # GGUF_DEFAULT_ALIGNMENT
_SHORTEST_PAIR, _SHORTEST_TENSOR = 13, 24  # bytes: what bounds a count that is nonsense
_DEEPEST: Final = 4  # arrays in arrays; llama.cpp writes none


@dataclass(frozen=True)
class GgufTensor:
    """One tensor as the file has it. shape: the slowest axis first, as numpy has it; type: a key of TYPES."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int  # from the beginning of the file
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """What one file holds. metadata: values by key; arrays are lists. tensors: by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does; False where it cannot be read."""
    try:
        with open_plain(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path) -> GgufFile:
    """The metadata and the tensors of one file.

    Raises:
        CheckpointError: the file cannot be read or is truncated, its header contradicts itself or the file, or a tensor
            is of a type that is not in TYPES.
    """
    try:
        with open_plain(path) as file:
            return _Reader(path, file).read()
    except OSError as error:
        raise unreadable(path, error) from error


class _Reader:
    """A header on its way, front to back."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._file_bytes = path.stat().st_size
        self._position = 0

    def read(self) -> GgufFile:
        self._check_magic()
        tensor_count, pair_count = self._count(_SHORTEST_TENSOR, "tensors"), self._count(_SHORTEST_PAIR, "metadata")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self._string("a key of the metadata")
            if key in metadata:
                raise self._corrupt(f"{key!r} appears twice")
            metadata[key] = self._value(self._number("I", key), key)
        entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
        for _ in range(tensor_count):
            name = self._string("a tensor's name")
            if name in entries:
                raise self._corrupt(f"the tensor {name!r} appears twice")
            entries[name] = self._tensor(name)
        tensors = self._place(entries, self._alignment(metadata))
        return GgufFile(self._path, MappingProxyType(metadata), MappingProxyType(tensors))

    def _check_magic(self) -> None:
        magic = self._file.read(4)
        if magic == b"vers":
            raise CheckpointError(f"{self._path}: a Git LFS pointer, expected what it points to; run `git lfs pull`")
        if magic != MAGIC:
            raise CheckpointError(
                f"{self._path}: begins with {magic!r}, a GGUF file with {MAGIC!r}; not a GGUF file: download it again"
            )
        self._position = 4
        version = self._number("I", "the version")
        if version & 0xFFFF == 0 and version:
            raise CheckpointError(
                f"{self._path}: a big-endian GGUF file; expected a little-endian one: convert it with gguf's "
                "gguf_convert_endian"
            )
        if version not in _VERSIONS:
            raise CheckpointError(
                f"{self._path}: GGUF version {version}, expected {' or '.join(map(str, _VERSIONS))}; convert it anew"
            )

    def _corrupt(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: corrupt header: {what}; download the file again")

    def _take(self, nbytes: int, what: str) -> bytes:
        if nbytes > self._file_bytes - self._position:
            raise CheckpointError(
                f"{self._path}: truncated: {self._file_bytes} bytes, which end inside {what}; download it again"
            )
        data = self._file.read(nbytes)
        if len(data) != nbytes:
            raise CheckpointError(f"{self._path}: ends inside {what}; it was changed while being read")
        self._position += nbytes
        return data

    def _number(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}"), what))[0]

    def _count(self, shortest: int, what: str) -> int:
        count: int = self._number("Q", f"the number of {what}")
        if count * shortest > self._file_bytes:
            raise self._corrupt(f"{count} {what} in a file of {self._file_bytes} bytes")
        return count

    def _string(self, what: str) -> str:
        data = self._take(self._number("Q", what), what)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self._corrupt(f"{what} is not UTF-8 ({data[:40]!r})") from None

    def _value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self._number(SCALARS[kind], key)
        if kind == _STRING:
            return self._string(key)
        if kind != _ARRAY or depth == _DEEPEST:
            raise self._corrupt(f"{key} is of the unknown type {kind}")
        inner, count = self._number("I", key), self._number("Q", key)
        if inner in SCALARS:
            dtype = np.dtype(f"<{SCALARS[inner]}")
            return np.frombuffer(self._take(count * dtype.itemsize, key), dtype).tolist()
        if count * 8 > self._file_bytes:
            raise self._corrupt(f"{key} has {count} elements in a file of {self._file_bytes} bytes")
        return [self._value(inner, key, depth + 1) for _ in range(count)]

    def _tensor(self, name: str) -> tuple[str, tuple[int, ...], int]:
        """(type, shape, offset from the data)."""
        axes = self._number("I", name)
        if not 1 <= axes <= _MOST_AXES:
            raise self._corrupt(f"{name} has {axes} axes, expected 1 to {_MOST_AXES}")
        shape = tuple(reversed([self._number("Q", name) for _ in range(axes)]))
        if not all(0 < size <= _LARGEST_AXIS for size in shape):
            raise self._corrupt(f"{name} has the shape {list(shape)}")
        number, offset = self._number("I", name), self._number("Q", name)
        found = next((key for key, kind in TYPES.items() if kind.number == number), None)
        if found is None:
            raise CheckpointError(
                f"{self._path}: {name} is of type {_type_name(number)}, expected one of {', '.join(TYPES)}; "
                "use another quantization of the model"
            )
        if shape[-1] % TYPES[found].block:
            raise self._corrupt(
                f"{name} has {shape[-1]} columns, which do not split into {found}'s blocks of {TYPES[found].block}"
            )
        return found, shape, offset

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._corrupt(f"general.alignment is {str(alignment)[:40]!r}, expected a power of two")
        return alignment

    def _place(self, entries: Mapping[str, tuple[str, tuple[int, ...], int]], alignment: int) -> dict[str, GgufTensor]:
        data_offset = _aligned(self._position, alignment)
        tensors = {}
        for name, (kind, shape, offset) in entries.items():
            nbytes = math.prod(shape) // TYPES[kind].block * TYPES[kind].nbytes
            tensors[name] = GgufTensor(name, kind, shape, data_offset + offset, nbytes)
        ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        if ordered and ordered[0].offset != data_offset:
            raise self._corrupt(
                f"{ordered[0].name} begins {ordered[0].offset - data_offset} bytes behind the header, expected 0"
            )
        for before, after in pairwise(ordered):
            expected = data_offset + _aligned(before.offset + before.nbytes - data_offset, alignment)
            if after.offset != expected:
                raise self._corrupt(
                    f"{after.name} begins {after.offset - expected} bytes behind the end of {before.name}, expected 0"
                )
        end = ordered[-1].offset + ordered[-1].nbytes if ordered else self._position
        if end > self._file_bytes:
            raise CheckpointError(
                f"{self._path}: truncated: {self._file_bytes} bytes, expected {end} ({ordered[-1].name} ends there); "
                "download it again"
            )
        if self._file_bytes - end > alignment:
            raise CheckpointError(
                f"{self._path}: {self._file_bytes - end} bytes behind the last tensor, expected none; "
                "download the file again"
            )
        return tensors


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _type_name(number: int) -> str:
    """ "IQ4_XS (23)", or the number alone where the package gguf is absent or does not know it."""
    try:
        from gguf import GGMLQuantizationType

        return f"{GGMLQuantizationType(number).name} ({number})"
    except (ImportError, ValueError):
        return str(number)
