"""Weights that training put on a 4-bit grid, found again in a 16-bit checkpoint and stored as the same integers.

Quantization-aware training in llama.cpp's q4_0 manner leaves each block of 32 columns of a row with at most 16 values:
step * level, level a whole number from -8 to 7, rounded to the checkpoint's dtype. Quantizing such a block anew, with a
scale chosen from its largest value, moves it off the grid it was trained on: Google's own Q4_0 file of Gemma 4 E2B QAT
agrees with its bf16 weights on 87 % of the top tokens, one built on the trained steps on 98 %.

The step is not stored, and it is not the largest value over 8: that value may lie on any level. So every level from 1
to 8 is tried for it, and the first that puts all 32 values near whole numbers gives the levels. The step is then the
number between all 32 rounding intervals: value i came from step * level i, so step lies within half a unit in the last
place of value i, over level i. Of these steps one that float16 holds is taken, and bfloat16 too where there is one,
since XNNPACK rounds to that (see quantize._round_block_scales). Then step * level rounds to the stored value, to the
last bit, and that is counted for every value.

q4_0 itself gives the largest value level -8, so its step is negative where that value is positive. ONNX Runtime
multiplies by such a step; XNNPACK refuses it, so there level 8 becomes 7. Arrays are [32, blocks] here: what is done
along a block is then element-wise for numpy, and 8 times faster.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.quantize.quantize import QuantError, Quantized, QuantizeError, Search, error_of, quantize_rows
from gemma_edge.runtime.formats.encoding import Encoding

Float32 = NDArray[np.float32]

BLOCK: Final = 32
ENCODING: Final = Encoding("int", 4, BLOCK)
DTYPES: Final = ("BF16", "F16", "F32")
Q4_0: Final = "Q4_0"
"""A GGUF's type: 32 levels and a float16 step, so that the values, as float32, are on a grid, and to the last bit."""

_LOWEST, _HIGHEST = -8, 7
_NEAR = np.float32(1 / 16)
"""How far from a whole number value / step may be: both are off by 2^-8 in bfloat16, and the level may be 8. That all
other values of a Gaussian block are that near happens once in 8^31."""

_PROBE = 6  # values of a block that are looked at first; most levels fail there
_BATCH_BLOCKS = 1 << 12  # worked on at a time: 2^18 values
_FEWEST_LEVELS = 3  # a block of one magnitude, or of zeros, lies on a grid by chance
_SMALLEST_STEP = np.float32(2.0**-24)  # of float16

# Bits of a float64 below the last bit of a number of that dtype.
_SPARE_BITS = {"BF16": 45, "F16": 42, "F32": 29}


@dataclass(frozen=True)
class Grid:
    """That a tensor's integers are those it was trained with.

    dtype: of the checkpoint, one of DTYPES or Q4_0: to its last bit values are kept; or the name of the encoding in
        which it stores integers. negative_steps: kernels take them.
    """

    dtype: str
    negative_steps: bool = False

    @property
    def is_stored(self) -> bool:
        """Whether the integers need not be found."""
        return self.dtype not in (*DTYPES, Q4_0)

    @property
    def encoding(self) -> Encoding:
        """In which they are kept."""
        return Encoding.parse(self.dtype) if self.is_stored else ENCODING


def lies_on_grid(rows: Float32) -> bool:
    """Whether sampled `rows` [n, k], k a multiple of 32, were trained on such a grid: nearly all of their blocks."""
    values = _blocks(rows)
    values = values[:, values.any(axis=0)]
    levels, found = _find_levels(values, DTYPES[0])
    if np.count_nonzero(found) <= 0.9 * found.size:
        return False
    present = np.bitwise_or.reduce(1 << (levels[:, found].astype(np.int64) - _LOWEST), axis=0)
    return bool(np.median(np.bitwise_count(present)) >= _FEWEST_LEVELS)


def is_q4_0(rows: Float32) -> bool:
    """Whether all blocks of `rows` [n, k], k a multiple of 32, are what Q4_0 can hold."""
    return bool(_find_levels(_blocks(rows), Q4_0)[1].all())


def keep_grid(rows: Float32, grid: Grid, search: Search) -> Quantized:
    """Store float32 `rows` [n, k] as int4-b32 with the levels and steps of their grid.

    Blocks on no grid are quantized as any others (`search`). The error counts the values that are exact.
    Raises QuantizeError as quantize_rows does.
    """
    n, k = rows.shape
    levels = np.empty((n * k // BLOCK, BLOCK), np.int8)
    steps = np.empty(n * k // BLOCK, np.float32)
    error = QuantError()
    groups = rows.reshape(-1, BLOCK)
    for first in range(0, len(groups), _BATCH_BLOCKS):
        batch = slice(first, first + _BATCH_BLOCKS)
        error += _keep(groups[batch], grid, search, levels[batch], steps[batch])
    return Quantized(ENCODING.pack(levels.reshape(n, k)), steps.astype("<f2").reshape(n, -1), error)


def as_stored(
    codes: NDArray[np.int8], scales: Float32, encoding: Encoding, values: Float32, factor: float
) -> Quantized:
    """Integers [n, k] and scales [n, groups] of the checkpoint, as they are; `values` [n, k] are their product.

    factor: what values, and so scales, are multiplied by on their way. A scale is rounded only where `encoding` has no
    such number; the error counts the values that are exact.
    Raises QuantizeError for a scale that no kernel takes.
    """
    if (scales < 0).any():
        raise QuantizeError("found a scale below 0, expected none; convert the checkpoint that it was made from")
    scales = scales * np.float32(factor)
    kept = np.maximum(scales, _SMALLEST_STEP if encoding.block else np.float32(2.0**-126)).astype(encoding.scale_dtype)
    groups, found = codes.reshape(*scales.shape, -1), kept.astype(np.float32)
    stored = (groups * found[..., np.newaxis]).reshape(values.shape)
    exact = np.count_nonzero((found == scales)[..., np.newaxis] | (groups == 0))
    error = error_of(stored - values, values) + QuantError(exact=int(exact))
    return Quantized(encoding.pack(codes), kept.reshape(encoding.scale_shape(values.shape)), error)


def _keep(groups: Float32, grid: Grid, search: Search, levels: NDArray[np.int8], steps: Float32) -> QuantError:
    """One batch, `groups` [b, 32], into `levels` [b, 32] and `steps` [b]."""
    values = _blocks(groups)
    found_levels, found = _find_levels(values, grid.dtype)
    found_steps = _find_steps(values, found_levels, grid.dtype)
    found &= np.isfinite(found_steps)
    turned = (found_levels.max(axis=0) > _HIGHEST) & (found_levels.min(axis=0) > _LOWEST)
    if grid.negative_steps:
        found_levels[:, turned] *= -1
        found_steps[turned] *= -1
    np.minimum(found_levels, _HIGHEST, out=found_levels)
    levels[...] = found_levels.T
    steps[...] = found_steps
    if not found.all():
        others = quantize_rows(groups[~found], ENCODING, search)
        assert others.scales is not None
        levels[~found] = ENCODING.unpack(others.data, (len(others.data), BLOCK))
        steps[~found] = others.scales[:, 0]
    stored = levels * steps[:, np.newaxis]
    exact = np.count_nonzero(_rounded(stored, grid.dtype) == groups)
    return error_of(stored - groups, groups) + QuantError(exact=int(exact))


def _blocks(rows: Float32) -> Float32:
    """[n, k] -> [32, n * k / 32]."""
    return np.ascontiguousarray(rows.reshape(-1, BLOCK).T)


def _find_levels(values: Float32, dtype: str) -> tuple[Float32, NDArray[np.bool_]]:
    """Whole numbers from -8 to 8 that `values` [32, b] are multiples of one step of, and for which blocks there are.

    For Q4_0 the step is one that float16 holds, and the multiples are exact: a block of 3, 0 and -3 has the step 1.
    """
    largest = np.abs(values).max(axis=0)
    per_step = np.arange(1, 1 - _LOWEST, dtype=np.float32)[:, np.newaxis] / np.where(largest > 0, largest, 1)  # [8, b]
    likely = np.stack([_distance(values[:_PROBE] * row) <= _NEAR for row in per_step])
    levels, found = np.zeros_like(values), np.zeros(values.shape[1], np.bool_)
    pending = np.arange(values.shape[1])
    while pending.size:
        pending = pending[likely[:, pending].any(axis=0)]
        top = likely[:, pending].argmax(axis=0)  # the first that is likely
        scaled = np.take(values, pending, axis=1) * per_step[top, pending]
        fits = _distance(scaled) <= _NEAR
        if dtype == Q4_0:
            fits &= _is_exact(np.take(values, pending, axis=1), scaled, largest[pending] / (top + 1))
        levels[:, pending[fits]] = np.rint(scaled[:, fits])
        found[pending[fits]] = True
        likely[top, pending] = False
        pending = pending[~fits]
    return levels, found


def _is_exact(values: Float32, scaled: Float32, steps: Float32) -> NDArray[np.bool_]:
    """Whether `values` [32, b] are whole multiples, `scaled` being those, of `steps` [b] that float16 holds; [b]."""
    with np.errstate(over="ignore"):
        is_half = steps.astype(np.float32).astype(np.float16).astype(np.float32) == steps
    exact: NDArray[np.bool_] = is_half & (np.rint(scaled) * steps.astype(np.float32) == values).all(axis=0)
    return exact


def _distance(scaled: Float32) -> Float32:
    """How far the column's furthest number is from a whole one, [rows, b] -> [b]."""
    away = np.rint(scaled)
    np.subtract(scaled, away, out=away)
    furthest: Float32 = np.abs(away, out=away).max(axis=0)
    return furthest


def _find_steps(values: Float32, levels: Float32, dtype: str) -> Float32:
    """The step of each block, [b]: a float16 number, infinite where that is too large. See the module."""
    count = np.abs(levels).astype(np.float64)
    low, high = _rounding_interval(np.abs(values), dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest = np.where(count > 0, low / count, 0.0).max(axis=0)
        highest = np.where(count > 0, high / count, np.inf).min(axis=0)
    middle = np.where(np.isfinite(highest), (lowest + highest) / 2, 0.0).astype(np.float32)
    with np.errstate(over="ignore"):
        short = _rounded(middle, "BF16")
        fits = (short >= lowest) & (short <= highest) & (short.astype(np.float16) == short)
        steps = np.where(fits, short, middle.astype(np.float16).astype(np.float32))
    return np.maximum(steps, _SMALLEST_STEP)


def _rounding_interval(magnitudes: Float32, dtype: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The smallest and the largest number that round to each of `magnitudes`, which are of `dtype` and not negative."""
    if dtype == Q4_0:  # it is exact, whatever it is
        return magnitudes.astype(np.float64), magnitudes.astype(np.float64)
    bits = magnitudes.astype(np.float64).view(np.int64)
    half = 1 << (_SPARE_BITS[dtype] - 1)
    reach = half - ((bits >> _SPARE_BITS[dtype]) & 1)  # what lies half way belongs to the even neighbour
    low, high = (bits - reach).view(np.float64), (bits + reach).view(np.float64)
    if dtype == "F16":  # below 2^-14 its numbers are 2^-24 apart
        low = np.minimum(low, magnitudes - 2.0**-25)
        high = np.maximum(high, magnitudes + 2.0**-25)
    return low, high


def _rounded(values: Float32, dtype: str) -> Float32:
    """`values` as float32 after a stay in `dtype`: nearest, ties to even."""
    if dtype in ("F32", Q4_0):
        return values
    if dtype == "F16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF_0000)).view(np.float32)
