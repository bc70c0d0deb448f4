"""What a linear layer is given on the calibration text, as far as rounding it needs to know."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

RIDGE: Final = 0.01
"""`Moments.ridge` of tokens without end."""
_CHUNK_TOKENS: Final = 1024


@dataclass(eq=False)
class Moments:
    """gram: mean of x x^T over the inputs x [k] that the layer gets when those before it are rounded.

    found, exact: x, and e, the inputs that the same tokens give in the checkpoint as it is, both [N, k].
    scales: [k], what the inputs are divided by: not yet in `found` and `exact`, but in `gram`.
    ridge: of the mean square input, by which `target` is held to the weights as they are. It grows with the columns per
    token, k / N: on the fixtures, moving weights for fewer than 8 tokens a column did harm without that.
    """

    gram: Float32
    found: Float32
    exact: Float32
    scales: Float32
    ridge: float
    _cross: Float32 | None = None

    @classmethod
    def of(cls, found: Float32, exact: Float32) -> Self:
        """From both kinds of inputs [N, k], row by row of the same tokens; neither is changed."""
        tokens, columns = found.shape
        gram: Float32 = found.T @ found
        gram /= np.float32(tokens)
        return cls(gram, found, exact, np.ones(columns, np.float32), RIDGE + columns / tokens)

    def scale(self, scales: Float32) -> None:
        """Make them those of inputs divided by `scales` [k]; the gram in place."""
        divide_both_ways(self.gram, scales)
        self.scales = self.scales * scales

    def target(self, rows: Float32) -> Float32:
        """The weights [n, k] that bring the outputs for rounded inputs closest to those of `rows` for exact ones.

        It is least squares with a ridge around `rows` (GPTAQ, arXiv 2504.02692, takes the same aim column by column):
        rows + rows D (G + r)^-1, where G is the gram and D the mean of (e - x) x^T.
        """
        ridge = np.float32(self.ridge) * max(self.gram.diagonal().mean(), np.float32(1e-30))
        tokens, columns = self.found.shape
        change = self._by_tokens(rows, ridge) if tokens < columns else self._by_columns(rows, ridge)
        change += rows
        return np.ascontiguousarray(change)

    def move(self) -> Float32:
        """[k, k] such that `target(rows)` is rows @ move: for a matrix that comes in pieces."""
        return self.target(np.eye(len(self.gram), dtype=np.float32))

    def _by_columns(self, rows: Float32, ridge: np.float32) -> Float32:
        """rows D by way of D, [k, k], where that takes less than by way of each token's drift, [n, N]."""
        unscaled: Float32 = rows / self.scales
        if self._cross is None and 2 * len(rows) < len(self.gram):
            drifted: Float32 = np.zeros_like(rows)
            for x, drift in self._chunks():
                drifted += (unscaled @ drift.T) @ x
        else:
            if self._cross is None:
                self._cross = np.zeros_like(self.gram)
                for x, drift in self._chunks():
                    self._cross += drift.T @ x
            drifted = unscaled @ self._cross
        drifted /= self.scales * np.float32(len(self.found))
        diagonal = self.gram.diagonal().copy()
        np.fill_diagonal(self.gram, diagonal + ridge)  # in place: of E2B's widest inputs a copy would be 256 MiB
        change: Float32 = np.linalg.solve(self.gram, drifted.T).T
        np.fill_diagonal(self.gram, diagonal)
        return change

    def _by_tokens(self, rows: Float32, ridge: np.float32) -> Float32:
        """By X (X^T X / N + r)^-1 = (X X^T / N + r)^-1 X, which takes a system of N equations for one of k."""
        tokens = np.float32(len(self.found))
        unscaled = rows / self.scales
        scaled = self.found / self.scales
        likeness = scaled @ scaled.T / tokens
        likeness[np.diag_indices_from(likeness)] += ridge
        drifted = np.concatenate([drift @ unscaled.T for _, drift in self._chunks()]) / tokens  # [N, n]
        change: Float32 = np.linalg.solve(likeness, drifted).T @ scaled
        return change

    def _chunks(self) -> Iterator[tuple[Float32, Float32]]:
        """x and e - x, both without scales."""
        for first in range(0, len(self.found), _CHUNK_TOKENS):
            x = self.found[first : first + _CHUNK_TOKENS]
            yield x, self.exact[first : first + _CHUNK_TOKENS] - x


def divide_both_ways(matrix: Float32, scales: Float32) -> Float32:
    """matrix[i, j] / (scales[i] * scales[j]), in place."""
    matrix /= scales[:, np.newaxis]
    matrix /= scales
    return matrix
