"""A tied embedding in a bundle: the head's table lies in the embedder's section, and the rests of its rows behind it.

The decoder's section, which is before the embedder's, goes on into that and multiplies by the same bytes. The head is
stored first; rests are what its final integers leave, however they were chosen.
"""

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.spelling import EMBEDDING
from gemma_edge.converter.litert.file import Opcode, Tensor, TfliteFile, TfliteWeight
from gemma_edge.converter.litert.ops import Subgraph
from gemma_edge.converter.quantize.quantize import QuantError, Quantized
from gemma_edge.converter.quantize.rests import quantize_rests
from gemma_edge.converter.quantize.stored import StoredWeight
from gemma_edge.converter.quantize.stream import CHUNK_BYTES, Stream
from gemma_edge.converter.tensors import HEAD


def with_rests(sub: Subgraph, integers: Tensor, ids: Tensor, rests: StoredWeight) -> Tensor:
    """[n, N] -> [n, N] for ids [n]: as `with_rests` of runtime/formats/encoding.py, and to the same bit."""
    number, quarter = sub.constant, integers.shape[-1] // 4
    nibbles = sub.nibbles(rests, ids)  # [n, 3 N / 4]
    top = sub.unary(Opcode.FLOOR, sub.mul(nibbles, number(1 / 8)))  # the highest bit less 1
    low = sub.sub(nibbles, sub.mul(top, number(8.0)))
    bits = [sub.mul(sub.slice(top, -1, part * quarter, quarter), number(2.0**part)) for part in range(3)]
    last = sub.add(sub.add(sub.add(bits[0], bits[1]), bits[2]), number(7.0))
    found = sub.concat([low, last], -1)
    outside = sub.sub(integers, sub.maximum(sub.minimum(integers, number(6.0)), number(-6.0)))
    middle = sub.add(integers, sub.mul(outside, number(0.5)))
    eighth = sub.mul(sub.add(sub.mul(outside, outside), number(1.0)), number(1 / 8))
    return sub.add(middle, sub.mul(sub.sub(found, number(3.5)), eighth))


def write_weights(file: TfliteFile, stream: Stream, on_bytes: Callable[[int], None]) -> dict[str, QuantError]:
    """Every weight of a section; see Stream.write."""
    weights = {placed.weight.name: placed for placed in file.own_weights}
    storage, head = stream.storages[EMBEDDING], weights.get(HEAD)
    if storage.head is None or head is None:
        return stream.write(weights.values(), on_bytes)
    rests, encoding = weights.pop(EMBEDDING, None), storage.head.encoding
    errors = stream.write(weights.values(), on_bytes)
    if rests is None:
        on_bytes(2 * stream.specs[EMBEDDING].values)
        return errors

    def quantize(first: int, rows: NDArray[np.float32]) -> Quantized:
        return quantize_rests(rows, _stored(head, stream, first, len(rows)), encoding, storage.encoding)

    by_rows = replace(stream, quantizers={EMBEDDING: quantize}, rounded_bytes=CHUNK_BYTES // 4)  # a dozen copies
    return errors | by_rows.write([rests], on_bytes)


def _stored(placed: TfliteWeight, stream: Stream, first: int, count: int) -> Quantized:
    """Rows of blocks, as they lie in the file."""
    encoding, columns = placed.weight.encoding, placed.weight.shape[1]
    shape = count, columns

    def read(offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Of the same bytes in every row."""
        data = os.pread(stream.file.fileno(), nbytes * count, stream.begin + offset + first * nbytes)
        return np.frombuffer(data, np.uint8).reshape(count, nbytes)

    data = read(placed.data_offset, placed.weight.row_bytes)
    scales = read(placed.scale_offset, encoding.scale_bytes((1, columns)))
    return Quantized(data, scales.reshape(-1).view(encoding.scale_dtype).reshape(encoding.scale_shape(shape)))
