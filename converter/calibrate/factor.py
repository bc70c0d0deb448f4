"""The inputs of a linear layer as one factorization, which serves both to move its weights and to round them.

A gram H = mean of x x^T over inputs x [k] is damped, so that what a text does not show is not free to change, and then
factored as U diag(pivots) U^T with U upper triangular and ones on its diagonal. Pivot j is the mean square of what is
left of input j when all inputs before it have done their best to replace it.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.evaluate.products import product

Float32 = NDArray[np.float32]

DAMPING: Final = 0.01
"""Of the mean square input, added to every column's, for inputs of tokens without end."""
_SOLVED: Final = 256
"""Equations that are solved at a time; all others follow by matrix products."""


class GramError(ValueError):
    """A gram that has no Cholesky factor however much it is damped: not a mean of x x^T."""


@dataclass(frozen=True, eq=False)
class Factor:
    """order: [k], groups of columns by falling mean square input, and columns so within each group.

    The first column has the most later ones to make up for its error. gram: [k, k], damped and in that order.
    upper: U, [k, k]. pivots: [k].
    """

    order: NDArray[np.intp]
    gram: Float32
    upper: Float32
    pivots: Float32

    @classmethod
    def of(cls, gram: Float32, width: int = 0, damping: float = DAMPING) -> Self:
        """From the mean of x x^T; `gram` is left as it is, and gone if nobody else has it. width: of a group; 0: k."""
        power = gram.diagonal().copy()
        order = _order(power, width or len(power))
        damped = gram[np.ix_(order, order)]
        del gram
        mean = float(power.mean(dtype=np.float64)) or 1.0  # a layer that was never given anything but zeros
        for factor in (1, 10, 100):
            np.fill_diagonal(damped, power[order] + np.float32(factor * damping * mean))
            try:
                upper = _upper(damped)
            except np.linalg.LinAlgError:
                continue
            diagonal = upper.diagonal().copy()
            upper /= diagonal
            return cls(order, damped, upper, np.square(diagonal))
        raise GramError("the gram has no Cholesky factor")

    def solve(self, values: Float32) -> Float32:
        """gram^-1 @ values, in place; [k, n], in `order`."""
        k = len(values)
        spans = [(first, min(first + _SOLVED, k)) for first in range(0, k, _SOLVED)]
        inverses = [np.linalg.inv(self.upper[first:last, first:last]) for first, last in spans]
        for (first, last), inverse in zip(reversed(spans), reversed(inverses), strict=True):
            part = values[first:last]
            part -= product(self.upper[first:last, last:], values[last:])
            part[...] = product(inverse, part)
        values /= self.pivots[:, np.newaxis]
        for (first, last), inverse in zip(spans, inverses, strict=True):
            part = values[first:last]
            part -= product(self.upper[:first, first:last].T, values[:first])
            part[...] = product(inverse.T, part)
        return values


def _upper(matrix: Float32) -> Float32:
    """U, upper triangular, with `matrix` = U U^T. Raises LinAlgError where there is none.

    Not np.linalg.cholesky of all of it, which works in float64: eight times the matrix, and four times as long.
    """
    upper = matrix.copy()
    k = len(upper)
    for first in reversed(range(0, k, _SOLVED)):
        last = min(first + _SOLVED, k)
        panel = upper[:last, first:last]
        if last < k:
            panel -= product(upper[:last, last:], upper[first:last, last:].T)
        # The lower factor of a block that is turned end to end, turned back.
        block = np.linalg.cholesky(panel[first:][::-1, ::-1])[::-1, ::-1]
        panel[first:] = block
        panel[:first] = product(panel[:first], np.linalg.inv(block).astype(np.float32).T)
        upper[last:, first:last] = 0
    return upper


def _order(power: Float32, width: int) -> NDArray[np.intp]:
    groups = power.reshape(-1, width)
    within = np.argsort(-groups, axis=1, kind="stable")
    columns = within + width * np.arange(len(groups))[:, np.newaxis]
    return columns[np.argsort(-groups.sum(axis=1, dtype=np.float64), kind="stable")].reshape(-1)
