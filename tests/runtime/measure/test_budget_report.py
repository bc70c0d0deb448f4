"""The verdict, the table and the picture of measured budgets."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gemma_edge.profiles.device import Footprint, Part, load_profile
from gemma_edge.profiles.sizes import GIB, MIB
from gemma_edge.runtime.measure.budget_plot import PlotError, plot
from gemma_edge.runtime.measure.budget_report import BudgetReport, PartRow, Sample, Trace

PLAN = Footprint.of(
    [
        Part("decoder weights", 0, 1000 * MIB, "x"),
        Part("PLE rows", 0, 70 * MIB, "x"),
        Part("libraries", 0, 20 * MIB, "x"),
        Part("KV cache", 100 * MIB, 0, "x"),
        Part("tokenizer", 50 * MIB, 0, "x"),
    ]
)
PARTS = {
    "process before the engine": 20 * MIB,
    "tokenizer": 40 * MIB,
    "decoder": 100 * MIB,
    "tf_lite_prefill_decode": 30 * MIB,
    "weight_cache": 900 * MIB,
    "tf_lite_per_layer_embedder": 60 * MIB,
}
SAMPLES = (Sample(0.0, 10 * MIB, 5 * MIB), Sample(1.0, 200 * MIB, 900 * MIB), Sample(2.0, 180 * MIB, 950 * MIB))
FREE = Trace(
    10.0, 200 * MIB, 1000 * MIB, None, None, None, PARTS, SAMPLES, {"load": 0.4, "prefill": 0.5, "decode": 1.9}
)
LIMITED = replace(FREE, decode_tokens_per_s=9.0, hard_bytes=210 * MIB, charge_bytes=1200 * MIB, reread_bytes=300 * MIB)


def report(free: Trace | None = FREE, limited: Trace | None = LIMITED) -> BudgetReport:
    return BudgetReport("e2b.litertlm", load_profile("phone-2gb"), PLAN, "" if limited else "no rights", free, limited)


def test_within_the_budget_and_fast_enough() -> None:
    found = report()
    assert found.passed
    assert found.speed == 0.9
    assert found.peak_bytes == 210 * MIB
    assert found.text().endswith("PASSED")


def test_each_condition_of_the_definition() -> None:
    slow = report(limited=replace(LIMITED, decode_tokens_per_s=7.9))
    assert slow.failures == ("decodes at 79% of its speed without the cgroup, expected 80%",)
    assert replace(slow, least_speed=0.5).passed
    busy = report(limited=replace(LIMITED, decode_tokens_per_s=7.9, reread_bytes=0))
    assert busy.failures == (
        f"{slow.failures[0]}; hardly a page was read twice, so other programs slowed it: measure on a quiet machine",
    )
    large = report(free=replace(FREE, hard_bytes=3 * GIB), limited=None)
    assert large.failures == ("peak anonymous memory 3.00 GiB, the budget is 2.00 GiB",)
    assert large.speed is None
    killed = report(limited=replace(LIMITED, error="the kernel killed it for memory", decode_tokens_per_s=0))
    assert killed.failures == ("did not complete in a cgroup of 2.00 GiB: the kernel killed it for memory",)
    assert killed.text().endswith(f"FAILED: {killed.failures[0]}")
    with pytest.raises(ValueError, match="a report needs at least one run"):
        report(free=None, limited=None)


def test_plan_against_measurement() -> None:
    assert report().rows() == (
        PartRow("decoder weights", 1000 * MIB, 930 * MIB),
        PartRow("PLE rows", 70 * MIB, 60 * MIB),
        PartRow("libraries and other files", 20 * MIB, 10 * MIB),
        PartRow("tokenizer", 50 * MIB, 40 * MIB),
        PartRow("KV cache, activations, runtime", 100 * MIB, 170 * MIB),
    )
    lines = [re.sub("  +", "  ", line) for line in report().text().splitlines()]
    assert lines[:3] == ["e2b.litertlm on phone-2gb", "  planned  measured", "decoder weights  1000 MiB  930 MiB"]
    assert "anonymous, peak  150 MiB  210 MiB" in lines
    assert "cgroup, page cache charged  1.17 GiB" in lines
    assert "dropped and read again  300 MiB" in lines
    assert "decode, tok/s  9.0" in lines
    assert "  without the cgroup  10.0" in lines


def test_parts_are_not_told_apart_by_a_process_that_was_killed() -> None:
    killed = report(limited=replace(LIMITED, error="the kernel killed it for memory", parts={}))
    assert killed.rows() == (
        PartRow("all mapped files", 1090 * MIB, 1000 * MIB),
        PartRow("all anonymous memory", 150 * MIB, 210 * MIB),
    )


def test_sampling_is_said() -> None:
    text = report(limited=None).text()
    assert "measured by sampling, decode speed inside the limit not tested (no rights)" in text
    assert "without the cgroup" not in text


def test_json() -> None:
    values = json.loads(json.dumps(report().values()))
    assert (values["method"], values["passed"], values["speed"]) == ("cgroup", True, 0.9)
    assert values["parts"][0] == {
        "name": "decoder weights",
        "planned_bytes": 1000 * MIB,
        "measured_bytes": 930 * MIB,
    }
    assert values["limited"]["hard_bytes"] == 210 * MIB
    assert report(free=None).values()["free"] is None
    assert report(limited=None).values()["method"] == "sampling"


def test_pictures(tmp_path: Path) -> None:
    plot(report(), tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
    failed = report(limited=replace(LIMITED, error="killed", hard_bytes=3 * GIB, phase_s={}, parts={}))
    plot(failed, tmp_path / "memory.svg")
    text = (tmp_path / "memory.svg").read_text()
    for words in ("e2b.litertlm on phone-2gb: FAILED", "budget, 2048 MiB", "planned", "measured"):
        assert f"<!-- {words} -->" in text


def test_pictures_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlotError) as caught:
        plot(report(), tmp_path / "memory.jpeg")
    assert str(caught.value) == f"{tmp_path}/memory.jpeg: found .jpeg, expected .png or .svg; rename it"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlotError, match=r"matplotlib is not installed, .*; pip install 'gemma-edge\[plot\]'"):
        plot(report(), tmp_path / "memory.png")
