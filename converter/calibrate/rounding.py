"""Rounding a matrix so that its products change least, given the inputs that it really multiplies.

With gram H = mean of x x^T over calibration inputs x, storing w as v changes the output by e = w - v with the mean
square e H e^T. Four steps, each for all rows at once, none of which can be undone by the next:

1. scales by the search that takes each column's mean square input into account;
2. integers one column after another, each with the error of those before it taken into account: GPTQ
   (arXiv 2210.17323) in the form of LDLQ (arXiv 2307.13304), which needs one Cholesky factor and no inverse;
3. scales once more: the best ones for these integers have a closed form;
4. integers once more, each the best one given all others (coordinate descent, as arXiv 2309.01885).

Arrays lie transposed here, [k, n]: a column of the matrix is one stretch of memory.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.quantize import Quantized, error_of, storable_scales
from gemma_edge.runtime.formats.encoding import Encoding

Float32 = NDArray[np.float32]

DAMPING = 0.01
"""Of the mean square input, added to every column's: what the calibration text does not show is not free to change."""
_BLOCK = 128
"""Columns that are worked on one by one before their effect on all later ones is one matrix product."""
_RATIOS = tuple(np.float32(ratio / 20) for ratio in range(20, 9, -1))
"""Clips over a group's largest value that step 1 tries: 1, 0.95, ... 0.5."""
SWEEPS = 2
"""How often steps 3 and 4 are taken."""
_TINY = np.float32(1e-30)


class GramError(ValueError):
    """A gram that has no Cholesky factor however much it is damped: not a mean of x x^T."""


@dataclass(frozen=True, eq=False)
class Rounder:
    """The inputs of one linear layer, prepared for rounding any number of its rows.

    order: [k], columns by falling mean square input; the first has the most later ones to make up for its error.
    gram: [k, k], damped and in that order. feedback: [k, k], column j: how errors of earlier columns move column j.
    """

    encoding: Encoding
    order: NDArray[np.intp]
    gram: Float32
    feedback: Float32

    @classmethod
    def of(cls, gram: Float32, encoding: Encoding) -> Self:
        """From the mean of x x^T over inputs x [k]; `gram` is left as it is, and gone if nobody else has it."""
        power = gram.diagonal().copy()
        order = np.argsort(-power, kind="stable")
        damped = gram[np.ix_(order, order)]
        del gram
        mean = float(power.mean(dtype=np.float64)) or 1.0  # a layer that was never given anything but zeros
        for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
            np.fill_diagonal(damped, power[order] + np.float32(damping * mean))
            try:
                # damped = R R^T with R upper triangular: the lower factor of the matrix turned end to end.
                upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
            except np.linalg.LinAlgError:
                continue
            upper /= upper.diagonal().copy()
            return cls(encoding, order, damped, upper)
        raise GramError("the gram has no Cholesky factor")

    def round(self, rows: Float32) -> Quantized:
        """Stores `rows` [n, k]. Raises QuantizeError for values that the encoding cannot hold."""
        return self._rounded(rows).stored()

    def cost(self, rows: Float32) -> float:
        """How much storing `rows` changes the outputs: the mean square, summed over rows."""
        state = self._rounded(rows)
        return float(np.einsum("kn,kn->n", state.errors, state.slope).sum(dtype=np.float64))

    def _rounded(self, rows: Float32) -> "Rows":
        state = Rows.of(rows, self)
        state.choose_integers()
        for _ in range(SWEEPS):
            state.fit_scales()
            state.improve_integers()
        return state


@dataclass(eq=False)
class Rows:
    """Rows on their way. All [k, n] and in the rounder's order of columns, but scales and columns.

    values: what is to be stored. integers: as float32. errors: values - integers * scales.
    scales: [groups, n]. columns: by group, where its columns are.
    slope, pull: gram @ errors and gram @ values, kept up to date as each takes as long as a sweep does.
    """

    rounder: Rounder
    values: Float32
    integers: Float32
    errors: Float32
    slope: Float32
    pull: Float32
    scales: Float32
    columns: list[NDArray[np.intp]]

    @classmethod
    def of(cls, rows: Float32, rounder: Rounder, scales: Float32 | None = None) -> Self:
        """`rows` [n, k] without integers yet; scales are searched for where none are given."""
        encoding, order = rounder.encoding, rounder.order
        encoding.check(rows.shape)
        k = rows.shape[1]
        width = encoding.block or k
        position = np.argsort(order)
        columns = [position[first : first + width] for first in range(0, k, width)]
        values = np.ascontiguousarray(rows.T[order])
        if scales is None:
            power = rounder.gram.diagonal()
            scales = np.stack([_search(values[where], power[where], encoding) for where in columns])
        pull = rounder.gram @ values
        return cls(rounder, values, np.zeros_like(values), values.copy(), pull.copy(), pull, scales, columns)

    def choose_integers(self) -> None:
        """Step 2: a column's integers are those of its values after the feedback of the errors of all earlier ones."""
        feedback, scale_of = self.rounder.feedback, self._scale_of
        for first in range(0, len(self.values), _BLOCK):
            last = min(first + _BLOCK, len(self.values))
            wanted = self.values[first:last] + feedback[:first, first:last].T @ self.errors[:first]
            within = np.ascontiguousarray(feedback[first:last, first:last].T)
            for j in range(first, last):
                wanted_j = wanted[j - first] + within[j - first, : j - first] @ self.errors[first:j]
                self._store(j, wanted_j, scale_of[j])
        self.slope = self.rounder.gram @ self.errors

    def scale_terms(self) -> tuple[Float32, Float32]:
        """How fast the cost falls along each scale, and how fast that slows down: their quotient is the best change.

        Both [groups, n], each group taken as if it were the only one.
        """
        if len(self.columns) == 1:  # the gram @ (integers * scales) is pull - slope
            falls = np.einsum("kn,kn->n", self.integers, self.slope)[np.newaxis]
            return falls, np.einsum("kn,kn->n", self.integers, self.pull - self.slope) / self.scales
        terms = np.empty((2, *self.scales.shape), np.float32)
        for group, where in enumerate(self.columns):
            gram, integers = self.rounder.gram[np.ix_(where, where)], self.integers[where]
            np.einsum("kn,kn->n", integers, self.slope[where], out=terms[0, group])
            np.einsum("kn,kn->n", integers, gram @ integers, out=terms[1, group])
        return terms[0], terms[1]

    def fit_scales(self) -> None:
        """Step 3: every group's best change, as far along all of them together as is best for the row."""
        gain, curvature = self.scale_terms()
        change = gain / np.maximum(curvature, _TINY)
        if len(self.columns) > 1:
            moved = self.integers * change[self._group_of]
            bend = np.einsum("kn,kn->n", moved, self.rounder.gram @ moved)
            change *= np.einsum("gn,gn->n", gain, change) / np.maximum(bend, _TINY)
        self.set_scales((self.scales + change).astype(np.float32))

    def set_scales(self, wanted: Float32) -> None:
        """Take the nearest scales that can be stored; one that is not positive stays what it was."""
        before = self.scales
        self.scales = storable_scales(np.where(wanted > 0, wanted, before), self.rounder.encoding)
        self.errors = self.values - self.integers * self.scales[self._group_of]
        if len(self.columns) > 1:
            self.slope = self.rounder.gram @ self.errors
        else:
            self.slope = self.pull - (self.pull - self.slope) * (self.scales / before)

    def improve_integers(self) -> None:
        """Step 4: one pass over the columns."""
        gram, scale_of = self.rounder.gram, self._scale_of
        power = gram.diagonal()
        for first in range(0, len(self.values), _BLOCK):
            last = min(first + _BLOCK, len(self.values))
            before = self.errors[first:last].copy()
            change = np.zeros_like(before)  # of the errors
            for j in range(first, last):
                slope_j = self.slope[j] + gram[j, first:j] @ change[: j - first]
                wanted_j = self.values[j] - self.errors[j] + slope_j / power[j]
                self._store(j, wanted_j, scale_of[j])
                np.subtract(self.errors[j], before[j - first], out=change[j - first])
            self.slope += gram[:, first:last] @ change

    def stored(self) -> Quantized:
        """The result, in the order and form that it is stored in."""
        encoding = self.rounder.encoding
        k, n = self.values.shape
        integers = np.empty((n, k), np.int8)
        integers[:, self.rounder.order] = self.integers.T
        scales = self.scales.T.astype(encoding.scale_dtype).reshape(encoding.scale_shape((n, k)))
        return Quantized(encoding.pack(integers), scales, error_of(self.errors, self.values))

    def _store(self, j: int, wanted: Float32, scales: Float32) -> None:
        largest = self.rounder.encoding.largest
        integers = self.integers[j]
        np.divide(wanted, scales, out=integers)
        np.rint(integers, out=integers)
        np.clip(integers, -largest, largest, out=integers)
        np.subtract(self.values[j], integers * scales, out=self.errors[j])

    @property
    def _group_of(self) -> NDArray[np.intp]:
        """[k], the group of each column."""
        group_of = np.empty(len(self.values), np.intp)
        for group, where in enumerate(self.columns):
            group_of[where] = group
        return group_of

    @property
    def _scale_of(self) -> list[Float32]:
        """[k] of [n], without a copy for each column."""
        return [self.scales[group] for group in self._group_of]


def _search(values: Float32, power: Float32, encoding: Encoding) -> Float32:
    """Step 1 for one group [k, n] with mean square inputs [k]: the scale whose rounding errors cost least, [n]."""
    absmax = np.abs(values).max(axis=0)
    best = storable_scales(absmax / np.float32(encoding.largest), encoding)
    least = np.full_like(best, np.inf)
    for ratio in _RATIOS if encoding.bits < 8 else (np.float32(1),):
        scales = storable_scales(ratio * absmax / np.float32(encoding.largest), encoding)
        errors = values / scales
        np.rint(errors, out=errors)
        np.clip(errors, -encoding.largest, encoding.largest, out=errors)
        errors *= scales
        errors -= values
        cost = power @ np.square(errors, out=errors)
        best = np.where(cost < least, scales, best)
        least = np.minimum(cost, least)
    return best
