"""Windows of text that neither calibration nor verification has seen: tests/fixtures/heldout."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.tokenizer.windows import read_text, token_windows

FOLDER: Final = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "heldout"
NAMES: Final = ("prose", "languages", "code")


def heldout_windows(
    name: str, checkpoint: Path, vocabulary_tokens: int, *, tokens: int = 256, count: int = 32
) -> NDArray[np.int32]:
    """One of NAMES as the checkpoint's token ids, [B, tokens], B <= count, spread over all of the text.

    Each window begins with <bos>. With Gemma's tokenizer, every text has 32 windows of 256 tokens.
    """
    return token_windows(
        read_text(FOLDER / f"{name}.txt"), name, checkpoint, vocabulary_tokens, tokens=tokens, count=count
    )
