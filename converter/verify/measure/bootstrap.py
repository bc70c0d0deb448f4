"""How far a figure would move on other text of the same kind: the paired bootstrap.

Tokens beside each other are alike, so what is drawn are blocks of consecutive ones (Kuensch 1989, the block bootstrap).
Paired: bundle and checkpoint, or two bundles, are looked at on the same draws, so that what makes a text hard for both
cancels (Koehn 2004, significance tests for machine translation).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

BLOCK_TOKENS: Final = 32
DRAWS: Final = 2000
CONFIDENCE: Final = 0.95
FEWEST_BLOCKS: Final = 8
"""With fewer no interval is given: of those that promise 95 %, 87 % hold with 8 blocks of exponential noise, 81 % with
4, half with 2, and with one block an interval has no width."""


@dataclass(frozen=True)
class Interval:
    """Of CONFIDENCE."""

    low: float
    high: float


@dataclass(frozen=True)
class Resampling:
    """How often each block of tokens is drawn in each of DRAWS texts: counts [DRAWS, blocks]."""

    starts: NDArray[np.intp]
    counts: Float64

    @classmethod
    def of(cls, windows: int, window_tokens: int, seed: int) -> "Resampling":
        """For `windows` texts of `window_tokens` each; no block reaches over the end of a window."""
        inside = np.arange(0, window_tokens, BLOCK_TOKENS)
        starts = (window_tokens * np.arange(windows)[:, None] + inside).reshape(-1)
        blocks = len(starts)
        counts = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), DRAWS)
        return cls(starts, counts.astype(np.float64))

    def means(self, values: Float64, weights: Float64) -> Interval | None:
        """Of sum(values) / sum(weights), both [tokens]; None where the text is too short to tell."""
        if len(self.starts) < FEWEST_BLOCKS:
            return None
        totals = self.counts @ np.add.reduceat(values, self.starts)
        weight = self.counts @ np.add.reduceat(weights, self.starts)
        means = totals / np.where(weight, weight, np.nan)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.nanquantile(means, (tail, 1 - tail))
        return Interval(float(low), float(high))
