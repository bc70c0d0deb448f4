"""How far a choice of stored weights moves the model's predictions on a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint import Checkpoint
from gemma_edge.converter.evaluate import Hooks, StreamingModel, Substitute
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.recipes import Storage
from gemma_edge.converter.stream import NO_ROUNDS, Round
from gemma_edge.converter.tensors import Role

Float32 = NDArray[np.float32]

_TABLE_ROWS = 512
"""Rows of a table that are rounded at once: the evaluator asks for one at a time."""


@dataclass(frozen=True)
class Divergence:
    """Against the checkpoint as it is, over all positions. kl: mean of KL(checkpoint || stored) in nats.

    top1: share of positions with the same most likely token.
    """

    kl: float
    top1: float


@dataclass(frozen=True, eq=False)
class Yardstick:
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

    In blocks of rows, so that logits of `exact` are worked out once, and those of two runs are in memory.
    """
    sums = np.zeros((len(found), 2))
    runs = [model.logits(hidden, hooks) for hidden, hooks in found]
    for _, logits in model.logits(exact, Hooks(on_bytes=on_bytes)):
        top, expected = logits.argmax(-1), _log_probabilities(logits)
        weights = np.exp(expected)
        for i, run in enumerate(runs):
            _, change = next(run)
            same = change.argmax(-1) == top
            np.subtract(expected, _log_probabilities(change), out=change)
            change *= weights
            sums[i] += change.sum(dtype=np.float64), same.sum()
    return [Divergence(float(kl), float(same)) for kl, same in sums / len(exact)]


def _log_probabilities(logits: Float32) -> Float32:
    """Of logits [n, V], in place."""
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits


@dataclass
class StoredWeights:
    """A Substitute: every weight as it is after storing, by `rounds` where they have the tensor, else value by value.

    storages: tensors that have none stay as they are.
    """

    checkpoint: Checkpoint
    model: StreamingModel
    storages: Mapping[str, Storage]
    rounds: Mapping[str, Round] = field(default_factory=lambda: NO_ROUNDS)
    _table: tuple[int, Float32] | None = None

    def __call__(self, name: str, first: int, rows: Float32) -> Float32:
        """See evaluate.Substitute."""
        if name not in self.storages:
            return rows
        if name in self.rounds and self.model.model.tensors[name].role is Role.PLE:
            return self._table_row(name, first)
        return self._restored(name, first, rows)

    def _table_row(self, name: str, row: int) -> Float32:
        begin = row // _TABLE_ROWS * _TABLE_ROWS
        if self._table is None or self._table[0] != begin:
            spec = self.model.model.tensors[name]
            end = min(begin + _TABLE_ROWS, spec.shape[0])
            parts = [spec.fold(rows.copy()) for _, rows in self.checkpoint.rows(spec.source, start=begin, stop=end)]
            self._table = begin, self._restored(name, begin, np.concatenate(parts))
        restored: Float32 = self._table[1][row - begin][np.newaxis]
        return restored

    def _restored(self, name: str, first: int, rows: Float32) -> Float32:
        storage = self.storages[name]
        stored = self.rounds[name](first, rows) if name in self.rounds else storage.store(rows)
        return storage.encoding.dequantize(stored.data, stored.scales, rows.shape)
