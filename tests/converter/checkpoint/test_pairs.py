"""Two models of the same weights in one bundle: a checkpoint and a slice of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.planning import published_plan
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.slices.view import in_parts
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.litert.lower import emit
from gemma_edge.converter.litert.stored import stored_rows
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.matformer.pair import large_model, small_model
from gemma_edge.converter.models.matformer.slices import Slice, SliceError, published
from gemma_edge.converter.plan.target import Target, TargetError
from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.verify import verify
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.formats.litertlm import Bundle, BundleError, BundleLayout, ModelType, SectionKind, SectionSpec
from gemma_edge.runtime.formats.model import models_of
from tests.converter.checkpoint.test_slices import check_litert_lm
from tests.oracles import Oracle
from tools.tiny import E4B_SHAPED, write_tiny

OPTIONS: dict[str, Any] = {"context": 64, "prefill": (8,), "measure": False}
CUT = "ffn = [256, 256, 256, 512, 256, 256, 256, 512]\nskipped = [6, 7]\n"  # of ten layers with 512
TOLERANCE = 1e-3  # as in test_slices.py: 35 random layers make of noise in the last bit 2e-4
IDS = np.random.default_rng(3).integers(0, 2048, 40).tolist()  # longer than the window

Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def ten_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and beside it the description of a slice."""
    path = tmp_path_factory.mktemp("ten") / "checkpoint"
    write_tiny("gemma3n-pattern", path)
    (path.parent / "small.toml").write_text(CUT)
    return path


def decoder_of(bundle: Path) -> LitertDecoder:
    return LitertDecoder(DecoderSections.of(Bundle.open(bundle)), 2, bundle.parent / "cache")


def logits_of(decoder: LitertDecoder, model: str | None = None) -> Logits:
    """Of the last eight of IDS, [8, V]."""
    slot = decoder.new_slot()
    if model is not None:
        slot = decoder.switched(slot, model)
    slot.prefill(IDS[:-8])
    return np.stack([slot.decode(token).copy() for token in IDS[-8:]])


def test_both_models_of_an_e4b_are_those_of_their_single_bundles(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    reference = write_tiny(E4B_SHAPED, checkpoint)
    convert("custom+e2b-fp32", checkpoint, tmp_path / "pair.litertlm", **OPTIONS)
    convert("custom-fp32", checkpoint, tmp_path / "large.litertlm", **OPTIONS)
    convert("custom-fp32", checkpoint, tmp_path / "small.litertlm", slice="e2b", **OPTIONS)
    pair = decoder_of(tmp_path / "pair.litertlm")
    assert pair.models == ("custom", "e2b")
    large, small = (logits_of(decoder_of(tmp_path / f"{name}.litertlm")) for name in ("large", "small"))
    assert np.array_equal(logits_of(pair, "e2b"), small)
    assert np.abs(logits_of(pair) - large).max() < TOLERANCE
    assert np.abs(large - small).max() > 1
    packed = {path.name: path.stat().st_size for path in (tmp_path / "cache").rglob("*.xnnpack")}
    assert len(packed) == 3
    largest, second, _ = sorted(packed.values(), reverse=True)  # the pair's, and that of the large one alone
    assert largest < 1.02 * second
    check_litert_lm(tmp_path / "pair.litertlm", Oracle(reference))


def test_weights_in_four_bits_have_the_same_codes(ten_layers: Path, tmp_path: Path) -> None:
    """Where columns are not balanced, which follows from what a model computes, and have scales in blocks."""
    recipe = tmp_path / "plain.toml"
    recipe.write_text((Path(__file__).parents[3] / "converter/quantize/recipe_data/int4.toml").read_text())
    recipe.write_text(recipe.read_text().replace("balance = true", "balance = false"))
    options = {**OPTIONS, "recipe": recipe, "encoding": ("ffn=int4-b64",)}
    cut = ten_layers.parent / "small.toml"
    convert("custom-int4", ten_layers, tmp_path / "pair.litertlm", with_slice=cut, **options)
    convert("custom-int4", ten_layers, tmp_path / "large.litertlm", **options)
    convert("custom-int4", ten_layers, tmp_path / "small.litertlm", slice=cut, **options)
    pair = decoder_of(tmp_path / "pair.litertlm")
    assert np.array_equal(logits_of(pair, "small"), logits_of(decoder_of(tmp_path / "small.litertlm")))
    whole = Model.from_json(Checkpoint.open(ten_layers).text_config)
    parts = large_model(whole, Slice("small", (256, 256, 256, 512, 256, 256, 256, 512), (6, 7))).tensors
    stored = stored_rows(tmp_path / "pair.litertlm", parts)
    single = stored_rows(tmp_path / "large.litertlm", whole.tensors)
    for which, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        name = f"layers.1.mlp.{which}"
        halves = [stored[f"{name}.part{number}.weight"][0] for number in (0, 1)]
        [expected] = single[f"{name}.weight"]
        assert expected.encoding.name == "int4"
        assert np.array_equal(np.concatenate([half.data for half in halves], axis), expected.data), which
        scales = [half.scales for half in halves if half.scales is not None]
        assert expected.scales is not None
        assert np.array_equal(np.concatenate(scales, axis), expected.scales), which


def test_every_precision_runs_and_is_told_of(ten_layers: Path, tmp_path: Path) -> None:
    cut = ten_layers.parent / "small.toml"
    report = convert("custom-int8", ten_layers, tmp_path / "x.litertlm", with_slice=cut, **OPTIONS)
    large, small = report.values["models"]
    assert (large["name"], large["layers"], small["name"], small["layers"]) == ("custom", 10, "small", 8)
    assert small["weight_bytes"] < 0.8 * large["weight_bytes"]
    assert np.isfinite(logits_of(decoder_of(tmp_path / "x.litertlm"), "small")).all()
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "x.litertlm")])
    assert "model custom: 10 layers, feed-forward widths of 512 to 512" in shown.stdout
    assert "model small: 8 layers, feed-forward widths of 256 to 512" in shown.stdout
    values = json.loads(CliRunner().invoke(main, ["inspect", str(tmp_path / "x.litertlm"), "--json"]).stdout)
    assert values["models"][1]["layers"] == [0, 1, 2, 3, 4, 5, 8, 9]
    arguments = ["plan", "--target", "custom-int8", "--checkpoint", str(ten_layers), "--with-slice", str(cut)]
    planned = CliRunner().invoke(main, [*arguments, "--profile", "phone-2gb", "--context", "64"])
    assert "model small: 8 layers" in planned.stdout


def test_verify_compares_with_either(ten_layers: Path, tmp_path: Path) -> None:
    bundle, cut = tmp_path / "x.litertlm", ten_layers.parent / "small.toml"
    convert("custom-fp32", ten_layers, bundle, with_slice=cut, **OPTIONS)
    how: dict[str, Any] = {"limit": 64, "window": 32, "cache_dir": str(tmp_path)}
    for choice in (None, cut):
        report = verify(bundle, ten_layers, slice=choice, **how)
        assert report.bundle.metrics["kl"].value < 1e-4
        assert not report.findings
        assert {tensor.name for tensor in report.tensors if "part1" in tensor.name} or choice == cut
    other = tmp_path / "other.toml"
    other.write_text(CUT.replace("512", "256"))
    with pytest.raises(VerifyError, match=r"holds custom and small, which is not slice other; give --slice small or"):
        verify(bundle, ten_layers, slice=other, **how)


def test_two_models_take_hardly_more_than_the_large_one() -> None:
    """At full size, to the byte: the sections of the decoder and its tables."""
    nbytes = {}
    for name in ("e4b-int4", "e4b+e2b-int4"):
        plan = published_plan(Target.parse(name, prefill=(16,), modalities=("text",), context=1024))
        assert plan is not None
        assert plan.target.name == name
        encodings = {key: storage.encoding for key, storage in plan.storages.items()}
        sections = plan.graphs.items()
        nbytes[name] = sum(emit("", list(graphs), encodings, plan.cache_layout).lay_out() for _, graphs in sections)
    assert nbytes["e4b-int4"] < nbytes["e4b+e2b-int4"] < 1.02 * nbytes["e4b-int4"]
    assert plan is not None
    assert [model.layers for model in plan.models] == [35, 30]
    assert plan.models[1].weight_bytes < 0.6 * plan.models[0].weight_bytes


def test_parts_are_what_the_checkpoint_stores(ten_layers: Path) -> None:
    whole = Checkpoint.open(ten_layers)
    cut = Slice("small", (256, 256, 256, 512, 256, 256, 256, 512), (6, 7))
    large = large_model(Model.from_json(whole.text_config), cut)
    parts = in_parts(whole, large)
    parts.match(large.tensors.values(), large.config.unused_tensors())
    down = whole.read("layers.0.mlp.down_proj.weight")
    assert np.array_equal(parts.read("layers.0.mlp.down_proj.part0.weight"), down[:, :256])
    assert np.array_equal(parts.read("layers.0.mlp.down_proj.part1.weight"), down[:, 256:])
    projection = whole.read("per_layer_model_projection.weight")
    assert np.array_equal(parts.read("per_layer_model_projection.part1.weight"), projection[6 * 32 : 8 * 32])
    assert parts.resolve("layers.0.mlp.down_proj.weight") is None
    assert "layers.3.mlp.down_proj.weight" in large.tensors  # of which the slice keeps all
    small = small_model(large, cut)
    assert "layers.9.mlp.down_proj.weight" in small.tensors
    assert not any(
        name.startswith(("layers.6.", "layers.7.")) or "part1." in name.partition("mlp")[2] for name in small.tensors
    )


def test_what_cannot_be_is_refused(ten_layers: Path, tmp_path: Path) -> None:
    model = Model.from_json(Checkpoint.open(ten_layers).text_config)
    widths = (512,) * 10
    with pytest.raises(SliceError, match=r"slice all: leaves nothing out, so that there is one model; give a smaller"):
        large_model(model, Slice("all", widths))
    with pytest.raises(SliceError, match=r"'prefill_a': its name becomes that of a model in the bundle, expected"):
        large_model(model, Slice("prefill_a", (256,) * 10))
    with pytest.raises(SliceError, match=r"e2\.49: cut from Gemma 3n, this is gemma3; give Gemma 3n E4B"):
        large_model(Target.parse("1b-int4").official_model(), published("e2.49"))
    with pytest.raises(TargetError, match=r"with-slice e2b: onnx holds one model; use --format litertlm"):
        Target.parse("e4b+e2b-int4", format="onnx")
    with pytest.raises(TargetError, match=r"slice e3\.39 with-slice e2b: the larger of two models is the whole"):
        Target.parse("e4b+e2b-int4", slice="e3.39")
    with pytest.raises(TargetError, match=r"target e4b\+e2b-int4 and slice e1\.91: both name a slice; leave one out"):
        Target.parse("e4b+e2b-int4", with_slice="e1.91")
    with pytest.raises(TargetError, match=r"target 'e2b\+e4b-int4': expected \{.* or both such as e4b\+e2b-int4"):
        Target.parse("e2b+e4b-int4")
    (tmp_path / "custom.toml").write_text(CUT)
    with pytest.raises(TargetError, match=r"with-slice custom: both models would be called so; give the slice another"):
        Target.parse("custom-int4", with_slice=tmp_path / "custom.toml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"a":{"layers":[0],"ffn_widths":[8]}}',
        '{"a":{"layers":[1],"ffn_widths":[8]},"b":{"layers":[1],"ffn_widths":[8]}}',
        '{"a":{"layers":[0],"ffn_widths":[8]},"b":{"layers":[1],"ffn_widths":[8]}}',
        '{"a":{"layers":[0],"ffn_widths":[Infinity]},"b":{}}',
    ],
)
def test_damaged_words_about_models_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.litertlm"
    spec = SectionSpec(SectionKind.TFLITE_MODEL, 4, ModelType.PREFILL_DECODE, {"models": text})
    layout = BundleLayout.of([spec], "x")
    path.write_bytes(layout.header.ljust(layout.nbytes, b"\0"))
    with pytest.raises(BundleError, match=r"x\.litertlm: what it says of its models is damaged \(.*\); copy the file"):
        models_of(Bundle.open(path))
