"""Which of text, images and audio a conversion takes: those asked for, or all that the checkpoint has and that fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gemma_edge.converter.calibrate.planning import lay_out, plan_for
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.models.encoders import Modality
from gemma_edge.converter.models.official import official_model
from gemma_edge.converter.plan.door import needs_of
from gemma_edge.converter.plan.fit import fit_target
from gemma_edge.converter.plan.target import Target, TargetError
from gemma_edge.converter.report import Report
from gemma_edge.profiles.budget import OverBudget
from gemma_edge.profiles.footprint import Footprint
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType, SectionKind
from tests.runtime.budget_files import write_profile
from tools.tiny_towers import AUDIO_OFFSET, IMAGE_PIXELS, VISION_OFFSET, VOCAB, write_tiny_towers

TEXT = ["tf_lite_prefill_decode", "tf_lite_embedder", "tf_lite_per_layer_embedder"]
VISION = ["tf_lite_vision_encoder", "tf_lite_vision_adapter"]
AUDIO = ["tf_lite_audio_encoder_hw", "tf_lite_audio_adapter", "tf_lite_end_of_audio"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, timm: None) -> Path:  # noqa: ARG001  before it is built
    """A tiny Gemma 3n with both encoders."""
    directory = tmp_path_factory.mktemp("towers")
    write_tiny_towers(directory)
    return directory


def report_of(checkpoint: Path, out: Path, *modalities: str, **request: Any) -> Report:
    return convert("custom-int8", checkpoint, out, context=128, modalities=modalities or None, **request)


def models_of(path: Path) -> list[str | None]:
    return [s.model_type for s in Bundle.open(path).sections if s.kind is SectionKind.TFLITE_MODEL]


# ---------------------------------------------------------------- what is converted


@pytest.mark.parametrize(
    ("asked", "sections", "left"),
    [
        ((), [*TEXT, *VISION, *AUDIO], set()),
        (("text",), TEXT, {"vision_tower.", "embed_vision.", "audio_tower.", "embed_audio."}),
        (("vision", "text"), [*TEXT, *VISION], {"audio_tower.", "embed_audio."}),
        (("text", "audio"), [*TEXT, *AUDIO], {"vision_tower.", "embed_vision."}),
    ],
)
def test_sections_and_report(
    asked: tuple[str, ...], sections: list[str], left: set[str], checkpoint: Path, tmp_path: Path
) -> None:
    report = report_of(checkpoint, tmp_path / "model.litertlm", *asked)
    assert models_of(tmp_path / "model.litertlm") == sections
    expected = [name for name in ("text", "vision", "audio") if not asked or name in asked]
    assert report.values["modalities"] == expected
    shared_kv = {"keys and values of layers that share KV"}
    assert set(report.values["not_converted"]) - shared_kv == left
    assert ("vision" in report.values["bytes_by_role"]) == ("vision" in expected)
    assert ("on demand" in report.values["bytes_by_placement"]) == (len(expected) > 1)
    assert ("kernel" in report.values["recipe"]["roles"]) == (len(expected) > 1)
    assert report.values["recipe"]["roles"].get("vision", {}).get("encoding") == ("int8" if len(expected) > 1 else None)


def test_encoders_are_files_of_their_own_in_onnx(checkpoint: Path, tmp_path: Path) -> None:
    report_of(checkpoint, tmp_path / "all", format="onnx")
    report_of(checkpoint, tmp_path / "text", "text", format="onnx")
    graphs = {path.name for path in (tmp_path / "all" / "onnx").glob("*.onnx")}
    decoder = {"embed_tokens_int8.onnx", "decoder_model_merged_int8.onnx"}
    assert graphs == decoder | {"vision_encoder_int8.onnx", "audio_encoder_int8.onnx"}
    assert {path.name for path in (tmp_path / "text" / "onnx").glob("*.onnx")} == decoder
    settings = json.loads((tmp_path / "all" / "config.json").read_text())["transformers.js_config"]
    assert settings["use_external_data_format"]["vision_encoder_int8.onnx"] == 1
    assert (tmp_path / "all" / "preprocessor_config.json").exists()
    assert not (tmp_path / "text" / "preprocessor_config.json").exists()


def test_the_plan_is_what_is_written(checkpoint: Path, tmp_path: Path) -> None:
    for container in ("litertlm", "onnx"):
        source, plan = plan_for(Target.parse("custom-int8", context=128, format=container), checkpoint)
        report = report_of(checkpoint, tmp_path / container, format=container)
        assert lay_out(plan, source).nbytes == report.values["output"]["bytes"]
        assert sum(plan.bytes_by("section").values()) == sum(report.values["bytes_by_section"].values())


def test_the_decoder_is_the_same_with_and_without_towers(checkpoint: Path, tmp_path: Path) -> None:
    """But for the rows of the embedding table that media have."""
    hashes = {}
    for name, asked in (("all", ()), ("text", ("text",))):
        report_of(checkpoint, tmp_path / name, *asked)
        bundle = Bundle.open(tmp_path / name)
        hashes[name] = {section.name: bundle.sha256(section) for section in bundle.sections}
    differing = {name for name, digest in hashes["text"].items() if hashes["all"][name] != digest}
    assert differing == {"llm_metadata", "tf_lite_embedder"}


def test_metadata_says_how_large_images_are(checkpoint: Path, tmp_path: Path) -> None:
    kinds = {(): "generic_model", ("text", "vision"): "gemma3n", ("text",): "gemma3n"}
    for number, (asked, kind) in enumerate(kinds.items()):
        report_of(checkpoint, tmp_path / str(number), *asked)
        model_type = Bundle.open(tmp_path / str(number)).metadata().llm_model_type
        assert model_type.WhichOneof("model_type") == kind
        pixels = 0 if asked == ("text",) else IMAGE_PIXELS
        assert getattr(model_type, kind).image_tensor_height == getattr(model_type, kind).image_tensor_width == pixels


def test_a_tower_that_no_shard_holds_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    """As text-only exports have it: config.json still describes what was left out."""
    exported = tmp_path / "exported"
    shutil.copytree(checkpoint, exported)
    _drop(exported / "model.safetensors", ("model.vision_tower.", "model.embed_vision."))
    assert report_of(exported, tmp_path / "model").values["modalities"] == ["text", "audio"]
    with pytest.raises(TargetError) as caught:
        report_of(exported, tmp_path / "model", "text", "vision")
    assert str(caught.value) == ("modalities text,vision: the checkpoint has text, audio; leave vision out")


def _drop(path: Path, prefixes: tuple[str, ...]) -> None:
    from safetensors.numpy import load_file, save_file

    save_file({name: value for name, value in load_file(path).items() if not name.startswith(prefixes)}, path)


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["vision"], "modalities vision: expected text among them; for example --modalities text,vision"),
        ([], "modalities empty: expected text among them; for example --modalities text,vision"),
        (["text", "smell"], "modalities 'smell': expected text or vision or audio; use one of them"),
    ],
)
def test_requests_that_cannot_be(asked: list[str], message: str) -> None:
    with pytest.raises(TargetError) as caught:
        Target.parse("e2b-int4", modalities=asked)
    assert str(caught.value) == message


def test_a_checkpoint_of_text_has_no_eyes(tiny_gemma3n: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        report_of(tiny_gemma3n, tmp_path / "model", "text", "vision")
    assert str(caught.value) == "modalities text,vision: the checkpoint has text; leave vision out"


def test_the_command_line_names_what_it_knows(checkpoint: Path) -> None:
    command = ["plan", "--target", "custom-int8", "--checkpoint", str(checkpoint), "--context", "128", "--json"]
    result = CliRunner().invoke(main, [*command, "--modalities", "text,vision"])
    assert json.loads(result.stdout)["modalities"] == ["text", "vision"]
    refused = CliRunner().invoke(main, [*command, "--modalities", "text,sight"])
    assert refused.exit_code == 2
    assert "'sight': expected a comma-separated list of text, vision, audio" in refused.output


# ---------------------------------------------------------------- what a profile bears


HEAVY = ("vision=fp32", "audio=fp32")
# A small decoder with E2B's encoders: in float32, seeing needs more than answering, and hearing more than seeing.
MODEL = replace(official_model("1b"), encoders=official_model("e2b").encoders)


def footprint_of(*modalities: str) -> Footprint:
    return needs_of(MODEL, Target.parse("1b-int4", modalities=modalities, encoding=HEAVY)).footprint


def fitted(budget_bytes: int, folder: Path, *modalities: str, fit: bool = False) -> tuple[Modality, ...] | None:
    profile = str(write_profile(folder, budget_bytes))
    target = Target.parse("1b-int4", profile=profile, modalities=modalities or None, encoding=HEAVY, fit=fit)
    return fit_target(target, MODEL).target.modalities


def test_encoders_are_counted_when_they_are_the_larger_moment() -> None:
    text, eyes, ears = (footprint_of("text", *other) for other in ((), ("vision",), ("audio",)))
    assert text.total_bytes < eyes.total_bytes < ears.total_bytes
    assert {part.name for part in eyes.parts} >= {"vision encoder", "KV cache"}
    assert footprint_of("text", "vision", "audio") == ears


def test_encoders_cost_nothing_where_answering_needs_more() -> None:
    """E2B with int8 encoders: its decoder is idle while they run."""
    model = official_model("e2b")
    plain, all_of_it = (
        needs_of(model, Target.parse("e2b-int4", modalities=names)).footprint
        for names in (["text"], ["text", "vision", "audio"])
    )
    assert plain == all_of_it


def test_what_the_profile_does_not_bear_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    hearing = footprint_of("text", "audio").total_bytes
    assert fitted(hearing, tmp_path) == (Modality.TEXT, Modality.VISION, Modality.AUDIO)
    assert fitted(hearing - 1, tmp_path) == (Modality.TEXT, Modality.VISION)
    assert fitted(footprint_of("text").total_bytes, tmp_path) == (Modality.TEXT,)
    with pytest.raises(OverBudget) as caught:
        fitted(hearing - 1, tmp_path, "text", "audio")
    assert "--modalities text" in [suggestion.label for suggestion in caught.value.suggestions]


def test_fit_does_not_give_up_what_was_asked_for(tmp_path: Path) -> None:
    budget_bytes = footprint_of("text", "vision").total_bytes
    assert fitted(budget_bytes, tmp_path, fit=True) == (Modality.TEXT, Modality.VISION)
    with pytest.raises(OverBudget):
        fitted(budget_bytes, tmp_path, "text", "audio", fit=True)


# ---------------------------------------------------------------- the rows of media in the embedding table


def test_the_embedding_table_holds_the_tokens_of_media(checkpoint: Path, tmp_path: Path) -> None:
    """Where transformers asks the embedders, the table has their rows; text keeps its own."""
    from ai_edge_litert.interpreter import Interpreter

    oracle = write_tiny_towers(tmp_path / "again")
    convert("custom-fp32", checkpoint, tmp_path / "model", context=128)
    bundle = Bundle.open(tmp_path / "model")
    section = bundle.section(SectionKind.TFLITE_MODEL, ModelType.EMBEDDER)
    lookup = Interpreter(model_content=bundle.read(section)).get_signature_runner()
    found = {i: lookup(token_ids=np.array([[i]], np.int32))["embeddings"][0, 0] for i in range(2040, VOCAB)}
    for i, row in found.items():
        np.testing.assert_allclose(row, _expected_row(oracle, i), rtol=0, atol=1e-5)


def _expected_row(oracle: Any, number: int) -> Any:
    import torch

    ids = torch.tensor([[number]])
    with torch.no_grad():
        if number >= AUDIO_OFFSET:
            return oracle.model.embed_audio(input_ids=ids)[0, 0].numpy()
        if number >= VISION_OFFSET:
            return oracle.model.embed_vision(input_ids=ids)[0, 0].numpy()
        return oracle.get_input_embeddings()(ids)[0, 0].numpy()
