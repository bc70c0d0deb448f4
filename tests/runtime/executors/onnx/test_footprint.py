"""An ONNX directory's footprint against the plan it was converted by."""

import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from gemma_edge.converter.calibrate.planning import plan_for
from gemma_edge.converter.convert import convert
from gemma_edge.converter.plan.target import Target
from gemma_edge.profiles.budget import MemoryBudget
from gemma_edge.profiles.costs_encoders import EncoderKind
from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.onnx.decoder import OnnxDecoder
from gemma_edge.runtime.executors.onnx.footprint import OnnxPlan
from gemma_edge.runtime.executors.open import plan_of
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from tools.tiny_towers import IMAGE_PIXELS, write_tiny_towers

CONTEXT_TOKENS = 512
SMALL_BYTES = 1 << 16  # vectors inside the graph, and blocks' scales


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, tiny_gemma3n: Path) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "model"
    convert("custom-int4", tiny_gemma3n, out, context=CONTEXT_TOKENS, format="onnx")
    return out


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32"])
@pytest.mark.parametrize("family", ["gemma3", "gemma3n", "gemma4"])
def test_the_directory_says_what_the_plan_said(
    family: str, precision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(f"tiny_{family}")
    convert(f"custom-{precision}", checkpoint, tmp_path / "model", context=CONTEXT_TOKENS, format="onnx")
    target = Target.parse(f"custom-{precision}", context=CONTEXT_TOKENS, format="onnx")
    plan = plan_for(target, checkpoint)[1].footprint
    found = plan_of(OnnxDirectory.open(tmp_path / "model")).footprint()
    assert [part.name for part in found.parts] == [part.name for part in plan.parts]
    assert found.anon_bytes == plan.anon_bytes
    for ours, theirs in zip(found.parts, plan.parts, strict=True):
        assert abs(ours.file_bytes - theirs.file_bytes) < SMALL_BYTES, ours.name


def test_encoders_count(tmp_path: Path) -> None:
    write_tiny_towers(tmp_path / "checkpoint")
    options: dict[str, Any] = {"format": "onnx", "modalities": ("text", "vision", "audio")}
    convert("custom-int8", tmp_path / "checkpoint", tmp_path / "model", **options)
    plan = OnnxPlan.of(OnnxDirectory.open(tmp_path / "model"))
    vision, audio = plan.encoders
    assert (vision.kind, vision.inputs) == (EncoderKind.VISION, IMAGE_PIXELS**2)
    assert (audio.kind, audio.inputs) == (EncoderKind.AUDIO, 2997)  # 30 s, as the graph takes any number of frames
    data = {path.name: path.stat().st_size for path in (tmp_path / "model" / "onnx").iterdir()}
    assert 0 < vision.weights_bytes <= data["vision_encoder_int8.onnx_data"]
    assert 0 < audio.weights_bytes <= data["audio_encoder_int8.onnx_data"]
    assert plan.footprint().parts[-1] == audio.part  # of the larger moment


def test_a_shorter_context_needs_less(directory: Path) -> None:
    plan = OnnxPlan.of(OnnxDirectory.open(directory))
    # 5 layers own a cache of 2 heads x 32: 3 rings of 64 + 128 slots, 2 with the whole context; K and V; float32.
    row_bytes = 2 * 2 * 32 * 4
    assert plan.context_tokens == CONTEXT_TOKENS
    assert plan.footprint().anon_bytes - plan.footprint(256).anon_bytes == 2 * 256 * row_bytes
    # In 192 tokens rings are shorter too, and so are their snapshots.
    assert plan.footprint(192).anon_bytes - plan.footprint(128).anon_bytes == (5 + 3) * 64 * row_bytes


def test_each_conversation_that_is_kept_takes_a_cache_and_a_snapshot(directory: Path) -> None:
    plan = OnnxPlan.of(OnnxDirectory.open(directory))
    decoder = OnnxDecoder(OnnxDirectory.open(directory), 1, None)
    for context in (CONTEXT_TOKENS, 128):
        each = decoder.slot_bytes(context) + decoder.snapshot_bytes(context)
        assert plan.footprint(context, slots=4).anon_bytes - plan.footprint(context).anon_bytes == 3 * each
    assert decoder.slot_bytes() == decoder.new_slot().nbytes
    assert decoder.snapshot_bytes() == decoder.new_slot().snapshot().nbytes


def test_the_longest_context_that_fits(directory: Path) -> None:
    plan = OnnxPlan.of(OnnxDirectory.open(directory))
    assert plan.longest_context(MemoryBudget(plan.footprint().total_bytes)) == 512
    assert plan.longest_context(MemoryBudget(plan.footprint().total_bytes - 1)) == 256
    assert plan.longest_context(MemoryBudget(plan.footprint(256).total_bytes - 1)) is None


def test_weights_without_a_cache_are_anonymous(directory: Path) -> None:
    plan = OnnxPlan.of(OnnxDirectory.open(directory))
    mapped, packed = plan.footprint(), plan.footprint(anonymous_weights=True)
    [weights] = [part for part in mapped.parts if part.name == "decoder weights"]
    assert packed.total_bytes == mapped.total_bytes
    assert packed.anon_bytes - mapped.anon_bytes == weights.file_bytes > plan.weights_bytes


def test_a_graph_that_is_no_decoder(directory: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    path = OnnxDirectory.open(copy).graph_path("decoder_model_merged")
    (copy / "digests.json").unlink()
    ir.save(ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10), path)
    with pytest.raises(BundleMismatchError) as caught:
        plan_of(OnnxDirectory.open(copy))
    assert str(caught.value) == (
        f"{path}: found no weights, keys and values of a decoder, its memory cannot be computed; "
        "convert the checkpoint with gemma-edge"
    )
