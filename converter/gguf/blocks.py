"""How quantized rows are spelled in GGUF's types (ggml-quants.c; gguf-py quants.py).

- Q8_0: for every 32 columns a float16 scale and 32 signed bytes;
- Q4_0: a float16 scale and 16 bytes, of which byte j has column j in its low bits and column j + 16 in its high ones,
  both with 8 added. Integers and scale are those of int4 in blocks of 32, in another order;
- F32, F16, BF16: the numbers.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.gguf.values import TYPES
from gemma_edge.converter.quantize.quantize import Quantized
from gemma_edge.converter.quantize.stored import StoredWeight, Write
from gemma_edge.runtime.formats.encoding import Encoding, EncodingError

BLOCK: Final = 32
TYPE_OF: Final = MappingProxyType(
    {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "int8-b32": "Q8_0", "int4-b32": "Q4_0"}
)
"""GGUF's type by encoding."""

_HALF: Final = BLOCK // 2


def type_of(encoding: Encoding) -> str:
    """Raises EncodingError for an encoding that GGUF does not have."""
    if encoding.name not in TYPE_OF:
        plain = encoding.name.partition("-")[0]
        use = f"{plain} alone, which gets blocks of {BLOCK}" if encoding.bits in (4, 8) else "int4 or int8"
        raise EncodingError(f"GGUF does not store {encoding.name}; use {use}")
    return TYPE_OF[encoding.name]


def stored_bytes(shape: tuple[int, ...], encoding: Encoding) -> int:
    """Bytes of a tensor. Raises EncodingError as type_of does, or for a shape that does not split into blocks."""
    type_of(encoding)
    return encoding.nbytes(shape)  # scales are float16 as well


def spelled(rows: Quantized, encoding: Encoding) -> NDArray[np.uint8]:
    """[n, bytes per row] of rows; of a vector, [1, bytes]."""
    data = rows.data.reshape(-1, rows.data.shape[-1])
    if rows.scales is None:
        return data
    blocks = rows.scales.shape[1]
    scales = np.ascontiguousarray(rows.scales, "<f2").view(np.uint8).reshape(len(data), blocks, 2)
    values = data.reshape(len(data), blocks, -1)
    if encoding.bits == 4:
        signed = values ^ np.uint8(0x88)  # adds 8 to both integers of a byte
        low, high = signed & 0x0F, signed >> 4  # even columns, odd ones
        columns = np.stack([low, high], axis=-1).reshape(len(data), blocks, 2, _HALF)
        values = columns[:, :, 0] | (columns[:, :, 1] << 4)
    return np.concatenate([scales, values], axis=2).reshape(len(data), -1)


@dataclass(frozen=True)
class PlacedTensor:
    """A weight with a place in the file.

    rows: how many are stored. A table of fewer rows than tokens is filled up with its first, which is what the model
    looks up for them; of one with more, the rest stays out.
    """

    weight: StoredWeight
    offset: int
    rows: int

    @property
    def row_bytes(self) -> int:
        """Of a row; of a vector, all."""
        kind = TYPES[type_of(self.weight.encoding)]
        return self.weight.shape[-1] // kind.block * kind.nbytes

    def put(self, row: int, rows: Quantized, write: Write) -> None:
        """Write rows [row, row + n); see Placed."""
        data = spelled(rows, self.weight.encoding)
        if row < self.rows:
            write(np.ascontiguousarray(data[: self.rows - row]), self.offset + row * self.row_bytes)
        stored = self.weight.shape[0]
        if row == 0 and len(self.weight.shape) == 2 and stored < self.rows:
            write(np.repeat(data[:1], self.rows - stored, axis=0), self.offset + stored * self.row_bytes)
