"""What is read, in windows."""

import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.tokenizer.windows import TextError
from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.measure.text import builtin_text, file_windows, text_windows

VOCABULARY = 2048
BOS = 2


@pytest.fixture
def checkpoint(tiny_gemma3: Path) -> Checkpoint:
    return Checkpoint.open(tiny_gemma3)


def test_the_builtin_text_fills_the_default(checkpoint: Checkpoint) -> None:
    windows = text_windows(None, checkpoint, VOCABULARY, limit=1024, window=256)
    assert windows.shape == (4, 256)
    assert windows[:, 0].tolist() == [BOS] * 4
    assert len(builtin_text().split()) > 800


def _phrases(text: str) -> set[str]:
    """All eight words in a row."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + 8]) for i in range(len(words) - 7)}


def test_calibration_reads_another_text() -> None:
    calibration = (files("gemma_edge.converter") / "calibrate" / "text.txt").read_text(encoding="utf-8")
    assert not _phrases(builtin_text()) & _phrases(calibration)  # lines may be broken elsewhere


def test_a_text_of_the_users(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("And God said unto them, " * 20)
    windows = text_windows(path, checkpoint, VOCABULARY, limit=64, window=32)
    assert windows.shape == (2, 32)
    assert windows.dtype == np.int64
    with pytest.raises(TextError, match=r"absent: cannot be read as text .*; give a file in UTF-8$"):
        text_windows(tmp_path / "absent", checkpoint, VOCABULARY, limit=64, window=32)


@pytest.mark.parametrize(("name", "dtype"), [("ids.bin", "<u2"), ("ids.u32", "<u4")])
def test_files_of_tokens(name: str, dtype: str, tmp_path: Path) -> None:
    np.arange(11, dtype=dtype).tofile(tmp_path / name)
    assert file_windows(tmp_path / name, 11, limit=9, window=4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert file_windows(tmp_path / name, 11, limit=100, window=256).tolist() == [list(range(11))]


def test_too_little_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "one.bin").write_bytes(b"\1\0")
    with pytest.raises(VerifyError, match=r"^found 1 tokens in windows of 4, expected at least 2 of both; give more$"):
        file_windows(tmp_path / "one.bin", 11, limit=8, window=4)
    with pytest.raises(VerifyError, match=r"^found 64 tokens in windows of 1, expected at least 2 of both; give more$"):
        text_windows(None, checkpoint, VOCABULARY, limit=64, window=1)
    for name, width in (("odd.bin", 2), ("odd.u32", 4)):
        (tmp_path / name).write_bytes(bytes(33))
        with pytest.raises(VerifyError, match=rf"{name}: found 33 bytes, expected token ids of {width} bytes each;"):
            file_windows(tmp_path / name, 11, limit=8, window=4)
    with pytest.raises(VerifyError, match=r"absent: cannot be read \(No such file or directory\); give another file$"):
        file_windows(tmp_path / "absent", 11, 8, 4)
    np.arange(11, dtype="<u2").tofile(tmp_path / "ids.bin")
    with pytest.raises(
        VerifyError, match=r"ids\.bin: token id 10, expected ids below 10; tokenize with the checkpoint"
    ):
        file_windows(tmp_path / "ids.bin", 10, 100, 4)
