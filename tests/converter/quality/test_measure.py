"""What `convert` says it lost: the figures that `verify` finds in the finished bundle, in any recipe and format."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from gemma_edge.converter.calibrate.planning import lay_out, plan_for
from gemma_edge.converter.checkpoint.checkpoint import CheckpointError
from gemma_edge.converter.convert import convert
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.litert.bundle import LitertBundle
from gemma_edge.converter.litert.file import TfliteFile
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.official import official_model
from gemma_edge.converter.onnx.bundle import OnnxBundle
from gemma_edge.converter.plan.door import DECODER
from gemma_edge.converter.plan.target import Target, calibration_text
from gemma_edge.converter.quality.measure import SHORT, WHOLE, extent_of
from gemma_edge.converter.verify.verify import verify
from tests.converter.checkpoint.adapters import write_adapter
from tools.tiny import TINY, write_tiny

SMALL: dict[str, Any] = {"context": 256, "prefill": (16,)}
NEAR = 0.15
CASES: dict[str, dict[str, Any]] = {
    "int8": {"target": "custom-int8"},
    "int4": {"target": "custom-int4"},
    "int4, blocks": {"target": "custom-int4", "encoding": ["attention=int4-b32", "ffn=int4-b32"]},
    "int4, calibrated": {"target": "custom-int4", "calibrate": "short"},
    "int2": {"target": "custom-int4", "encoding": ["attention=int2", "ffn=int2"]},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is calibrated on, short for speed."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(calibration_text("built-in").content[:3000])
    return path


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])
def test_it_is_what_verify_finds(
    name: str, case: str, container: str, repository: Path, text: Path, tmp_path: Path
) -> None:
    checkpoint, bundle = repository / "tests" / "fixtures" / name, tmp_path / "model"
    options = CASES[case] | ({"calibrate": text} if "calibrate" in CASES[case] else {})
    told = convert(checkpoint=checkpoint, out=bundle, format=container, **SMALL, **options).values["quality"]
    found = verify(bundle, checkpoint, cache_dir=str(tmp_path))
    metrics = {key: metric.value for key, metric in found.bundle.metrics.items()}
    assert told["tokens"] == found.windows * found.window_tokens >= 256
    assert told["kl"] == pytest.approx(metrics["kl"], rel=NEAR)
    assert told["top1"] == pytest.approx(metrics["top1"], abs=0.02)
    assert told["perplexity"] == pytest.approx(metrics["perplexity"], rel=0.01)
    assert told["reference_perplexity"] == pytest.approx(metrics["reference_perplexity"], rel=1e-3)


def test_an_adapter_is_part_of_both(tiny_gemma3: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", tiny_gemma3)
    told = convert("custom-int4", tiny_gemma3, tmp_path / "model", lora=adapter, **SMALL).values["quality"]
    plain = convert("custom-int4", tiny_gemma3, tmp_path / "plain", **SMALL).values["quality"]
    assert told["reference_perplexity"] != plain["reference_perplexity"]
    assert 0 < plain["kl"] < told["kl"] < 1  # random changes are no model that was trained


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
@pytest.mark.parametrize("name", TINY)
def test_matrices_are_stored_in_the_order_in_which_they_are_measured(name: str, container: str, tmp_path: Path) -> None:
    """Else the thread that measures and those that store would wait for each other."""
    write_tiny(name, tmp_path)
    source, plan = plan_for(Target.parse("custom-int4", context=64, prefill=(16,), format=container), tmp_path)
    bundle = lay_out(plan, source)
    if isinstance(bundle, OnnxBundle):
        stored = [weight for graph in bundle.graphs for weight in graph.weights]
    else:
        assert isinstance(bundle, LitertBundle)
        [decoder] = (s.content for s in bundle.sections if s.name == "tf_lite_prefill_decode")
        assert isinstance(decoder, TfliteFile)
        stored = list(decoder.weights)
    measured = list(dict.fromkeys(op.weight.name for op in StreamingModel(source, plan.model).linears))
    assert [name for name in stored if name in measured] == measured
    assert plan.graphs[DECODER]


def test_of_large_models_less_is_read(tiny_gemma3: Path) -> None:
    assert extent_of(Model.from_json(json.loads((tiny_gemma3 / "config.json").read_text()))) is WHOLE
    assert extent_of(official_model("e2b")) is SHORT
    assert SHORT.tokens >= 256


def test_a_context_shorter_than_a_window(tiny_gemma3: Path, tmp_path: Path) -> None:
    told = convert("custom-int8", tiny_gemma3, tmp_path / "model", context=16, prefill=(8,)).values["quality"]
    assert told["tokens"] >= 256
    assert told["verdict"] == "good"


def test_a_checkpoint_that_computes_no_numbers_is_refused(tiny_gemma3: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for file in tiny_gemma3.iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    tensors = load_file(checkpoint / "model.safetensors")
    for part, value in (("gate", 4e11), ("up", 5e11), ("down", 4e11)):  # each a number, multiplied they are infinite
        tensors[f"model.layers.0.mlp.{part}_proj.weight"].fill_(value)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError) as refusal:
        convert("custom-fp32", checkpoint, tmp_path / "model", **SMALL)
    assert str(refusal.value) == (
        f"{checkpoint}: computes NaN or infinite logits, of which nothing can be made; its largest weights, up to "
        "5e+11, are in layers.0.mlp.up_proj.weight: the checkpoint is damaged, get it again"
    )
    assert sorted(tmp_path.iterdir()) == [checkpoint]


def test_it_can_be_left_out(tiny_gemma3: Path, tmp_path: Path) -> None:
    stages: list[str] = []

    def stage(name: str, _total_bytes: int) -> Any:
        stages.append(name)
        return lambda _n: None

    told = convert("custom-int8", tiny_gemma3, tmp_path / "model", measure=False, stage=stage, **SMALL).values
    assert told["quality"] == {"verdict": "not measured", "meaning": "convert was told not to measure (--no-measure)"}
    assert "measure" not in stages


def test_its_stage_comes_to_its_end(tiny_gemma3n: Path, tmp_path: Path) -> None:
    totals: dict[str, int] = {}
    seen: dict[str, int] = {}

    def stage(name: str, total_bytes: int) -> Any:
        totals[name] = total_bytes

        def on_bytes(n: int) -> None:
            seen[name] = seen.get(name, 0) + n

        return on_bytes

    convert("custom-int4", tiny_gemma3n, tmp_path / "model", stage=stage, **SMALL)
    assert seen["measure"] == pytest.approx(totals["measure"], rel=0.01)


def test_the_report_says_it_beside_the_bundle(tiny_gemma3: Path, tmp_path: Path) -> None:
    report = convert("custom-int4", tiny_gemma3, tmp_path / "model", **SMALL)
    stored = json.loads((tmp_path / "model.json").read_text())["quality"]
    assert stored == report.values["quality"]
    assert stored["text"] == "built-in"
    assert np.isfinite([stored["kl"], stored["kl_p99"], stored["kl_max"]]).all()
