"""How alike two arrays are, when one should be the other."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

_PIECE = 1 << 14  # numbers summed in float32, then in float64; both arrays' pieces stay in a core's cache


@dataclass(frozen=True)
class Similarity:
    """Sums over pairs of (expected, found) numbers, so that blocks add up."""

    expected: float = 0.0  # sum of expected^2
    found: float = 0.0  # sum of found^2
    product: float = 0.0  # sum of expected * found
    error: float = 0.0  # sum of (found - expected)^2

    @classmethod
    def between(cls, expected: Float32, found: Float32) -> "Similarity":
        """Of two arrays of one shape."""
        a, b = expected.reshape(-1), found.reshape(-1)
        sums = np.zeros(4)
        for i in range(0, len(a), _PIECE):
            x, y = a[i : i + _PIECE], b[i : i + _PIECE]
            error = y - x
            sums += (np.dot(x, x), np.dot(y, y), np.dot(x, y), np.dot(error, error))
        return cls(*sums.tolist())

    def __add__(self, other: "Similarity") -> "Similarity":
        return Similarity(
            self.expected + other.expected,
            self.found + other.found,
            self.product + other.product,
            self.error + other.error,
        )

    @property
    def cosine(self) -> float:
        """1: the same direction. 0 where one of them is zero."""
        length = (self.expected * self.found) ** 0.5
        return self.product / length if length else 0.0

    @property
    def snr_db(self) -> float:
        """Signal to noise in decibels; infinite when exact."""
        if not self.error:
            return float("inf")
        return float(10 * np.log10(self.expected / self.error)) if self.expected else float("-inf")

    @property
    def gain(self) -> float:
        """The factor by which `found` is `expected`, in least squares; 1 where there is nothing to compare."""
        return self.product / self.expected if self.expected else 1.0


@dataclass
class SimilaritySums:
    """Similarity by name, in the making."""

    sums: dict[str, Similarity] = field(default_factory=dict)

    def add(self, name: str, similarity: Similarity) -> None:
        self.sums[name] = self.sums.get(name, Similarity()) + similarity
