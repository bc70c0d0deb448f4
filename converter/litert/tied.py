"""A tied embedding in a bundle: the head's table lies in the embedder's section, and the rests of its rows behind it.

The decoder's section, which is before the embedder's, goes on into that and multiplies by the same bytes. Rests are
what the head's final integers leave, however they were chosen, and are stored with them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.spelling import EMBEDDING
from gemma_edge.converter.litert.file import Opcode, Tensor, TfliteFile, TfliteWeight
from gemma_edge.converter.litert.ops import Subgraph
from gemma_edge.converter.quantize.quantize import QuantError, Quantized
from gemma_edge.converter.quantize.rests import quantize_rests
from gemma_edge.converter.quantize.stored import StoredWeight
from gemma_edge.converter.quantize.stream import Stream
from gemma_edge.converter.tensors import HEAD
from gemma_edge.runtime.formats.encoding import Encoding

_BLOCK_VALUES = 1 << 18  # worked on at a time, in a dozen copies


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
    rests = weights.pop(EMBEDDING, None)
    if rests is None:
        on_bytes(2 * stream.specs[EMBEDDING].values)
        return stream.write(weights.values(), on_bytes)
    beside_head = _Rests(rests, storage.head.encoding, stream, on_bytes)
    errors = replace(stream, look=beside_head.look).write(weights.values(), on_bytes)
    return errors | {EMBEDDING: beside_head.error}


@dataclass(frozen=True)
class _Rests:
    """What stores the rests of the head's rows while these are stored."""

    placed: TfliteWeight
    head: Encoding
    stream: Stream
    on_bytes: Callable[[int], None]
    errors: dict[int, QuantError] = field(default_factory=dict)  # by first row

    def look(self, name: str, begin: int, rows: NDArray[np.float32], stored: Quantized) -> None:
        """See stream.Look."""
        if self.stream.look is not None:
            self.stream.look(name, begin, rows, stored)
        if name != HEAD:
            return
        assert stored.scales is not None
        step = max(1, _BLOCK_VALUES // rows.shape[1])
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            head = Quantized(stored.data[part], stored.scales[part])
            found = quantize_rests(rows[part], head, self.head, self.placed.weight.encoding)
            self.placed.put(begin + first, found, self.stream.put)
            self.errors[begin + first] = found.error
        self.on_bytes(2 * rows.size)

    @property
    def error(self) -> QuantError:
        """Of all rows, added in their order."""
        return sum((self.errors[first] for first in sorted(self.errors)), QuantError())
