"""A short run of the fuzzer of ONNX directories, and that it sees what it is there for."""

import pytest

from gemma_edge.runtime.formats.onnx_digests import Digests
from tools.fuzz_onnx import case
from tools.fuzzing import RIGHT, Verdict, fuzz

CHANGED_WEIGHTS = 42  # a case of seed 0 that keeps the digests


def test_a_short_run() -> None:
    said: list[str] = []
    counts = fuzz(case, cases=30, seed=2, show=said.append)
    assert not said
    assert set(counts) == set(RIGHT)  # some are refused, and some are not


def test_weights_that_no_digest_vouches_for_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    assert fuzz(case, cases=1, seed=0, first=CHANGED_WEIGHTS, show=said.append) == {Verdict.REFUSED: 1}
    monkeypatch.setattr(Digests, "check", lambda *_: None)
    assert fuzz(case, cases=1, seed=0, first=CHANGED_WEIGHTS, show=said.append) == {Verdict.WRONG: 1}
    assert said[0].startswith(f"case {CHANGED_WEIGHTS} of seed 0: silent wrong result")
