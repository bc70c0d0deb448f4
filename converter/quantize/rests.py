"""A tied embedding in the head's table: what its rows are there, and the three bits that the head's int4 leaves.

Head and embedding are one matrix. The head is multiplied whole for every token and has int4; of the embedding a token
reads one row, in which int4 would cost 0.1 nats (Gemma 3 270M). Three more bits bring that to 0.002, where int8 has
0.0007; two would leave it at 0.007. A head that is calibrated is no such table: its integers have moved by more than a
step, and the error of a row would be 5 % instead of 1.3 %.
"""

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.quantize.quantize import Quantized, error_of
from gemma_edge.runtime.formats.encoding import Encoding, rests_of, with_rests

Float32 = NDArray[np.float32]


def quantize_rests(rows: Float32, head: Quantized, head_encoding: Encoding, encoding: Encoding) -> Quantized:
    """What the head leaves of `rows`, float32 [n, k].

    head_encoding: integers; where they are in blocks, of 4 bits.
    """
    if not encoding.bits:
        restored = head_encoding.dequantize(head.data, head.scales, rows.shape)
        return Quantized(np.empty((len(rows), 0), np.uint8), None, error_of(restored - rows, rows))
    integers, scales = _unpacked(head, head_encoding, rows.shape)
    rests = rests_of(rows / scales, integers)
    return Quantized(encoding.pack(rests), None, error_of(with_rests(integers, rests) * scales - rows, rows))


def dequantize_rests(
    stored: Quantized, head: Quantized, head_encoding: Encoding, encoding: Encoding, shape: tuple[int, ...]
) -> Float32:
    """The embedding's rows, float32 of `shape`."""
    if not encoding.bits:
        return head_encoding.dequantize(head.data, head.scales, shape)
    integers, scales = _unpacked(head, head_encoding, shape)
    return with_rests(integers, encoding.unpack(stored.data.reshape(-1), shape)) * scales


def _unpacked(head: Quantized, encoding: Encoding, shape: tuple[int, ...]) -> tuple[NDArray[np.generic], Float32]:
    """The head's integers and, for each of them, its scale; both of `shape`."""
    assert head.scales is not None
    assert encoding.block
    integers = encoding.unpack(head.data.reshape(-1), shape)
    return integers, np.repeat(head.scales.astype(np.float32), encoding.block, axis=1)
