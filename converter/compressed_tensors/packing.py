"""How quantized rows are spelled in the format "pack-quantized" (compressed-tensors, compressors/pack_quantized).

Of a matrix X [N, K]: X_packed int32 [N, K * bits / 32], column i of a word in its bits i * bits and up, with
2^(bits - 1) added; X_scale [N, K / group], bfloat16, or float32 [N, 1] where one is for a row; X_shape int64 [2].
Scales of groups are numbers that bfloat16 holds (see quantize._round_block_scales), so they are not rounded.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from gemma_edge.converter.checkpoint.slices.shards import Header
from gemma_edge.converter.quantize.quantize import Quantized
from gemma_edge.converter.quantize.stored import StoredWeight, Write
from gemma_edge.runtime.formats.encoding import Encoding

_SIGN_BITS: Final = {4: 0x88, 8: 0x80}  # flipping them adds 2^(bits - 1) to every value of a byte
_DTYPES: Final = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
_BF16: Final = Encoding("float", 16, brain=True)


def headers(name: str, shape: tuple[int, ...], encoding: Encoding) -> dict[str, Header]:
    """What is stored of the tensor `name`, by name."""
    if encoding.kind == "float":
        return {name: Header(_DTYPES[encoding.name], shape)}
    rows, columns = shape
    scale = Header("BF16", (rows, columns // encoding.block)) if encoding.block else Header("F32", (rows, 1))
    return {
        f"{name}_packed": Header("I32", (rows, columns * encoding.bits // 32)),
        f"{name}_scale": scale,
        f"{name}_shape": Header("I64", (2,)),
    }


@dataclass(frozen=True)
class PlacedWeight:
    """A weight with a place in a file. scale_offset: of scales, 0 of floats."""

    weight: StoredWeight
    offset: int
    scale_offset: int = 0

    def put(self, row: int, rows: Quantized, write: Write) -> None:
        """Write rows [row, row + n); see Placed."""
        encoding = self.weight.encoding
        if rows.scales is None:
            write(rows.data, self.offset + row * self.weight.row_bytes)
            return
        write(rows.data ^ np.uint8(_SIGN_BITS[encoding.bits]), self.offset + row * self.weight.row_bytes)
        scales = rows.scales.reshape(len(rows.data), -1).astype(np.float32)
        stored = _BF16.pack(scales) if encoding.block else np.ascontiguousarray(scales, "<f4").view(np.uint8)
        row_bytes = stored.nbytes // len(rows.data)
        write(stored, self.scale_offset + row * row_bytes)
