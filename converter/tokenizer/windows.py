"""From a text to windows of token ids: what calibration and verification run through a model."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import read_plain_text

SHORTEST_TOKENS: Final = 16


class TextError(GemmaEdgeError):
    """A text that cannot be read, or is too short to say anything."""


def read_text(path: Path) -> str:
    """The text of a file. Raises TextError naming it."""
    try:
        return read_plain_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path}: cannot be read as text ({error}); give a file in UTF-8") from error


def token_windows(
    text: str, name: str, checkpoint: Path, vocabulary_tokens: int, *, tokens: int, count: int
) -> NDArray[np.int32]:
    """`text` as int32 [B, tokens], B <= count: each window begins with <bos> and goes on where the one before ended.

    Where the text has more than fits, the windows are spread over all of it. What does not fill a window is left
    out; a text shorter than one window is one window.
    Raises TextError, naming the text by `name`, for one of fewer than SHORTEST_TOKENS tokens, TokenizerError as
    sentencepiece_model does.
    """
    from gemma_edge.converter.tokenizer.tokenizer import sentencepiece_model

    return windows_of(text, name, sentencepiece_model(checkpoint, vocabulary_tokens), tokens=tokens, count=count)


def windows_of(text: str, name: str, tokenizer: bytes, *, tokens: int, count: int) -> NDArray[np.int32]:
    """The same by a serialised SentencePiece model. Raises TextError."""
    import sentencepiece  # belongs to the extra [litert]

    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    ids = np.array(pieces.encode(text), np.int32)
    if len(ids) < SHORTEST_TOKENS:
        raise TextError(f"{name}: found {len(ids)} tokens, expected at least {SHORTEST_TOKENS}; give a longer text")
    step = min(tokens - 1, len(ids))
    whole = len(ids) // step
    chosen = np.arange(whole) if whole <= count else np.arange(count) * whole // count
    body = ids[: whole * step].reshape(whole, step)[chosen]
    return np.concatenate([np.full((len(body), 1), pieces.piece_to_id("<bos>"), np.int32), body], axis=1)
