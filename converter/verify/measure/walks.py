"""Two computations of a text side by side, in one pass over the checkpoint: as it is, and with a bundle's weights.

The checkpoint runs over all windows, the bundle's weights over the first tokens of the first one: as no token looks
ahead, the first rows of one are the same tokens as the other. A block of rows of a weight is read once, multiplied,
compared with the bundle's, and multiplied as stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import Hooks
from gemma_edge.converter.evaluate.streaming import StreamingModel, Walk
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.tensors import TensorSpec
from gemma_edge.converter.verify.measure.similarity import Similarity
from gemma_edge.converter.verify.measure.text import Windows

Float32 = NDArray[np.float32]


class Substitute(Protocol):
    """As evaluate.machine.Substitute."""

    def __call__(self, name: str, first: int, rows: Float32) -> Float32: ...


@dataclass(frozen=True)
class Walked:
    """expected: what the head reads in the checkpoint, [N, D]; own: with the bundle's weights, [S, D].

    outputs: of each layer, own against expected. caches: own keys and values [S, K, E] of each layer that has them.
    Where the bundle's weights cannot be read, own and caches are the checkpoint's, and outputs are none.
    """

    expected: Float32
    own: Float32
    layers: Sequence[int]
    outputs: Mapping[int, Similarity]
    caches: Mapping[int, tuple[Float32, Float32]]


@dataclass(frozen=True)
class Walks:
    """stored: gives the bundle's weights; None where they cannot be read. sample: tokens of the first window."""

    source: Checkpoint
    model: StreamingModel
    stored: Substitute | None
    sample: Sequence[int]
    on_bytes: OnBytes

    def body(self, windows: Windows) -> Walked:
        """Up to the head, over [B, T]."""
        expected = self.model.begin(windows, Hooks(on_bytes=self.on_bytes))
        own = None
        if self.stored is not None:
            own = self.model.begin(np.array([self.sample], np.int64), Hooks(weights=self.stored))
        layers = {value: layer for layer, value in self.model.graph.layers.items()}
        cached = {value for cache in self.model.graph.caches.values() for value in (cache.k, cache.v)}
        outputs: dict[int, Similarity] = {}
        kept: dict[ir.Value, Float32] = {}
        while (op := expected.next_op) is not None:
            right, found = self._step(op, expected, own)
            if op.out in layers and own is not None:
                outputs[layers[op.out]] = Similarity.between(right[0, : len(self.sample)], found[0])
            if op.out in cached:
                kept[op.out] = found[0, : len(self.sample)].copy()
        hidden = expected.finish()
        return Walked(
            hidden,
            hidden[: len(self.sample)] if own is None else own.finish(),
            sorted(layers.values()),
            outputs,
            {layer: (kept[cache.k], kept[cache.v]) for layer, cache in self.model.graph.caches.items()},
        )

    def _step(self, op: ir.Op, expected: Walk, own: Walk | None) -> tuple[Float32, Float32]:
        """What an op gives in both, [B, T, ...]; the first for both where there is one only."""
        if own is None:
            _, result = expected.step()
            return result, result
        if not isinstance(op, ir.Linear):
            return expected.step()[1], own.step()[1]
        both = [walk.machine.values[op.x] for walk in (expected, own)]
        flat = [np.ascontiguousarray(x).reshape(-1, x.shape[-1]) for x in both]
        outs = [np.empty((len(x), op.weight.shape[0]), np.float32) for x in flat]
        self._multiply(op.weight, flat, outs)
        right, found = (out.reshape(*x.shape[:-1], -1) for x, out in zip(both, outs, strict=True))
        expected.give(right)
        own.give(found)
        return right, found

    def _multiply(self, weight: TensorSpec, inputs: Sequence[Float32], outs: Sequence[Float32]) -> None:
        """inputs, outs: of the checkpoint and, where there is a second, of the bundle's weights."""
        for first, stored in self.source.rows(weight.source):
            rows = weight.fold(stored, first)
            for x, out in zip(inputs, outs, strict=True):
                used = rows if out is outs[0] else self._own_rows(weight, first, rows)
                np.matmul(x, used.T, out=out[:, first : first + len(rows)])
            self.on_bytes(2 * rows.size)

    def _own_rows(self, weight: TensorSpec, first: int, rows: Float32) -> Float32:
        assert self.stored is not None
        return self.stored(weight.name, first, rows)

    def head(self, walked: Walked, block: int) -> Iterator[tuple[int, Float32, Float32]]:
        """Yield (first row, logits [n, V]) of the checkpoint, and with the first block those of own, [S, V].

        The head is read once for every block; of later ones the third is empty.
        """
        weight = self.model.head.weight
        nothing = np.empty((0, weight.shape[0]), np.float32)
        for start in range(0, len(walked.expected), block):
            inputs = [walked.expected[start : start + block]]
            if start == 0 and self.stored is not None:
                inputs.append(walked.own)
            outs = [np.empty((len(x), weight.shape[0]), np.float32) for x in inputs]
            self._multiply(weight, inputs, outs)
            for out in outs:
                self._finish(out)
            own = outs[-1][: len(self.sample)] if start == 0 else nothing
            yield start, outs[0], own

    def _finish(self, products: Float32) -> None:
        """From the head's products to logits, in place: soft-caps, some rows at a time."""
        for first in range(0, len(products), 16):
            products[first : first + 16] = self.model.logits_of(products[first : first + 16])
