"""Held-out text is long enough, and none of it is in the texts that calibration and verification read."""

from pathlib import Path

import numpy as np
import pytest

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from tools.heldout import FOLDER, NAMES, heldout_windows

BUILT_IN = ("converter/calibrate/text.txt", "converter/quality/text.txt")
SAME_CHARACTERS = 50


def stretches(text: str) -> set[str]:
    """Every SAME_CHARACTERS in a row, however lines are broken."""
    joined = " ".join(text.split())
    return {joined[i : i + SAME_CHARACTERS] for i in range(len(joined) - SAME_CHARACTERS + 1)}


@pytest.mark.parametrize("built_in", BUILT_IN)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_shared_with_a_built_in_text(name: str, built_in: str, repository: Path) -> None:
    here = stretches((FOLDER / f"{name}.txt").read_text(encoding="utf-8"))
    assert len(here) > 10_000
    assert not here & stretches((repository / built_in).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_it_has_32_windows_of_gemmas_tokens(name: str, real_checkpoint: Path) -> None:
    vocabulary = Checkpoint.open(real_checkpoint).text_config["vocab_size"]
    windows = heldout_windows(name, real_checkpoint, vocabulary)
    assert windows.shape == (32, 256)
    assert (windows[:, 0] == 2).all()  # <bos>
    assert len(np.unique(windows)) > 1000


def test_fewer_windows_are_spread_over_the_text(tiny_gemma3: Path) -> None:
    every, some = (heldout_windows("prose", tiny_gemma3, 2048, tokens=64, count=count) for count in (10_000, 4))
    assert some.shape == (4, 64)
    np.testing.assert_array_equal(some, every[np.arange(4) * len(every) // 4])


def test_its_sources_are_said() -> None:
    said = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}.txt`" in said for name in NAMES)
