"""Scales before any integer is chosen: a few clips are tried, and the one kept whose rounding errors cost least."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.quantize.quantize import storable_scales
from gemma_edge.runtime.formats.encoding import Encoding

Float32 = NDArray[np.float32]

_RATIOS: Final = tuple(np.float32(ratio / 20) for ratio in range(20, 9, -1))
"""Clips over a group's largest value that are tried: 1, 0.95, ... 0.5; of 8 bits, none but the largest value."""
_COLUMNS: Final = 256
"""At a time: what is worked on should stay in a cache."""


def searched_scales(values: Float32, weights: Float32, encoding: Encoding) -> Float32:
    """For one group [k, n], the scales [n] with the least sum of weights [k] times squared errors."""
    largest = np.float32(encoding.largest)
    absmax = np.maximum(values.max(axis=0), -values.min(axis=0))
    best = storable_scales(absmax / largest, encoding)
    if encoding.bits >= 8:
        return best
    least = np.full_like(best, np.inf)
    scratch = np.empty((min(len(values), _COLUMNS), len(best)), np.float32)
    for ratio in _RATIOS:
        scales = storable_scales(ratio * absmax / largest, encoding)
        cost = np.zeros_like(best)
        for first in range(0, len(values), _COLUMNS):
            part = values[first : first + _COLUMNS]
            errors = scratch[: len(part)]
            np.divide(part, scales, out=errors)
            np.rint(errors, out=errors)
            np.maximum(errors, -largest, out=errors)
            np.minimum(errors, largest, out=errors)
            errors *= scales
            errors -= part
            np.square(errors, out=errors)
            cost += weights[first : first + _COLUMNS] @ errors
        better = cost < least
        best[better] = scales[better]
        np.minimum(cost, least, out=least)
    return best
