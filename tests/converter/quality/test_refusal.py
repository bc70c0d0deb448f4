"""Bundles that lose too much: refused in one line with exit status 3, and what that line says to do is accepted."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from gemma_edge.converter.calibrate import step
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.plan.target import TargetError
from gemma_edge.converter.quality import remedy, verdict
from gemma_edge.converter.quality.acceptance import QualityError
from gemma_edge.converter.quality.gates import GateError
from gemma_edge.converter.quality.verdict import Bounds, Verdict

SMALL: dict[str, Any] = {"context": 256, "prefill": (16,)}
INT2 = ("attention=int2", "ffn=int2", "head=int2")


@pytest.fixture(scope="module")
def decided(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-gemma3 with logits five times as large: as decided as a large model, and as easily broken."""
    checkpoint = Path(shutil.copytree(tiny_gemma3, tmp_path_factory.mktemp("decided") / "checkpoint"))
    tensors = load_file(checkpoint / "model.safetensors")
    norm = tensors["model.norm.weight"]
    tensors["model.norm.weight"] = ((1 + norm.to(torch.float32)) * 5 - 1).to(norm.dtype)
    save_file(tensors, checkpoint / "model.safetensors")
    return checkpoint


def command(checkpoint: Path, out: Path, *options: str) -> Result:
    """`gemma-edge convert` of int2."""
    target = ["--target", "custom-int4", "--checkpoint", str(checkpoint), "--out", str(out), "--context", "256"]
    int2 = [part for option in INT2 for part in ("--encoding", option)]
    return CliRunner().invoke(main, ["convert", *target, "--prefill", "16", *int2, *options])


@pytest.mark.parametrize(("container", "tried_values"), [("litertlm", 1 << 30), ("onnx", 0)])
def test_what_is_not_usable_is_refused_and_its_remedy_accepted(
    decided: Path, container: str, tried_values: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a try of calibration, on few tokens for speed, and without."""
    monkeypatch.setattr(step, "LARGEST_TOKENS", 1024)
    monkeypatch.setattr(remedy, "_TRIED_VALUES", tried_values)
    out = tmp_path / "model"
    refused = command(decided, out, "--format", container)
    assert refused.exit_code == 3
    assert list(tmp_path.iterdir()) == []
    found = re.fullmatch(
        r"error: KL [\d.]+ nats, perplexity [\d.e+]+ times the checkpoint's: not usable, replies are broken; "
        r"(?P<options>--.+) gives KL (?P<kl>[\d.]+) for (no byte more|[\d.]+ [KM]iB more); "
        r"(--calibrate, which was not tried, takes (no byte|\d+ KiB) more; )?--accept-loss writes it all the same\n",
        refused.stderr,
    )
    assert found is not None, refused.stderr
    accepted = command(decided, out, "--format", container, *shlex.split(found["options"]))
    assert accepted.exit_code == 0, accepted.output
    told = re.search(r"quality: (good|usable|degraded); replies .* \(KL ([\d.]+) nats, top-1", accepted.stdout)
    assert told is not None, accepted.stdout
    assert float(told[2]) == pytest.approx(float(found["kl"]), rel=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.json"]


def test_it_is_written_for_who_accepts_the_loss(decided: Path, tmp_path: Path) -> None:
    result = command(decided, tmp_path / "model.litertlm", "--accept-loss")
    assert result.exit_code == 0, result.output
    assert "quality: not usable; replies are broken (KL" in result.stdout
    inspected = CliRunner().invoke(main, ["inspect", str(tmp_path / "model.litertlm")])
    assert "quality: not usable; replies are broken (KL" in inspected.stdout


def test_the_cheapest_that_was_measured_is_named(
    tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "BOUNDS", {Verdict.GOOD: Bounds(kl=0.01, perplexity_ratio=1.1)})
    monkeypatch.setattr(remedy, "_TRIED_VALUES", 0)
    with pytest.raises(QualityError) as refused:
        convert("custom-int4", tiny_gemma3, tmp_path / "model", encoding=["attention=int2", "ffn=int2"], **SMALL)
    assert re.search(
        r"not usable, replies are broken; --encoding head=int4-b32 --encoding attention=int4-b32 "
        r"--encoding ffn=int4-b32 gives KL 0.00\d+ for "
        r"\d{3} KiB more; --calibrate, which was not tried, takes \d{3} KiB more; --accept-loss writes",
        str(refused.value),
    ), refused.value


def test_where_nothing_helps_that_is_said(tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "BOUNDS", {Verdict.GOOD: Bounds(kl=-1.0, perplexity_ratio=1.0)})
    with pytest.raises(QualityError, match="not usable, replies are broken; no other recipe that was tried does bett"):
        convert("custom-int8", tiny_gemma3, tmp_path / "model", **SMALL)


def test_a_recipe_of_single_tensors_is_left_for_another(
    tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "BOUNDS", {Verdict.GOOD: Bounds(kl=0.001, perplexity_ratio=1.1)})
    recipe = tmp_path / "recipe.toml"
    roles = dict.fromkeys(("embedding", "ple", "head", "attention", "ffn", "altup", "small", "router"), "int8")
    lines = [f'{role} = "{encoding}"' for role, encoding in roles.items()]
    tensors = '[tensors]\n"layers.0.mlp.down_proj.weight" = "int2"\n"layers.1.mlp.down_proj.weight" = "int2"\n'
    recipe.write_text("\n".join(["[roles]", *lines, 'norm = "fp32"', tensors]))
    monkeypatch.setattr(remedy, "_TRIED_VALUES", 0)
    with pytest.raises(QualityError, match=r"; --target custom-int8 instead of --recipe gives KL 0.000\d+ for"):
        convert("custom-int4", tiny_gemma3, tmp_path / "model", recipe=recipe, **SMALL)
    assert not (tmp_path / "model").exists()


def test_a_gate_that_is_not_kept(tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedy, "_TRIED_VALUES", 0)
    with pytest.raises(QualityError) as refused:
        convert("custom-int4", tiny_gemma3, tmp_path / "model", gate="kl<=0.0003,top1>=0.5", accept_loss=True, **SMALL)
    assert re.fullmatch(
        r"gate kl <= 0.0003: FAILED \(0.00\d+\); --encoding .*=int8.* gives KL \S+ for \d+ KiB more; "
        r"--calibrate, which was not tried, takes \d{3} KiB more",
        str(refused.value),
    ), refused.value
    assert list(tmp_path.iterdir()) == []


def test_gates_that_are_kept_are_in_the_report(tiny_gemma3: Path, tmp_path: Path) -> None:
    report = convert("custom-int8", tiny_gemma3, tmp_path / "model", gate="kl<=0.05, ppl<=1.1", **SMALL)
    gates = report.values["quality"]["gates"]
    assert [gate["gate"] for gate in gates] == ["kl <= 0.05", "ppl <= 1.1"]
    assert gates[0]["value"] < 0.05


@pytest.mark.parametrize(
    ("gate", "measure", "message"),
    [
        ("top5>=0.9", True, "gate top5 >= 0.9: convert measures kl, kl_p99, kl_max, top1, ppl; use one of these, or "),
        ("kl<=1", False, "gate kl <= 1: expected a measurement, found --no-measure; leave one of them out"),
        ("kl", True, "gate 'kl': expected METRIC<=BOUND or METRIC>=BOUND"),
    ],
)
def test_a_gate_that_cannot_be_judged(
    gate: str, measure: bool, message: str, tiny_gemma3: Path, tmp_path: Path
) -> None:
    with pytest.raises(GateError, match=re.escape(message)):
        convert("custom-int8", tiny_gemma3, tmp_path / "model", gate=gate, measure=measure, **SMALL)


def test_calibration_with_nothing_to_calibrate(tiny_gemma3: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError) as refused:
        convert("custom-int8", tiny_gemma3, tmp_path / "model", calibrate="built-in", **SMALL)
    assert str(refused.value) == (
        "calibrate: recipe int8 has no weights below 8 bits that could be rounded for a text; leave --calibrate out"
    )
    assert list(tmp_path.iterdir()) == []
