"""Softmax over a vocabulary that comes stretch by stretch: no row of logits is ever whole."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass
class SoftmaxSums:
    """The largest logit of each row so far, which it is, and the sum of exp(logit - largest), all [N].

    Milakov and Gimelshein, arXiv 1805.02867.
    """

    largest: NDArray[np.float32]
    top: NDArray[np.intp]
    total: NDArray[np.float64]

    @classmethod
    def of_nothing(cls, rows: int) -> Self:
        return cls(np.full(rows, -np.inf, np.float32), np.zeros(rows, np.intp), np.zeros(rows))

    def add(self, first: int, logits: Float32) -> tuple[Float32, Float32]:
        """Of logits [N, n] from token `first` on. Returns what earlier sums shrink by, and exp(logit - largest)."""
        best = logits.argmax(-1)
        value = logits[np.arange(len(logits)), best]
        self.top = np.where(value > self.largest, first + best, self.top)
        largest = np.maximum(value, self.largest)
        shrunk = np.exp(self.largest - largest)
        weights: Float32 = np.exp(logits - largest[:, np.newaxis])
        self.total = self.total * shrunk + weights.sum(-1, dtype=np.float64)
        self.largest = largest
        return shrunk, weights

    @property
    def log(self) -> NDArray[np.float64]:
        """The logarithm of the sum of exp(logit)."""
        log: NDArray[np.float64] = np.log(self.total) + self.largest.astype(np.float64)
        return log
