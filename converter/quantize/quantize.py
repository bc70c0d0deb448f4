"""float32 rows -> stored integers and scales, with the error that this cost.

The maths is local to a group: a row, or a block of columns of a row (see Encoding). Whatever the chunks, the threads or
the machine, the same row gives the same bytes: every operation that decides a byte is either an elementwise IEEE 754
operation or a sum of whole numbers small enough to be exact, so neither SIMD width nor order of summation matters.
The error sums are ordinary float sums: they may differ in the last digits and decide nothing.

A call works on blocks of rows, with buffers made once per call. numpy releases the GIL within its calls, so chunks of a
tensor may run on several threads. tools/bench_quantize.py prints the rates.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.quantize.clip_search import clip_search
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.formats.encoding import Encoding

_BLOCK_VALUES = 1 << 18
"""Values that are worked on at a time: 1 MiB, so that a pass finds in L2 what the one before wrote. Not less, because
shorter calls into numpy make threads queue for the GIL: two threads did 123 M values/s with 2^16 and 253 with 2^19."""

_SMALLEST_SCALE = np.float32(2.0**-126)
"""XNNPACK refuses a scale that is zero or subnormal. Also the scale of a row of zeros."""

_SMALLEST_BLOCK_SCALE = np.float32(2.0**-24)
"""The smallest float16."""

_LARGEST_BLOCK_SCALE = np.float32(65280.0)
"""The largest float16 that bfloat16 holds too, see _round_block_scales."""


class QuantizeError(GemmaEdgeError):
    """Values that an encoding cannot hold."""


class Search(StrEnum):
    """How the scale of a group is chosen, for int4 and int2. int8 always uses the largest value."""

    ABSMAX = "absmax"  # the largest value of the group becomes the largest integer
    MSE = "mse"  # the scale with the least squared error: clips a few values, to resolve the others better


@dataclass(frozen=True)
class QuantError:
    """What storing values cost, as sums, so that the chunks of a tensor add up.

    squared: sum of (stored - value)^2. signal: sum of value^2. largest: max |stored - value|. values: how many.
    exact: how many the checkpoint's own dtype cannot tell from the stored ones; only counted on a trained grid.
    """

    squared: float = 0.0
    signal: float = 0.0
    largest: float = 0.0
    values: int = 0
    exact: int = 0

    def __add__(self, other: "QuantError") -> "QuantError":
        return QuantError(
            self.squared + other.squared,
            self.signal + other.signal,
            max(self.largest, other.largest),
            self.values + other.values,
            self.exact + other.exact,
        )

    @property
    def relative_rms(self) -> float:
        """RMS of the error over RMS of the values: 0 is exact, 1 is as bad as storing zeros. 0 for all zeros."""
        return float((self.squared / self.signal) ** 0.5) if self.signal else 0.0

    @property
    def snr_db(self) -> float:
        """Signal to noise in decibels; infinite when exact."""
        return float(10 * np.log10(self.signal / self.squared)) if self.squared else float("inf")


@dataclass(frozen=True)
class Quantized:
    """Rows as they are stored.

    data: uint8 [n, bytes per row]. scales: float32 [n], float16 [n, k / block], or None for float encodings.
    """

    data: NDArray[np.uint8]
    scales: NDArray[np.float32] | NDArray[np.float16] | None
    error: QuantError = field(default_factory=QuantError)


def quantize_rows(rows: NDArray[np.float32], encoding: Encoding, search: Search = Search.MSE) -> Quantized:
    """Stores float32 `rows`, [n, k] (or [k] for float encodings), as `encoding`.

    Raises QuantizeError for values that are not finite or overflow the encoding, EncodingError for a shape that the
    encoding cannot hold. Messages do not know the tensor's name: the caller adds it.
    """
    encoding.check(rows.shape)
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if encoding.kind == "float":
        return _store_floats(rows, encoding)
    n, k = rows.shape
    width = encoding.block or k
    data = np.empty((n, k * encoding.bits // 8), np.uint8)
    scales = np.empty((n, k // width), np.float32)
    step = max(1, _BLOCK_VALUES // k)
    scratch = _Scratch.of(min(step, n) * k)
    error = QuantError()
    for first in range(0, n, step):
        part = rows[first : first + step]
        groups = part.reshape(-1, width)  # [rows, k] -> [groups, group width]
        part_scales = scales[first : first + step].reshape(-1)
        _choose_scales(groups, encoding, search, scratch, part_scales)
        integers, part_error = _round(groups, encoding, part_scales, scratch)
        data[first : first + step] = encoding.pack(integers.reshape(part.shape))
        error += part_error
    stored_scales = scales.astype(encoding.scale_dtype).reshape(encoding.scale_shape(rows.shape))
    return Quantized(data, stored_scales, error)


@dataclass(frozen=True)
class _Scratch:
    """Buffers for one block of rows, reused for all blocks of a call."""

    scaled: NDArray[np.float32]
    rounded: NDArray[np.float32]
    integers: NDArray[np.int8]

    @classmethod
    def of(cls, values: int) -> "_Scratch":
        return cls(np.empty(values, np.float32), np.empty(values, np.float32), np.empty(values, np.int8))


def _choose_scales(
    groups: NDArray[np.float32], encoding: Encoding, search: Search, scratch: _Scratch, scales: NDArray[np.float32]
) -> None:
    """Writes one scale per group, [groups], float32 that survives conversion to the encoding's scale type."""
    absolute = np.abs(groups, out=scratch.scaled[: groups.size].reshape(groups.shape))
    absmax = _absmax(absolute)
    _check_finite(absmax)
    clip = absmax
    if search is Search.MSE and encoding.bits < 8:
        clip = absmax * clip_search(encoding.largest, groups.shape[1]).ratios(absolute, absmax)
    np.divide(clip, np.float32(encoding.largest), out=scales)
    if encoding.block:
        _round_block_scales(scales, encoding)
    else:
        np.maximum(scales, _SMALLEST_SCALE, out=scales)


def storable_scales(scales: NDArray[np.float32], encoding: Encoding) -> NDArray[np.float32]:
    """The nearest that `encoding` can store, float32 of the same shape. Raises QuantizeError for too large ones."""
    _check_finite(scales)
    if not encoding.block:
        return np.maximum(scales, _SMALLEST_SCALE)
    rounded = np.array(scales, np.float32)
    _round_block_scales(rounded, encoding)
    return rounded


def _check_finite(absmax: NDArray[np.float32]) -> None:
    if not np.isfinite(absmax).all():
        raise QuantizeError("found a value that is NaN or infinite, expected numbers; get the checkpoint again")


def _round_block_scales(scales: NDArray[np.float32], encoding: Encoding) -> None:
    """Rounds, in place, to scales that float16 and bfloat16 both hold.

    TFLite stores block scales as float16, and XNNPACK rounds them once more, to bfloat16 (8 significant bits; seen in
    ai-edge-litert 2.3.0: errors up to 2^-8 of the weight). Choosing among scales that both hold makes the stored
    integers fit the scale that really multiplies them, in every kernel.
    """
    if scales.size and scales.max() > _LARGEST_BLOCK_SCALE:
        plain, most = f"int{encoding.bits}", encoding.largest
        raise QuantizeError(
            f"found a value of {most * scales.max():.4g}, blockwise {plain} holds up to {most * 65280}; "
            f"use {plain} without blocks"
        )
    bits = scales.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)  # round to nearest, ties to even, at the 16 bits that bfloat16 keeps
    bits &= 0xFFFF0000
    np.maximum(scales, _SMALLEST_BLOCK_SCALE, out=scales)
    scales[...] = scales.astype(np.float16)


def _round(
    groups: NDArray[np.float32], encoding: Encoding, scales: NDArray[np.float32], scratch: _Scratch
) -> tuple[NDArray[np.int8], QuantError]:
    """Nearest integers, ties to even, of `groups` in units of their scales, [groups, width], and the error."""
    scaled = scratch.scaled[: groups.size].reshape(groups.shape)
    rounded = scratch.rounded[: groups.size].reshape(groups.shape)
    integers = scratch.integers[: groups.size].reshape(groups.shape)
    # A scale is at least 2^-126, so that its reciprocal is finite.
    np.multiply(groups, (np.float32(1) / scales)[:, np.newaxis], out=scaled)
    np.rint(scaled, out=rounded)
    np.clip(rounded, -encoding.largest, encoding.largest, out=rounded)
    np.copyto(integers, rounded, casting="unsafe")
    np.subtract(rounded, scaled, out=rounded)
    np.multiply(rounded, scales[:, np.newaxis], out=rounded)
    return integers, error_of(rounded, groups)


def error_of(difference: NDArray[np.float32], values: NDArray[np.float32]) -> QuantError:
    """What storing `values` cost, given the stored ones less them."""
    if not values.size:
        return QuantError()
    return QuantError(
        _sum_of_squares(difference),
        _sum_of_squares(values),
        max(float(difference.max()), -float(difference.min())),
        values.size,
    )


def _sum_of_squares(values: NDArray[np.float32]) -> float:
    """In float32 where OpenBLAS uses no threads of its own, of at most 4096 values, then in float64."""
    flat = values.reshape(-1)
    whole = flat[: flat.size // 4096 * 4096].reshape(-1, 4096)
    rest = flat[whole.size :]
    with np.errstate(over="ignore"):  # of values above 1e17 or so the sum is infinite
        return float(np.vecdot(whole, whole).sum(dtype=np.float64) + np.vecdot(rest, rest))


def _absmax(absolute: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest value of each group, [groups, width] -> [groups]; NaN if there is one.

    By bit patterns, which rank as the numbers do while no sign bit is set, and NaN last: numpy is twice as fast.
    """
    groups, width = absolute.shape
    bits = absolute.reshape(-1).view(np.int32)
    largest: NDArray[np.int32] = np.maximum.reduceat(bits, np.arange(0, groups * width, width))
    return largest.view(np.float32)


def _store_floats(values: NDArray[np.float32], encoding: Encoding) -> Quantized:
    largest = np.abs(values).max(initial=0.0)
    _check_finite(np.asarray(largest))
    if encoding.bits == 32:
        return Quantized(encoding.pack(values), None, QuantError(signal=_sum_of_squares(values), values=values.size))
    if largest > np.finfo(np.float16).max and not encoding.brain:
        raise QuantizeError(f"found a value of {largest:.4g}, fp16 holds up to 65504; use int8 or fp32")
    data = encoding.pack(values)
    difference = np.subtract(encoding.unpack(data, values.shape), values)
    return Quantized(data, None, error_of(difference, values))
