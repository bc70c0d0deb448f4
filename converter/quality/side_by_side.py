"""A text through a model twice, op by op side by side: with the checkpoint's weights, and as a bundle computes.

Every matrix passes once, a block of rows as it is and the same rows as they are stored, and is multiplied with what
each of the two runs has come to, by a thread for each. Memory: one layer's activations, twice, and what `Pairs` holds.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import NO_HOOKS, Hooks, Substitute
from gemma_edge.converter.evaluate.products import one_thread_each
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.quality.figures import Quality, QualitySums
from gemma_edge.converter.tensors import TensorSpec

Float32 = NDArray[np.float32]
_T = TypeVar("_T")

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
        with _two_threads() as both:
            exact, found = both(*(partial(self.model.begin, windows, hooks) for hooks in (NO_HOOKS, self.hooks)))
            while (op := exact.next_op) is not None:
                if isinstance(op, ir.Linear):
                    x, x_found = exact.machine.values[op.x], found.machine.values[op.x]
                    product, product_found = self._multiplied(op, x, x_found, both)
                    exact.give(product)
                    found.give(product_found)
                else:
                    both(exact.step, found.step)
            hidden = exact.finish()
            return Compared(self._head(windows, hidden, found.finish(), both), hidden)

    def head(self, windows: NDArray[np.integer[Any]], exact: Float32, found: Float32) -> Quality:
        """From what the head reads in both runs, [N, D]."""
        with _two_threads() as both:
            return self._head(windows, exact, found, both)

    def _head(self, windows: NDArray[np.integer[Any]], exact: Float32, found: Float32, both: "_Both") -> Quality:
        sums, spec = QualitySums.of(windows), self.model.head.weight
        found = self._rounded(spec.name, found)

        def logits(x: Float32, rows: Float32) -> Float32:
            return self.model.logits_of(x @ rows.T)

        for first, rows, stored in self.pairs(spec):
            sums.add(first, *both(partial(logits, exact, rows), partial(logits, found, stored)))
            self.on_bytes(2 * rows.size)
        return sums.quality()

    def _multiplied(self, op: ir.Linear, exact: Float32, found: Float32, both: "_Both") -> tuple[Float32, Float32]:
        """[B, T, ..., K] -> [B, T, ..., M] in both."""
        flat = [np.ascontiguousarray(x).reshape(-1, x.shape[-1]) for x in (exact, found)]
        flat[1] = self._rounded(op.weight.name, flat[1])
        products = [np.empty((len(x), op.weight.shape[0]), np.float32) for x in flat]
        for first, *pair in self.pairs(op.weight):
            both(
                *(
                    partial(np.matmul, x, rows.T, out=out[:, first : first + len(rows)])
                    for x, rows, out in zip(flat, pair, products, strict=True)
                )
            )
            self.on_bytes(2 * pair[0].size)
        return products[0].reshape(*exact.shape[:-1], -1), products[1].reshape(*found.shape[:-1], -1)

    def _rounded(self, name: str, x: Float32) -> Float32:
        return x if self.hooks.inputs is None else self.hooks.inputs(name, x)


class _Both(Protocol):
    """Runs two functions at the same time and gives what they return. Raises what one of them raises."""

    def __call__(self, first: Callable[[], _T], second: Callable[[], _T], /) -> tuple[_T, _T]: ...


@contextmanager
def _two_threads() -> Iterator[_Both]:
    """Without threads of BLAS, which wait in loops: 256 tokens through E2B took twice the processor time with them."""
    with one_thread_each(), ThreadPoolExecutor(1, thread_name_prefix="measure-stored") as other:

        def both(first: Callable[[], _T], second: Callable[[], _T]) -> tuple[_T, _T]:
            later = other.submit(copy_context().run, second)  # with np.errstate as it is here
            return first(), later.result()

        yield both
