"""Where the weights of an .onnx file lie: external data files, laid out before a byte is known.

ONNX Runtime's kernels want integers unsigned with an implied zero point in the middle, and float32 scales, one for
every `block` columns of a row:

- MatMulNBits: B uint8 [N, K / block, block * bits / 8], scales float32 [N, K / block];
- tables by row, spelled in file.py: data uint8 [V, N * bits / 8], scales float32 [V, N / block].

Both put column 0 in the lowest bits, as Encoding does, so stored bytes differ from TFLite's by one bit flip per value.
An encoding with one scale per row is spelled with blocks that all carry the row's scale: the weights stay the same.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.onnx.blocks import scale_block, scale_bytes
from gemma_edge.converter.quantize.quantize import Quantized
from gemma_edge.converter.quantize.stored import StoredWeight, Write
from gemma_edge.runtime.formats.encoding import Encoding

ALIGNMENT = 4096  # bytes; what is mapped begins on a page
LARGEST_FILE_BYTES = 2_000_000_000  # a browser reads each file into one ArrayBuffer
SIGN_BITS = {2: 0xAA, 4: 0x88, 8: 0x80}  # flipping them adds 2^(bits - 1) to every value of a byte


def values_of_bytes(bits: int) -> NDArray[np.float32]:
    """[256, 8 / bits]: what each stored byte holds, without its scale."""
    signed = np.arange(256, dtype=np.uint8) ^ np.uint8(SIGN_BITS[bits])
    return Encoding("int", bits).unpack(signed, (256, 8 // bits)).astype(np.float32)


@dataclass(frozen=True)
class PlacedWeight:
    """One weight's tensors in one data file.

    block: columns per stored scale, 0 for floats. data_offset, scale_offset: bytes from the start of `file`.
    """

    weight: StoredWeight
    block: int
    file: str
    data_offset: int
    scale_offset: int

    @property
    def blocks(self) -> int:
        """Scales per row."""
        return self.weight.shape[1] // self.block

    def put(self, row: int, rows: Quantized, write: Write) -> None:
        """Write rows [row, row + n); see Placed."""
        encoding = self.weight.encoding
        data = rows.data
        if rows.scales is not None:
            data = data ^ np.uint8(SIGN_BITS[encoding.bits])
            scales = rows.scales.astype("<f4")
            if not encoding.block:
                scales = np.repeat(scales, self.blocks)
            write(scales, self.scale_offset + row * self.blocks * scales.itemsize)
        write(data, self.data_offset + row * self.weight.row_bytes)


@dataclass
class DataFiles:
    """The data files of one .onnx file, filled one after another: MODEL.onnx_data, MODEL.onnx_data_1 and so on."""

    model_file: str  # "model_q4.onnx"
    sizes: dict[str, int] = field(default_factory=dict)  # bytes by file name

    def place(self, weight: StoredWeight, is_table: bool) -> PlacedWeight:
        """The next free place. A weight never straddles files; one larger than a file gets its own."""
        block = scale_block(weight.shape, weight.encoding, is_table)
        data_bytes, scales = weight.encoding.data_bytes(weight.shape), scale_bytes(weight.shape, block)
        begin = 0
        if self.sizes:
            file = next(reversed(self.sizes))
            begin = _aligned(self.sizes[file])
        if not self.sizes or (begin and begin + data_bytes + scales > LARGEST_FILE_BYTES):
            file, begin = self._next_file(), 0
        scale_offset = _aligned(begin + data_bytes)
        self.sizes[file] = scale_offset + scales if scales else begin + data_bytes
        return PlacedWeight(weight, block, file, begin, scale_offset)

    def _next_file(self) -> str:
        return f"{self.model_file}_data" + (f"_{len(self.sizes)}" if self.sizes else "")


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
