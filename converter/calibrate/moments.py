"""What a linear layer is given on the calibration text, as far as rounding it needs to know."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

RIDGE = 0.01
"""`Moments.ridge` of tokens without end."""


@dataclass(frozen=True, eq=False)
class _Summed:
    """The drift of more tokens than there are inputs. cross: mean of (e - x) x^T, [k, k]."""

    cross: Float32

    def divided(self, scales: Float32) -> Self:
        return replace(self, cross=divide_both_ways(self.cross, scales))

    def made_up_for(self, rows: Float32, gram: Float32, ridge: np.float32) -> Float32:
        diagonal = gram.diagonal().copy()
        np.fill_diagonal(gram, diagonal + ridge)  # in place: of E2B's widest inputs a copy would be 256 MiB
        change: Float32 = np.linalg.solve(gram, (rows @ self.cross).T).T
        np.fill_diagonal(gram, diagonal)
        return change


@dataclass(frozen=True, eq=False)
class _Listed:
    """The drift of fewer tokens than there are inputs. found: x, drift: e - x, both [N, k]."""

    found: Float32
    drift: Float32

    def divided(self, scales: Float32) -> Self:
        return replace(self, found=self.found / scales, drift=self.drift / scales)

    def made_up_for(self, rows: Float32, _gram: Float32, ridge: np.float32) -> Float32:
        """By X (X^T X / N + r)^-1 = (X X^T / N + r)^-1 X, which takes a system of N equations for one of k."""
        tokens = np.float32(len(self.found))
        likeness = self.found @ self.found.T / tokens
        likeness[np.diag_indices_from(likeness)] += ridge
        change: Float32 = (rows @ self.drift.T / tokens) @ np.linalg.solve(likeness, self.found)
        return change


@dataclass(eq=False)
class Moments:
    """gram: mean of x x^T over the inputs x [k] that the layer gets when those before it are rounded.

    drift: how far they are from e, the inputs that the same tokens give in the checkpoint as it is.
    ridge: of the mean square input, by which `target` is held to the weights as they are. It grows with the columns per
    token, k / N: on the fixtures, moving weights for fewer than 8 tokens a column did harm without that.
    """

    gram: Float32
    drift: _Summed | _Listed
    ridge: float

    @classmethod
    def of(cls, found: Float32, exact: Float32) -> Self:
        """From both kinds of inputs [N, k], row by row of the same tokens; neither is changed."""
        tokens, columns = found.shape
        gram: Float32 = found.T @ found
        gram /= np.float32(tokens)
        drift: Float32 = exact - found
        ridge = RIDGE + columns / tokens
        if tokens < columns:
            return cls(gram, _Listed(found, drift), ridge)
        cross: Float32 = drift.T @ found
        cross /= np.float32(tokens)
        return cls(gram, _Summed(cross), ridge)

    def scale(self, scales: Float32) -> None:
        """Make them, in place, those of inputs divided by `scales` [k]."""
        divide_both_ways(self.gram, scales)
        self.drift = self.drift.divided(scales)

    def target(self, rows: Float32) -> Float32:
        """The weights [n, k] that bring the outputs for rounded inputs closest to those of `rows` for exact ones.

        It is least squares with a ridge around `rows` (GPTAQ, arXiv 2504.02692, takes the same aim column by column).
        """
        ridge = np.float32(self.ridge) * max(self.gram.diagonal().mean(), np.float32(1e-30))
        change = self.drift.made_up_for(rows, self.gram, ridge)
        change += rows
        return np.ascontiguousarray(change)

    def move(self) -> Float32:
        """[k, k] such that `target(rows)` is rows @ move: for a matrix that comes in pieces."""
        return self.target(np.eye(len(self.gram), dtype=np.float32))


def divide_both_ways(matrix: Float32, scales: Float32) -> Float32:
    """matrix[i, j] / (scales[i] * scales[j]), in place."""
    matrix /= scales[:, np.newaxis]
    matrix /= scales
    return matrix
