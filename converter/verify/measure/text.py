"""What is read: token ids in windows, each a text of its own."""

from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.tokenizer.windows import read_text, token_windows
from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.profiles.plain_file import open_plain

Windows = NDArray[np.int64]


def builtin_text() -> str:
    """English prose, verse, a speech and a constitution, all in the public domain; not what calibration reads."""
    return (files("gemma_edge.converter.quality") / "text.txt").read_text(encoding="utf-8")


def text_windows(path: Path | None, checkpoint: Checkpoint, vocab_size: int, limit: int, window: int) -> Windows:
    """[B, T] of a text file, or of the built-in text, by the checkpoint's own tokenizer; <bos> begins every window.

    Raises VerifyError for windows of less than two tokens, TextError for a text that cannot be used.
    """
    text, name = (builtin_text(), "the built-in text") if path is None else (read_text(path), str(path))
    window = _checked(window, limit)
    ids = token_windows(text, name, checkpoint.side_path, vocab_size, tokens=window, count=limit // window)
    return ids.astype(np.int64)


def file_windows(path: Path, vocab_size: int, limit: int, window: int) -> Windows:
    """[B, T] from a file of little-endian uint16 or, where its name ends in .u32, uint32. Raises VerifyError."""
    dtype = np.dtype("<u4" if path.suffix == ".u32" else "<u2")
    try:
        with open_plain(path) as file:
            content = file.read(limit * dtype.itemsize)  # of a corpus only what is used
        size_bytes = path.stat().st_size
    except OSError as error:
        raise VerifyError(f"{path}: cannot be read ({error.strerror}); give another file") from error
    if size_bytes % dtype.itemsize:
        raise VerifyError(
            f"{path}: found {size_bytes} bytes, expected token ids of {dtype.itemsize} bytes each; "
            "write them as little-endian uint16, or uint32 in a file whose name ends in .u32"
        )
    ids = np.frombuffer(content, dtype).astype(np.int64)
    window = _checked(window, len(ids))
    if ids.max() >= vocab_size:
        raise VerifyError(
            f"{path}: token id {ids.max()}, expected ids below {vocab_size}; tokenize with the checkpoint's tokenizer"
        )
    return ids[: len(ids) // window * window].reshape(-1, window)


def _checked(window: int, tokens: int) -> int:
    """As many tokens as a window can have; one short window where there is no whole one."""
    if tokens < 2 or window < 2:
        raise VerifyError(f"found {tokens} tokens in windows of {window}, expected at least 2 of both; give more")
    return min(window, tokens)
