"""Tokens that carry their own embedding: what an encoder made of an image or a recording.

They go wherever token ids go. A sequence with an image is a list of ints like any other, so comparing it with what the
KV cache holds, going back and running it again need no second list beside it.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


class SoftToken(int):
    """The id of a placeholder, which is what Hugging Face has in its place, with the row that replaces its embedding.

    Equal to another soft token of the same origin, and to no plain id.
    """

    embedding: Rows  # [D]
    origin: tuple[str, int]

    def __new__(cls, token_id: int, embedding: Rows, origin: tuple[str, int]) -> "SoftToken":
        """origin: a digest of what was encoded, and which of its rows this is."""
        token = super().__new__(cls, token_id)
        token.embedding = embedding
        token.origin = origin
        return token

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SoftToken) and self.origin == other.origin

    def __ne__(self, other: object) -> bool:  # int has one of its own
        return not self == other

    def __hash__(self) -> int:
        return hash(self.origin)


def soft_tokens(token_id: int, rows: Rows) -> list[SoftToken]:
    """One token for each row of [n, D]."""
    digest = hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()
    return [SoftToken(token_id, row, (digest, index)) for index, row in enumerate(rows)]


def is_in_vocabulary(token_id: int, size: int) -> bool:
    """Whether a decoder can be given it: a soft token always, a plain id below `size`."""
    return isinstance(token_id, SoftToken) or 0 <= token_id < size


def per_layer_ids(token_ids: Sequence[int]) -> list[int]:
    """Whose rows of per-layer embeddings stand for these tokens: for soft tokens the padding token's, which is row 0
    (transformers, Gemma3nModel.forward and Gemma4Model.forward)."""
    return [0 if isinstance(token, SoftToken) else token for token in token_ids]


def place_soft_rows(token_ids: Sequence[int], rows: Rows) -> None:
    """Overwrite the rows [n, D] that an embedding table gave for soft tokens."""
    for index, token in enumerate(token_ids):
        if isinstance(token, SoftToken):
            rows[index] = token.embedding
