"""Rows of unequal length as one batch of random tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PADDINGS = ("left", "right", "both")
PAD = 0


@dataclass
class Batch:
    """rows: the tokens so far, without padding. ids: [B, T], the last ones. mask: [B, all], 0 at padding."""

    rows: list[list[int]]
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    vocab_size: int

    @classmethod
    def of(cls, lengths: Sequence[int], padding: str, vocab_size: int) -> "Batch":
        """A prompt of so many tokens in each row."""
        rng = np.random.default_rng(5)
        rows = [rng.integers(0, vocab_size, length).tolist() for length in lengths]
        longest = max(lengths)
        ids = np.full((len(rows), longest), PAD, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for row, tokens in enumerate(rows):
            missing = longest - len(tokens)
            begin = {"left": missing, "right": 0, "both": missing // 2}[padding]
            ids[row, begin : begin + len(tokens)] = tokens
            mask[row, begin : begin + len(tokens)] = 1
        return cls(rows, ids, mask, vocab_size)

    def append(self) -> None:
        """One more token in every row."""
        self.ids = np.random.default_rng(self.mask.shape[1]).integers(0, self.vocab_size, (len(self.rows), 1))
        self.mask = np.concatenate([self.mask, np.ones_like(self.ids)], axis=1)
        for row, [token] in zip(self.rows, self.ids.tolist(), strict=True):
            row.append(token)
