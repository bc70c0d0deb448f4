"""The header of a safetensors file: what is stored where, checked against the file before a value is read.

Layout (https://huggingface.co/docs/safetensors): u64 little-endian header length N, N bytes of JSON
`{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}`, then the data. Offsets count from the
end of the header, and the tensors cover the data without holes or overlaps.

Parsed here rather than by the safetensors package: it needs 30 lines, names the tensor and the file in every refusal,
and hands out offsets so that a 9 GB file can be streamed through one small buffer.
"""

import json
import struct
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gemma_edge.converter.tensors import StaticScales
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import open_plain
from gemma_edge.runtime.formats.direct import DirectReader

# safetensors itself refuses longer headers; a Gemma 3n header is about 0.2 MB.
MAX_HEADER_BYTES = 100_000_000

_MOST_BYTES, _MOST_DIMENSIONS = 1 << 62, 16

# The 4- and 6-bit types of the format are absent: no such tensor can belong to a Gemma checkpoint we could read.
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


class CheckpointError(GemmaEdgeError):
    """The checkpoint cannot be converted as it is; the message names the file or the tensor."""


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `offset` counts from the beginning of `file`; `dtype` is the format's own name, "BF16".

    shift: what is added to the stored values, where a file has others than Hugging Face's (see gguf/names.py).
    scales, static: of a matrix of integers, see integers/.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    shift: float = 0.0
    scales: "TensorInfo | None" = None
    static: StaticScales | None = None


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by name.

    Raises:
        CheckpointError: the file cannot be read or is truncated, or its header is not JSON or describes another file.
    """
    try:
        return _read_header(path)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """What to say where the system does not give a file's bytes."""
    return CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions, and the disk")


def read_range(path: Path, offset: int, nbytes: int) -> bytes:
    """Some of a file's bytes, past the page cache. Raises CheckpointError."""
    try:
        with DirectReader(path) as file:
            return bytes(file.read(offset, nbytes))
    except OSError as error:
        raise unreadable(path, error) from error


def _read_header(path: Path) -> dict[str, TensorInfo]:
    file_bytes = path.stat().st_size
    with open_plain(path) as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(f"{path}: {file_bytes} bytes, a safetensors file has at least 8; download it again")
        if prefix == b"version ":
            raise CheckpointError(f"{path}: a Git LFS pointer, expected the file it points to; run `git lfs pull`")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
            raise CheckpointError(
                f"{path}: header length {header_bytes} in a file of {file_bytes} bytes; "
                "not a safetensors file, or truncated: download it again"
            )
        text = file.read(header_bytes)
    entries = _parse_json(path, text)
    entries.pop("__metadata__", None)
    data_offset = 8 + header_bytes
    tensors = {name: _tensor_info(path, name, entry, data_offset) for name, entry in entries.items()}
    _check_coverage(path, tensors, data_offset, file_bytes)
    return tensors


def _parse_json(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise CheckpointError(f"{path}: corrupt header: {twice!r} appears twice; download the file again")
        return entries

    try:
        entries = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: also broken UTF-8
        raise CheckpointError(f"{path}: corrupt header: not JSON ({error}); download the file again") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: corrupt header: a JSON object was expected; download the file again")
    return entries


def _tensor_info(path: Path, name: str, entry: Any, data_offset: int) -> TensorInfo:
    """One header entry, checked by itself: known dtype, sane shape, as many bytes as shape and dtype need."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sane = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and begin <= end  # True is an int as well
    except (KeyError, TypeError, ValueError):
        sane = False
    if not sane:
        raise CheckpointError(
            f"{path}: corrupt header: {name} has no valid dtype, shape and data_offsets; download the file again"
        )
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{path}: {name} has dtype {dtype!r}; expected one of {', '.join(sorted(_ITEM_BYTES))}")
    expected_bytes = _checked_product(shape) * _ITEM_BYTES[dtype]
    if expected_bytes > _MOST_BYTES or len(shape) > _MOST_DIMENSIONS:
        raise CheckpointError(
            f"{path}: corrupt header: {name} is {dtype} {list(shape[:_MOST_DIMENSIONS])}, of {len(shape)} dimensions: "
            "more than any file holds; download the file again"
        )
    if end - begin != expected_bytes:
        raise CheckpointError(
            f"{path}: corrupt header: {name} is {dtype} {list(shape)}, {expected_bytes} bytes, "
            f"but its data_offsets span {end - begin}; download the file again"
        )
    return TensorInfo(name, dtype, shape, path, data_offset + begin, end - begin)


def _checked_product(shape: tuple[int, ...]) -> int:
    """The product, or something beyond _MOST_BYTES where it is larger: never a number of thousands of digits."""
    product = 1
    for size in sorted(shape[: _MOST_DIMENSIONS + 1]):  # a 0 first
        product = min(product * size, _MOST_BYTES + 1)
    return product


def _check_coverage(path: Path, tensors: dict[str, TensorInfo], data_offset: int, file_bytes: int) -> None:
    """The tensors lie one behind the other from the header to the end of the file, as the format demands."""
    in_file = sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes))
    if in_file and in_file[0].offset != data_offset:
        raise CheckpointError(
            f"{path}: corrupt header: {in_file[0].name} begins {in_file[0].offset - data_offset} bytes behind the "
            "header, expected 0; download the file again"
        )
    for before, after in pairwise(in_file):
        gap = after.offset - (before.offset + before.nbytes)
        if gap:
            raise CheckpointError(
                f"{path}: corrupt header: {before.name} and {after.name} {'overlap' if gap < 0 else 'leave a hole'} "
                f"of {abs(gap)} bytes; download the file again"
            )
    end = in_file[-1].offset + in_file[-1].nbytes if in_file else data_offset
    if end > file_bytes:
        raise CheckpointError(
            f"{path}: truncated: {file_bytes} bytes, expected {end} ({in_file[-1].name} ends there); download it again"
        )
    if end < file_bytes:
        raise CheckpointError(
            f"{path}: {file_bytes - end} bytes behind the last tensor, expected none; download the file again"
        )
