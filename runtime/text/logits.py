"""What a model gives for the next token."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Logits: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Natural log probabilities of a token and of the likeliest ones, by token id, the likeliest first.

    They are the model's own: of a temperature of 1, before penalties and without a response format.
    """

    chosen: float
    best: tuple[tuple[int, float], ...]


def scores(logits: Logits, token_id: int, count: int) -> Scores:
    """Of a token, and of the `count` likeliest. logits: [V]."""
    shifted = logits.astype(np.float64) - float(np.max(logits))
    shifted -= np.log(np.sum(np.exp(shifted)))
    best = np.argpartition(-shifted, count)[:count] if 0 < count < len(shifted) else np.arange(len(shifted))[:count]
    best = best[np.lexsort((best, -shifted[best]))]
    return Scores(float(shifted[token_id]), tuple((int(i), float(shifted[i])) for i in best))
