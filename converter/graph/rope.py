"""How far each pair of a head's values turns from one position to the next."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of layer. Angles are position / (factor * theta^(2i/E)) (arXiv 2104.09864)."""

    theta: float
    factor: float = 1.0  # "linear" rope scaling: positions are divided by it
    share: float = 1.0  # "proportional" rope: of the pairs, the first ones, that turn; the others' angle is 0

    def inverse_frequencies(self, head_size: int) -> NDArray[np.float32]:
        """Radians per position for each pair of a head's values, [E/2].

        Rounded to float32 after each step, as transformers does: at position 32k one unit in the last place is 2e-3
        rad. The power is taken in float64: numpy's float32 power is 2 units off, and not the same on every processor.
        """
        exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
        powers = np.array([self.theta ** float(exponent) for exponent in exponents], np.float32)
        frequencies = np.float32(1.0) / powers / np.float32(self.factor)
        frequencies[int(self.share * head_size // 2) :] = 0.0  # transformers' _compute_proportional_rope_parameters
        return frequencies
