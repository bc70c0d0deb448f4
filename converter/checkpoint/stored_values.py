"""From a stored tensor's bytes to float32, whatever the file: 16- and 32-bit floats, GGUF's blocks, packed integers."""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.gguf.values import BLOCK_TYPES, TYPES, dequantize
from gemma_edge.converter.checkpoint.integers.packed import DTYPES, read_packed
from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError, TensorInfo
from gemma_edge.converter.tensors import SourceTensor
from gemma_edge.runtime.formats.direct import DirectReader

Float32 = NDArray[np.float32]

LIMIT: Final = 2.0**40
"""A weight from here on is a flipped bit, as training leaves none above some thousands, and ends in infinity: RMSNorm
squares what was multiplied by it, and float32 ends at 2^128."""

# Bit pattern of LIMIT, of +infinity where nothing reaches it: with the sign bit cleared, what may not be from here on.
_LIMIT_BITS = {"BF16": 0x5380, "F16": 0x7C00, "F32": 0x5380_0000}
_BITS_TYPE: dict[str, type[np.unsignedinteger[Any]]] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}

FLOATS: Final = tuple(_LIMIT_BITS)
READABLE: Final = frozenset((*FLOATS, *BLOCK_TYPES, *DTYPES))


def check_stored(tensor: TensorInfo, expected: SourceTensor) -> None:
    """Raises CheckpointError for a dtype that is not read, or another shape."""
    if tensor.dtype == "F64":
        raise CheckpointError(
            f"{tensor.name}: dtype F64, expected {', '.join(FLOATS)}; load it with transformers, call "
            "model.to(torch.bfloat16) and save_pretrained() it"
        )
    if tensor.dtype not in READABLE:
        raise CheckpointError(
            f"{tensor.name}: dtype {tensor.dtype}, expected {', '.join(FLOATS)}; use the checkpoint before quantisation"
        )
    if tensor.shape != expected.shape:
        raise CheckpointError(
            f"{tensor.name}: shape {list(tensor.shape)}, expected {list(expected.shape)} by config.json; "
            "they belong to different models"
        )


def read_values(file: DirectReader, tensor: TensorInfo, first: int, values: Float32) -> None:
    """Fill `values` (flat) with the tensor's values from number `first` on; both are whole blocks where it has blocks.

    Raises CheckpointError: NaN, infinite or absurd values, or a file that has become shorter.
    """
    if tensor.scales is not None:
        _check(read_packed(file, tensor, first, values), tensor)
        return
    block, block_bytes = TYPES[tensor.dtype].block, TYPES[tensor.dtype].nbytes
    stored = _stored(file, tensor, first // block * block_bytes, values.size // block * block_bytes)
    if tensor.dtype in BLOCK_TYPES:
        dequantize(stored, tensor.dtype, values)
        # NaN is neither below a number nor above one, and the largest and the smallest where there is one.
        is_sound = not values.size or bool(values.max() < LIMIT and values.min() > -LIMIT)
    else:
        is_sound = _read_floats(stored, tensor.dtype, values)
    _check(is_sound, tensor)
    if tensor.shift:
        np.add(values, np.float32(tensor.shift), out=values)


def read_bounds(file: DirectReader, tensor: TensorInfo, values: Float32) -> None:
    """All of a tensor of floats, which may be infinite. Raises CheckpointError: NaN, or the file has become shorter."""
    stored = _stored(file, tensor, 0, values.size * TYPES[tensor.dtype].nbytes)
    if tensor.dtype == "BF16":
        values.view(np.uint32)[:] = np.frombuffer(stored, np.uint16).astype(np.uint32) << 16
    else:
        values[:] = np.frombuffer(stored, np.dtype(f"f{TYPES[tensor.dtype].nbytes}"))
    _check(not np.isnan(values).any(), tensor)


def _stored(file: DirectReader, tensor: TensorInfo, start: int, nbytes: int) -> memoryview:
    stored = file.read(tensor.offset + start, nbytes)
    if len(stored) < nbytes:
        raise CheckpointError(f"{tensor.file}: ends inside {tensor.name}; it was changed while being read")
    return stored


def _check(is_sound: bool, tensor: TensorInfo) -> None:
    if not is_sound:
        raise CheckpointError(
            f"{tensor.name}: holds NaN, Inf or a value above {LIMIT:.0e}, expected weights; the checkpoint is damaged, "
            "get it again"
        )


def _read_floats(stored: memoryview, dtype: str, values: Float32) -> bool:
    """Whether all of them are below LIMIT; `values` is filled only then."""
    bits: NDArray[np.unsignedinteger[Any]] = np.frombuffer(stored, np.dtype(_BITS_TYPE[dtype]))
    # Of the bit patterns, the signed maximum finds positive Inf and NaN, the unsigned one negative: no temporaries.
    limit = _LIMIT_BITS[dtype]
    sign = 1 << (8 * bits.itemsize - 1)
    if bits.size and (bits.view(f"i{bits.itemsize}").max() >= limit or bits.max() >= sign + limit):
        return False
    if dtype == "BF16":  # the upper half of a float32
        upper = values.view(np.uint32)
        upper[:] = bits  # and only then shifted: one call that does both goes through a buffer
        upper <<= 16
    else:
        values[:] = bits.view(f"f{bits.itemsize}")
    return True


def same_values(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two stored tensors hold the same numbers, whatever their dtypes. Raises CheckpointError, OSError."""
    if a.shape != b.shape or not {a.dtype, b.dtype} <= set(FLOATS):
        return False
    step = 1 << 20
    found, other = np.empty(step, np.float32), np.empty(step, np.float32)
    with DirectReader(a.file) as a_file, DirectReader(b.file) as b_file:
        count = math.prod(a.shape)
        for first in range(0, count, step):
            size = min(step, count - first)
            read_values(a_file, a, first, found[:size])
            read_values(b_file, b, first, other[:size])
            if not np.array_equal(found[:size], other[:size]):
                return False
    return True
