"""Rounding a matrix so that its products change least, given the inputs that it really multiplies.

With gram H = mean of x x^T over calibration inputs x, storing w as v changes the output by e = w - v with the mean
square e H e^T. Each step is for all rows at once:

1. columns one after another, each with the errors of those before it taken into account: GPTQ (arXiv 2210.17323) in
   the form of LDLQ (arXiv 2307.13304), which needs one Cholesky factor and no inverse. A block's scale is searched for
   when its first column is reached, for the values that it then has to store; the scale of a whole row is, before;
2. sweeps: each scale once more, as the best one for its integers has a closed form, then its integers, each the best
   one given all others (coordinate descent, as arXiv 2309.01885).

Arrays lie transposed here, [k, n]: a column of the matrix is one stretch of memory. Columns are worked on one by one
within a block, blocks within a span of 256: all else is products of matrices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.factor import DAMPING, Factor
from gemma_edge.converter.calibrate.scale_search import searched_scales
from gemma_edge.converter.evaluate.products import product
from gemma_edge.converter.quantize.quantize import Quantized, error_of, storable_scales
from gemma_edge.runtime.formats.encoding import Encoding

Float32 = NDArray[np.float32]

_STEP = 32
_SPAN = 256
"""Columns; the largest block that an encoding has."""
SWEEPS, BLOCK_SWEEPS = 2, 1
"""How often step 2 is taken: a block's scale was chosen later, and hardly improves. On the real 270M, blocks of 32 in
layer 2: with 0, 1, 2 and 4 sweeps the outputs change by 50.4, 50.1, 50.0 and 49.8, in 1e-4 of their mean square."""
_TINY = np.float32(1e-30)


@dataclass(frozen=True, eq=False)
class Rounder:
    """The inputs of one linear layer, prepared for rounding any number of its rows. factor: of blocks as `encoding`."""

    encoding: Encoding
    factor: Factor

    @classmethod
    def of(cls, gram: Float32, encoding: Encoding, damping: float = DAMPING) -> Self:
        """From the mean of x x^T over inputs x [k]; see Factor.of."""
        return cls(encoding, Factor.of(gram, encoding.block, damping))

    def round(self, rows: Float32) -> Quantized:
        """Stores `rows` [n, k]. Raises QuantizeError for values that the encoding cannot hold."""
        return self._rounded(rows).stored()

    def cost(self, rows: Float32) -> float:
        """How much storing `rows` changes the outputs: the mean square, summed over rows."""
        return self._rounded(rows).cost()

    def _rounded(self, rows: Float32) -> "Rows":
        return Rows.of(rows, self).rounded()


@dataclass(eq=False)
class Rows:
    """Rows on their way, all [k, n] and in the factor's order of columns, but scales.

    values: what is to be stored. integers: as float32. errors: values - integers * scales. scales: [groups, n].
    """

    rounder: Rounder
    values: Float32
    integers: Float32
    errors: Float32
    scales: Float32

    @classmethod
    def of(cls, rows: Float32, rounder: Rounder, scales: Float32 | None = None) -> Self:
        """`rows` [n, k] without integers yet. scales: for encodings without blocks, [1, n]; else searched for."""
        rounder.encoding.check(rows.shape)
        return cls.transposed(np.ascontiguousarray(rows.T[rounder.factor.order]), rounder, scales)

    @classmethod
    def transposed(cls, values: Float32, rounder: Rounder, scales: Float32 | None = None) -> Self:
        """Of rows that lie as here already."""
        k, n = values.shape
        block = rounder.encoding.block
        if scales is None:
            scales = np.zeros((k // block if block else 1, n), np.float32)
            if not block:
                scales[0] = searched_scales(values, rounder.factor.gram.diagonal(), rounder.encoding)
        return cls(rounder, values, np.zeros_like(values), values.copy(), scales)

    def rounded(self) -> Self:
        """All steps."""
        self.choose_integers()
        for _ in range(BLOCK_SWEEPS if self.rounder.encoding.block else SWEEPS):
            self.improve()
        return self

    def improve(self) -> None:
        """Step 2, once."""
        if not self.rounder.encoding.block:
            value, size = self.scale_terms()
            self.set_scale(np.divide(value, np.maximum(size, _TINY)))
        self.improve_integers()

    def choose_integers(self) -> None:
        """Step 1: a column's integers are those of its values after the feedback of the errors of all earlier ones."""
        upper, block = self.rounder.factor.upper, self.rounder.encoding.block
        feedback = np.empty(self.values.shape[1], np.float32)
        for first, last in self._spans():
            wanted = product(upper[:first, first:last].T, self.errors[:first])
            wanted += self.values[first:last]
            within = np.ascontiguousarray(upper[first:last, first:last].T)
            errors = self.errors[first:last]
            for begin, end in self._steps(last - first):
                if block:
                    self._search(first + begin, wanted[begin:end])
                scales = self._scales(first + begin)
                for j in range(begin, end):
                    column = wanted[j]
                    if j > begin:
                        np.dot(within[j, begin:j], errors[begin:j], out=feedback)
                        column += feedback
                    column /= scales
                    self._store(first + j, column, scales)
                if end < len(wanted):
                    wanted[end:] += product(within[end:, begin:end], errors[begin:end])

    def improve_integers(self) -> None:
        """The best integers given all others, column by column, and before each block its best scale."""
        gram, block = self.rounder.factor.gram, self.rounder.encoding.block
        power = gram.diagonal().copy()
        scratch = np.empty(self.values.shape[1], np.float32)
        for first, last in self._spans():
            slope = product(gram[first:last], self.errors)
            within = np.ascontiguousarray(gram[first:last, first:last])
            errors = self.errors[first:last]
            for begin, end in self._steps(last - first):
                before = errors[begin:end].copy()
                if block:
                    self._fit_scale(first + begin, slope[begin:end], within[begin:end, begin:end])
                scales = self._scales(first + begin)
                change = np.empty_like(before)  # of the errors, by what follows
                for j in range(begin, end):
                    column = slope[j]
                    if j > begin:
                        np.dot(within[j, begin:j], change[: j - begin], out=scratch)
                        column += scratch
                    column /= power[first + j] * scales
                    column += self.integers[first + j]
                    np.copyto(scratch, errors[j])
                    self._store(first + j, column, scales)
                    np.subtract(errors[j], scratch, out=change[j - begin])
                if end < len(slope):
                    slope[end:] += product(within[end:, begin:end], errors[begin:end] - before)

    def scale_terms(self) -> tuple[Float32, Float32]:
        """Without blocks, the best scale of a row is the quotient of these, both [n]: w H q^T and q H q^T."""
        pulled = product(self.rounder.factor.gram, self.integers)
        return np.einsum("kn,kn->n", self.values, pulled), np.einsum("kn,kn->n", self.integers, pulled)

    def set_scale(self, wanted: Float32) -> None:
        """Without blocks: take the nearest scales [n] that can be stored; one that is not positive stays as it was."""
        self.scales[0] = self._storable(wanted, self.scales[0])
        np.multiply(self.integers, self.scales[0], out=self.errors)
        np.subtract(self.values, self.errors, out=self.errors)

    def cost(self) -> float:
        """The mean square change of the outputs, summed over rows."""
        slope = self.rounder.factor.gram @ self.errors
        return float(np.einsum("kn,kn->n", self.errors, slope).sum(dtype=np.float64))

    def stored(self) -> Quantized:
        """The result, in the order and form that it is stored in."""
        encoding, order = self.rounder.encoding, self.rounder.factor.order
        k, n = self.values.shape
        integers = np.empty((n, k), np.int8)
        integers[:, order] = self.integers.T
        scales = np.empty((n, len(self.scales)), encoding.scale_dtype)
        scales[:, order[:: encoding.block or k] // (encoding.block or k)] = self.scales.T
        return Quantized(
            encoding.pack(integers), scales.reshape(encoding.scale_shape((n, k))), error_of(self.errors, self.values)
        )

    def _spans(self) -> Iterator[tuple[int, int]]:
        k = len(self.values)
        return ((first, min(first + _SPAN, k)) for first in range(0, k, _SPAN))

    def _steps(self, columns: int) -> Iterator[tuple[int, int]]:
        """Of a span: its blocks, or as many columns as a common block has."""
        step = self.rounder.encoding.block or _STEP
        return ((begin, min(begin + step, columns)) for begin in range(0, columns, step))

    def _scales(self, column: int) -> Float32:
        block = self.rounder.encoding.block
        scales: Float32 = self.scales[column // block if block else 0]
        return scales

    def _search(self, column: int, wanted: Float32) -> None:
        """The scale of the block that begins there, for values [block, n] with feedback of all before it."""
        encoding, pivots = self.rounder.encoding, self.rounder.factor.pivots
        weight = pivots[column : column + encoding.block]
        self.scales[column // encoding.block] = searched_scales(wanted, weight, encoding)

    def _fit_scale(self, column: int, slope: Float32, gram: Float32) -> None:
        """The best scale of the block that begins there, given all else. slope: of its columns, kept up to date."""
        block = self.rounder.encoding.block
        integers, errors = self.integers[column : column + block], self.errors[column : column + block]
        pulled = gram @ integers
        fall = np.einsum("kn,kn->n", integers, slope)
        bend = np.einsum("kn,kn->n", integers, pulled)
        before = self.scales[column // block]
        after = self._storable(before + fall / np.maximum(bend, _TINY), before)
        change = before - after
        slope += pulled * change
        errors += integers * change
        self.scales[column // block] = after

    def _storable(self, wanted: Float32, before: Float32) -> Float32:
        return storable_scales(np.where(wanted > 0, wanted, before).astype(np.float32), self.rounder.encoding)

    def _store(self, j: int, wanted: Float32, scales: Float32) -> None:
        """wanted: in units of the scales."""
        largest = np.float32(self.rounder.encoding.largest)
        integers, errors = self.integers[j], self.errors[j]
        np.rint(wanted, out=wanted)
        np.maximum(wanted, -largest, out=wanted)
        np.minimum(wanted, largest, out=integers)
        np.multiply(integers, scales, out=errors)
        np.subtract(self.values[j], errors, out=errors)
