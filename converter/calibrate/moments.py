"""What a linear layer is given on the calibration text, as far as rounding it needs to know."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.factor import DAMPING, Factor
from gemma_edge.converter.evaluate.products import gram, product

Float32 = NDArray[np.float32]

_CHUNK_TOKENS: Final = 1024
_GRAM_TOKENS: Final = 4096


@dataclass(eq=False)
class Moments:
    """gram: weighted mean of x x^T over the inputs x [k] that the layer gets when those before it are rounded.

    found, exact: x, and e, the inputs that the same tokens give in the checkpoint as it is, both [N, k].
    weights: [N, 1], such that all tokens count alike, however large their inputs are: what follows is a norm. Without
    that, the first token of each window would count for hundreds of others, as its inputs are so much larger.
    """

    gram: Float32
    found: Float32
    exact: Float32
    weights: Float32
    _cross: Float32 | None = None

    @classmethod
    def of(cls, found: Float32, exact: Float32) -> Self:
        """From both kinds of inputs [N, k], row by row of the same tokens; neither is changed."""
        columns = found.shape[1]
        moments = cls(np.zeros((columns, columns), np.float32), found, exact, _weights(exact))
        for part in moments._parts(_GRAM_TOKENS):
            x = found[part] * np.sqrt(moments.weights[part])
            moments.gram += gram(x)
        return moments

    @property
    def damping(self) -> float:
        """What a factor of the gram should be damped with. It grows with the columns per token, k / N.

        On the fixtures, moving weights for fewer than 8 tokens a column did harm without that.
        """
        tokens, columns = self.found.shape
        return DAMPING + float(columns / tokens)

    def taken_gram(self) -> Float32:
        """Given away, so that a factor takes its place in memory."""
        gram, self.gram = self.gram, np.empty((0, 0), np.float32)
        return gram

    def drift(self, rows: Float32) -> Float32:
        """rows D, [n, k], where D is the weighted mean of (e - x) x^T.

        The weights that bring the outputs for rounded inputs closest to those of `rows` for exact ones are
        rows + rows D (G + r)^-1, where G + r is the damped gram: least squares with a ridge around `rows` (GPTAQ,
        arXiv 2504.02692, takes the same aim column by column).
        """
        columns = self.found.shape[1]
        if self._cross is None and 2 * len(rows) < columns:  # less work by way of each token's drift, [n, N]
            drifted: Float32 = np.zeros_like(rows)
            for x, change in self._chunks():
                drifted += product(product(rows, change.T), x)
        else:
            if self._cross is None:
                self._cross = np.zeros((columns, columns), np.float32)
                for x, change in self._chunks():
                    self._cross += product(change.T, x)
            drifted = product(rows, self._cross)
        return drifted

    def _chunks(self) -> Iterator[tuple[Float32, Float32]]:
        """x and weighted e - x."""
        for part in self._parts(_CHUNK_TOKENS):
            x = self.found[part]
            change = self.exact[part] - x
            change *= self.weights[part]
            yield x, change

    def _parts(self, tokens: int) -> Iterator[slice]:
        return (slice(first, first + tokens) for first in range(0, len(self.found), tokens))


def _weights(inputs: Float32) -> Float32:
    """[N, 1], of sum 1 over tokens and their mean square inputs: large inputs weigh less, small ones hardly more."""
    squares = np.einsum("nk,nk->n", inputs, inputs)[:, np.newaxis] / np.float32(inputs.shape[1])
    weights: Float32 = 1 / (squares + max(squares.mean(), np.float32(1e-30)))
    weights /= weights.sum()
    return weights


def moved(rows: Float32, moments: Moments, factor: Factor) -> Float32:
    """The weights of `Moments.drift` for `rows` [n, k]: [k, n], with columns in the order of `factor`."""
    change = factor.solve(np.ascontiguousarray(moments.drift(rows).T[factor.order]))
    change += rows.T[factor.order]
    return change
