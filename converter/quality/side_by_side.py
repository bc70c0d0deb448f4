"""A text through a model twice, op by op side by side: with the checkpoint's weights, and as a bundle computes.

Every matrix passes once, a block of rows as it is and the same rows as they are stored, and is multiplied with what
each of the two runs has come to. Memory: one layer's activations, twice, and what `Pairs` holds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import NO_HOOKS, Hooks, Substitute
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.quality.figures import Quality, QualitySums
from gemma_edge.converter.tensors import TensorSpec

Float32 = NDArray[np.float32]

Pairs: TypeAlias = Callable[[TensorSpec], Iterator[tuple[int, Float32, Float32]]]
"""(matrix) -> (first row, rows [n, K] as they are, the same as they are stored) of all its rows, in order.

The memory is used again for the next."""


def pairs_of(checkpoint: Checkpoint, weights: Substitute) -> Pairs:
    """Pairs that are read from the checkpoint, and stored on the way."""

    def pairs(spec: TensorSpec) -> Iterator[tuple[int, Float32, Float32]]:
        for first, stored in checkpoint.rows(spec.source):
            rows = spec.fold(stored, first)
            yield first, rows, weights(spec.name, first, rows)

    return pairs


@dataclass(frozen=True)
class Compared:
    """What was found. exact: what the head reads in the checkpoint as it is, [N, D]; other runs may go on from it."""

    quality: Quality
    exact: Float32


@dataclass(frozen=True)
class SideBySide:
    """Two runs. hooks: what the second has in place of the checkpoint's vectors, rows of tables, and inputs.

    on_bytes: `model.body_bytes + model.head_bytes(1)` in total.
    """

    model: StreamingModel
    pairs: Pairs
    hooks: Hooks
    on_bytes: OnBytes

    def compare(self, windows: NDArray[np.integer[Any]]) -> Compared:
        """Over token ids [B, T]. Raises what reading a checkpoint raises."""
        exact, found = (self.model.begin(windows, hooks) for hooks in (NO_HOOKS, self.hooks))
        while (op := exact.next_op) is not None:
            if isinstance(op, ir.Linear):
                inputs = (walk.machine.values[op.x] for walk in (exact, found))
                for walk, result in zip((exact, found), self._multiplied(op, *inputs), strict=True):
                    walk.give(result)
            else:
                exact.step()
                found.step()
        hidden = exact.finish()
        return Compared(self.head(windows, hidden, found.finish()), hidden)

    def head(self, windows: NDArray[np.integer[Any]], exact: Float32, found: Float32) -> Quality:
        """From what the head reads in both runs, [N, D]."""
        sums, spec = QualitySums.of(windows), self.model.head.weight
        found = self._rounded(spec.name, found)
        for first, rows, stored in self.pairs(spec):
            sums.add(first, self.model.logits_of(exact @ rows.T), self.model.logits_of(found @ stored.T))
            self.on_bytes(2 * rows.size)
        return sums.quality()

    def _multiplied(self, op: ir.Linear, exact: Float32, found: Float32) -> tuple[Float32, Float32]:
        """[B, T, ..., K] -> [B, T, ..., M] in both."""
        flat = [np.ascontiguousarray(x).reshape(-1, x.shape[-1]) for x in (exact, found)]
        flat[1] = self._rounded(op.weight.name, flat[1])
        products = [np.empty((len(x), op.weight.shape[0]), np.float32) for x in flat]
        for first, *both in self.pairs(op.weight):
            for x, rows, out in zip(flat, both, products, strict=True):
                np.matmul(x, rows.T, out=out[:, first : first + len(rows)])
            self.on_bytes(2 * both[0].size)
        return products[0].reshape(*exact.shape[:-1], -1), products[1].reshape(*found.shape[:-1], -1)

    def _rounded(self, name: str, x: Float32) -> Float32:
        return x if self.hooks.inputs is None else self.hooks.inputs(name, x)
