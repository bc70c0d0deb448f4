"""How far a choice of stored weights moves the model's predictions on a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import NO_HOOKS, Hooks, Substitute
from gemma_edge.converter.evaluate.softmax_sums import SoftmaxSums
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.quantize.recipes import Storage
from gemma_edge.converter.quantize.stream import NO_QUANTIZERS, Quantizer
from gemma_edge.converter.tensors import Role

Float32 = NDArray[np.float32]

_TABLE_ROWS = 512
"""Rows of a table that are rounded at once: the evaluator asks for few at a time."""


@dataclass(frozen=True)
class Divergence:
    """Against the checkpoint as it is, over all positions. kl: mean of KL(checkpoint || stored) in nats.

    top1: share of positions with the same most likely token.
    """

    kl: float
    top1: float


@dataclass(frozen=True, eq=False)
class ReferenceText:
    """A text [B, T] and what the head reads of it in the checkpoint as it is, [B * T, D]."""

    model: StreamingModel
    windows: NDArray[np.integer[Any]]
    exact: Float32

    @classmethod
    def of(cls, model: StreamingModel, windows: NDArray[np.integer[Any]], on_bytes: OnBytes | None = None) -> Self:
        """Run the checkpoint once."""
        return cls(model, windows, model.hidden(windows, Hooks(on_bytes=on_bytes)))

    def divergence(self, weights: Substitute, on_bytes: OnBytes | None = None) -> Divergence:
        """Run the model with substitute weights."""
        hooks = Hooks(None, weights, on_bytes)
        [found] = divergences(self.model, self.exact, [(self.model.hidden(self.windows, hooks), hooks)])
        return found


def divergences(
    model: StreamingModel, exact: Float32, found: Sequence[tuple[Float32, Hooks]], on_bytes: OnBytes | None = None
) -> list[Divergence]:
    """Of what the head makes of each of `found`, hidden [N, D] and the hooks it runs with, against `exact` [N, D].

    KL is a sum over the vocabulary, taken stretch by stretch: no row of logits is ever whole, the head is read once.
    on_bytes: `model.head_bytes(1)` in total.
    """
    expected, *others = (SoftmaxSums.of_nothing(len(exact)) for _ in range(1 + len(found)))
    drifts = np.zeros((len(found), len(exact)))  # sum of exp(a) (a - b), for logits a as expected and b as found
    for first, columns in model.logit_columns([(exact, NO_HOOKS), *found], on_bytes):
        logits = next(columns)
        shrunk, weights = expected.add(first, logits)
        drifts *= shrunk
        for i, (other, found_logits) in enumerate(zip(others, columns, strict=True)):
            other.add(first, found_logits)
            drifts[i] += np.einsum("nv,nv->n", weights, logits - found_logits)
    kl = [drift / expected.total + other.log - expected.log for drift, other in zip(drifts, others, strict=True)]
    return [
        Divergence(float(each.mean()), float((other.top == expected.top).mean()))
        for each, other in zip(kl, others, strict=True)
    ]


@dataclass
class RoundedWeights:
    """A Substitute: every weight as it is stored, by a quantizer where `quantizers` has one, else value by value.

    storages: tensors that have none stay as they are.
    """

    checkpoint: Checkpoint
    model: StreamingModel
    storages: Mapping[str, Storage]
    quantizers: Mapping[str, Quantizer] = field(default_factory=lambda: NO_QUANTIZERS)
    _table: tuple[int, Float32] | None = None

    def __call__(self, name: str, first: int, rows: Float32) -> Float32:
        """See evaluate.Substitute."""
        if name not in self.storages:
            return rows
        if name in self.quantizers and self.model.model.tensors[name].role is Role.PLE:
            return np.concatenate([self._table_row(name, row) for row in range(first, first + len(rows))])
        return self._restored(name, first, rows)

    def _table_row(self, name: str, row: int) -> Float32:
        begin = row // _TABLE_ROWS * _TABLE_ROWS
        if self._table is None or self._table[0] != begin:
            spec = self.model.model.tensors[name]
            end = min(begin + _TABLE_ROWS, spec.shape[0])
            parts = [
                spec.fold(rows.copy(), first)
                for first, rows in self.checkpoint.rows(spec.source, start=begin, stop=end)
            ]
            self._table = begin, self._restored(name, begin, np.concatenate(parts))
        restored: Float32 = self._table[1][row - begin][np.newaxis]
        return restored

    def _restored(self, name: str, first: int, rows: Float32) -> Float32:
        storage = self.storages[name]
        if name not in self.quantizers:
            return storage.restored(rows)
        stored = self.quantizers[name](first, rows)
        return storage.encoding.dequantize(stored.data, stored.scales, rows.shape)
