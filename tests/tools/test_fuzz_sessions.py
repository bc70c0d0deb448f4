"""A short run of the fuzzer of slots, and that it sees what it is there for."""

import pytest

from gemma_edge.profiles.signatures import Call
from tools.fuzz_sessions import case
from tools.fuzzing import Verdict, fuzz


def test_a_short_run() -> None:
    said: list[str] = []
    counts = fuzz(case, cases=2, seed=7, limit_s=120.0, show=said.append)
    assert not said
    assert counts == {Verdict.WORKED: 2}


def test_a_verification_past_the_end_of_a_span_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Call, "takes", lambda call, position: position <= call.reach)
    said: list[str] = []
    assert fuzz(case, cases=1, seed=7, limit_s=120.0, show=said.append) == {Verdict.WRONG: 1}
    assert said[0].startswith("case 0 of seed 7: silent wrong result")
