"""From a stored tensor's bytes to float32, whatever the file: 16- and 32-bit floats, and the blocks of GGUF."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.gguf.values import BLOCK_TYPES, TYPES, dequantize
from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError, TensorInfo
from gemma_edge.runtime.formats.direct import DirectReader

Float32 = NDArray[np.float32]

# Bit pattern of +infinity: with the sign bit cleared, everything from here on is Inf or NaN.
_INFINITY_BITS = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F80_0000}
_BITS_TYPE: dict[str, type[np.unsignedinteger[Any]]] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}

FLOATS: Final = tuple(_INFINITY_BITS)
READABLE: Final = frozenset((*FLOATS, *BLOCK_TYPES))


def read_values(file: DirectReader, tensor: TensorInfo, first: int, values: Float32) -> None:
    """Fill `values` (flat) with the tensor's values from number `first` on; both are whole blocks where it has blocks.

    Raises CheckpointError: NaN or Inf values, or a file that has become shorter.
    """
    block, block_bytes = TYPES[tensor.dtype].block, TYPES[tensor.dtype].nbytes
    wanted = values.size // block * block_bytes
    stored = file.read(tensor.offset + first // block * block_bytes, wanted)
    if len(stored) < wanted:
        raise CheckpointError(f"{tensor.file}: ends inside {tensor.name}; it was changed while being read")
    if tensor.dtype in BLOCK_TYPES:
        dequantize(stored, tensor.dtype, values)
        # Of finite numbers the largest and the smallest are finite, and either is NaN where one is: no temporaries.
        is_finite = not values.size or bool(np.isfinite(values.max()) and np.isfinite(values.min()))
    else:
        is_finite = _read_floats(stored, tensor.dtype, values)
    if not is_finite:
        raise CheckpointError(f"{tensor.name}: holds NaN or Inf, expected finite values; the checkpoint is damaged")
    if tensor.shift:
        np.add(values, np.float32(tensor.shift), out=values)


def _read_floats(stored: memoryview, dtype: str, values: Float32) -> bool:
    """Whether all of them are finite; `values` is filled only then."""
    bits: NDArray[np.unsignedinteger[Any]] = np.frombuffer(stored, np.dtype(_BITS_TYPE[dtype]))
    # Of the bit patterns, the signed maximum finds positive Inf and NaN, the unsigned one negative: no temporaries.
    infinity = _INFINITY_BITS[dtype]
    sign = 1 << (8 * bits.itemsize - 1)
    if bits.size and (bits.view(f"i{bits.itemsize}").max() >= infinity or bits.max() >= sign + infinity):
        return False
    if dtype == "BF16":  # the upper half of a float32
        np.left_shift(bits, 16, out=values.view(np.uint32), dtype=np.uint32)
    else:
        values[:] = bits.view(f"f{bits.itemsize}")
    return True
