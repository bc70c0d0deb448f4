"""Bounds: their grammar, and what a broken one says."""

import pytest

from gemma_edge.converter.quality.gates import METRICS, Gate, GateError, judge, parse_gates


def test_gates_are_read() -> None:
    assert parse_gates("kl<=0.02, top1 >= 0.95,ppl<=1.02", with_tasks=False) == (
        Gate("kl", "<=", 0.02),
        Gate("top1", ">=", 0.95),
        Gate("ppl", "<=", 1.02),
    )
    assert parse_gates("", with_tasks=False) == ()


@pytest.mark.parametrize("text", ["kl", "kl<0.02", "kl==1", "speed<=1", "kl<=fast", "<=1"])
def test_what_is_no_gate_is_refused(text: str) -> None:
    with pytest.raises(GateError, match=r"^gate '.*': expected METRIC<=BOUND or METRIC>=BOUND, METRIC of kl, "):
        parse_gates(f"top1>=0.5,{text}", with_tasks=False)


@pytest.mark.parametrize("bound", ["1e", "1e999", "-1e999", "."])
def test_a_bound_must_be_a_number(bound: str) -> None:
    with pytest.raises(GateError, match=rf"^gate 'kl<={bound}': '{bound}' is no number; write one such as 0.02$"):
        parse_gates(f"kl<={bound}", with_tasks=False)


def test_a_list_without_a_gate_is_refused() -> None:
    with pytest.raises(GateError, match=r"^gates ' , ': found none in it, expected some such as kl<=0.02; write one"):
        parse_gates(" , ", with_tasks=False)


def test_a_broken_gate_says_metric_bound_and_value() -> None:
    kept, broken = judge(parse_gates("top1>=0.95,kl<=0.02", with_tasks=False), {"top1": 0.95, "kl": 0.0203})
    assert kept.holds
    assert str(kept) == "gate top1 >= 0.95: passed (0.95)"
    assert not broken.holds
    assert str(broken) == "gate kl <= 0.02: FAILED (0.0203)"


def test_a_value_that_is_no_number_keeps_no_gate() -> None:
    verdicts = judge(parse_gates("kl<=1,kl>=0", with_tasks=False), {"kl": float("nan")})
    assert not any(verdict.holds for verdict in verdicts)


def test_a_gate_on_prompts_needs_prompts() -> None:
    assert "tasks" in METRICS
    assert parse_gates("tasks>=1", with_tasks=True) == (Gate("tasks", ">=", 1.0),)
    with pytest.raises(GateError, match=r"^gate 'tasks>=1': there are no prompts to pass; give --prompts, or leave"):
        parse_gates("tasks>=1", with_tasks=False)
