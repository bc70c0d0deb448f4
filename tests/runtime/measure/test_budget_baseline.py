"""Baselines: what grows, what is written, and files that are none."""

import json
import multiprocessing
from pathlib import Path

import pytest

from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.measure.budget_baseline import Baseline, BaselineError


def update(path: Path, key: str) -> None:
    Baseline(path, 10, update=True).judge(key, 100 * MIB)


def test_growth_within_the_percentage_passes(tmp_path: Path) -> None:
    path = tmp_path / "peaks.json"
    update(path, "a")
    baseline = Baseline(path, 10, update=False)
    assert baseline.judge("a", 1 * MIB) is None
    assert baseline.judge("a", 110 * MIB) is None
    assert baseline.judge("a", 111 * MIB) == (
        "peak anonymous memory of a grew by 11.0%, from 100 MiB to 111 MiB; 10 % are allowed, or accept it with "
        "--memory-budget-update"
    )
    assert baseline.judge("b", 1) == (
        f"{path} has no baseline of b; run once with --memory-budget-update and commit the file"
    )


def test_writers_keep_what_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / "peaks.json"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(update, [(path, f"test {number}") for number in range(20)])
    assert json.loads(path.read_text()) == {f"test {number}": {"peak_bytes": 100 * MIB} for number in range(20)}


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", '{"a": 1}', '{"a": {"peak_bytes": "x"}}', '{"a": {"peak_bytes": 0}}', "\xff"),
        *('{"a": {"peak_bytes": -1}}', '{"a": {"peak_bytes": Infinity}}', '{"a": {"peak_bytes": "100"}}'),
    ],
)
def test_a_file_that_holds_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "peaks.json"
    path.write_text(text, "latin-1")
    with pytest.raises(BaselineError) as caught:
        Baseline(path, 10, update=False).judge("a", 1)
    assert str(caught.value) == (
        f'{path}: found no JSON of {{"KEY": {{"peak_bytes": N}}}}; delete it and run with --memory-budget-update'
    )


@pytest.mark.parametrize("update", [False, True])
def test_a_file_that_cannot_be_opened(tmp_path: Path, update: bool) -> None:
    with pytest.raises(BaselineError) as caught:
        Baseline(tmp_path, 10, update).judge("a", 1)
    assert str(caught.value) == (
        f"{tmp_path}: Is a directory, expected a file of accepted peaks; name another with --memory-budget-baseline"
    )


@pytest.mark.parametrize("percent", [-1, 1000])
def test_a_growth_that_cannot_be_meant(tmp_path: Path, percent: float) -> None:
    with pytest.raises(BaselineError, match=f"growth is {percent} %, expected 0 to 1000; the usual value is 10"):
        Baseline(tmp_path / "peaks.json", percent, update=False)
