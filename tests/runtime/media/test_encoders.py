"""Bundles and directories whose encoders are not what they should be, or that have none."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gemma_edge.converter.graph.ops import Graph
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.litert.footprint import BundlePlan
from gemma_edge.runtime.executors.litert.sections import audio_size, vision_size
from gemma_edge.runtime.executors.onnx.encoders import OnnxEncoders
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType, SectionKind, SectionSpec
from gemma_edge.runtime.formats.onnx_digests import Digests
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from gemma_edge.runtime.measure import encoder_bench as bench
from gemma_edge.runtime.media.audio import wav_bytes
from gemma_edge.runtime.media.encoders import AudioSize
from gemma_edge.runtime.media.mel import GEMMA3N
from gemma_edge.runtime.tasks.media import transcribe
from tests.bundles import write_bundle
from tests.converter.litert.tflite_runs import fill

TinyBundle = Callable[[str, str], Path]


def bundle_of(path: Path, sections: Mapping[ModelType, bytes]) -> Bundle:
    specs = [SectionSpec(SectionKind.TFLITE_MODEL, len(data), model_type) for model_type, data in sections.items()]
    write_bundle(path, specs, list(sections.values()))
    return Bundle.open(path)


@pytest.fixture
def embedder(tiny_bundle: TinyBundle) -> bytes:
    """A model that is no encoder: token_ids [1, 1] -> embeddings [1, 1, 128]."""
    bundle = Bundle.open(tiny_bundle("gemma3n", "int4"))
    return bundle.read(bundle.section(SectionKind.TFLITE_MODEL, ModelType.EMBEDDER))


def test_a_text_bundle_has_none(tiny_bundle: TinyBundle) -> None:
    bundle = Bundle.open(tiny_bundle("gemma3n", "int4"))
    assert vision_size(bundle) is None
    assert audio_size(bundle) is None
    assert BundlePlan.of(bundle).encoders == ()
    assert bench.measure_encoders(str(bundle.path), 1, None) == {}


def test_another_model_in_an_encoders_place(embedder: bytes, tmp_path: Path) -> None:
    kinds = (ModelType.VISION_ENCODER, ModelType.VISION_ADAPTER, ModelType.AUDIO_ENCODER, ModelType.AUDIO_ADAPTER)
    bundle = bundle_of(tmp_path / "odd.litertlm", dict.fromkeys(kinds, embedder))
    advice = "convert the checkpoint with gemma-edge"
    for size, section, expected in (
        (vision_size, "tf_lite_vision_encoder", "[1, height, width, 3]"),
        (audio_size, "tf_lite_audio_encoder_hw", "[1, frames, 128]"),
    ):
        with pytest.raises(GemmaEdgeError) as caught:
            size(bundle)
        assert str(caught.value) == (
            f"{bundle.path}: the {section} section has a tensor [1, 1], expected {expected}; {advice}"
        )


def test_patches_that_are_no_squares(tmp_path: Path) -> None:
    """An encoder of 10 patches of 27 values, for an adapter that gives 5 rows: 2 patches for each."""
    g = Graph("vision_encoder", 10, {})
    g.output("features", g.mul(g.input("images", (1, 10, 27)), 2.0))
    adapter = Graph("vision_adapter", 5, {})
    adapter.output("mm_embedding", adapter.mul(adapter.input("features", (1, 5, 8)), 2.0))
    sections = {ModelType.VISION_ENCODER: fill([g], {}, {}).content}
    bundle = bundle_of(
        tmp_path / "odd.litertlm", sections | {ModelType.VISION_ADAPTER: fill([adapter], {}, {}).content}
    )
    with pytest.raises(GemmaEdgeError) as caught:
        vision_size(bundle)
    assert str(caught.value) == (
        f"{bundle.path}: the tf_lite_vision_encoder section has a tensor [1, 10, 27], expected [1, patches, "
        "3 * side * side], a square for each token; convert the checkpoint with gemma-edge"
    )


def test_a_section_that_is_no_model(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "junk.litertlm", {ModelType.VISION_ENCODER: bytes(64)})
    with pytest.raises(GemmaEdgeError) as caught:
        vision_size(bundle)
    assert str(caught.value) == (
        f"{bundle.path}: its tf_lite_vision_encoder section is not a TFLite model with a signature; "
        "convert the model again"
    )


def test_an_encoder_without_its_adapter(embedder: bytes, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "half.litertlm", {ModelType.VISION_ENCODER: embedder})
    with pytest.raises(GemmaEdgeError, match="has no tf_lite_vision_adapter section"):
        BundlePlan.of(bundle)


def test_a_text_model_transcribes_nothing(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    with Engine(str(tiny_bundle("gemma3n", "int4")), cache_dir=str(tmp_path)) as engine:
        with pytest.raises(GemmaEdgeError) as caught:
            transcribe(engine, wav_bytes(np.zeros(16_000, np.float32)))
        assert str(caught.value) == (
            f"audio content was given, {engine.model_path} has no audio encoder; "
            "leave it out or convert with --modalities text,audio"
        )


@pytest.mark.parametrize("frames", [1, 16, 192, 1000, 3008])
def test_a_window_holds_what_the_frames_do(frames: int) -> None:
    samples = AudioSize(tokens=1, frames=frames).window_samples
    assert GEMMA3N.frame_count(samples) <= frames
    assert GEMMA3N.frame_count(samples) >= min(frames, 2997) - 1


# ---------------------------------------------------------------- ONNX


def directory_with(folder: Path, name: str, shapes: Mapping[str, list[Any]], *, broken: bool = False) -> OnnxDirectory:
    """A directory with one graph that copies its first input to its output."""
    (folder / "onnx").mkdir()
    given, made = [onnx.helper.make_tensor_value_info(key, 1, shape) for key, shape in shapes.items()]
    operator = "Unknown" if broken else "Identity"
    graph = onnx.helper.make_graph([onnx.helper.make_node(operator, [given.name], [made.name])], "g", [given], [made])
    opset = onnx.helper.make_opsetid("", 21)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), folder / "onnx" / f"{name}.onnx")
    return OnnxDirectory(folder, "fp32", {}, Digests(folder, None))


@pytest.mark.parametrize(
    ("name", "shapes", "found"),
    [
        ("vision_encoder", {"a": [1], "b": [1]}, "inputs and outputs ['a', 'b']"),
        (
            "vision_encoder",
            {"pixel_values": [1, 3, "h", "w"], "image_features": [1, 9, 4]},
            "sizes of image and features that are not fixed",
        ),
        (
            "audio_encoder",
            {"input_features": [1, "t", 128], "audio_features": [1, "n", 4]},
            "a number of features that is not fixed",
        ),
    ],
)
def test_a_graph_that_is_no_encoder(name: str, shapes: dict[str, list[Any]], found: str, tmp_path: Path) -> None:
    encoders = OnnxEncoders(directory_with(tmp_path, name, shapes), 1, 1)
    with pytest.raises(GemmaEdgeError) as caught:
        _ = (encoders.vision, encoders.audio)
    path = tmp_path / "onnx" / f"{name}.onnx"
    assert str(caught.value) == f"{path}: has {found}; convert the checkpoint with gemma-edge"


def test_a_graph_that_onnx_runtime_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"pixel_values": [1, 3, 8, 8], "image_features": [1, 3, 8]}
    encoders = OnnxEncoders(directory_with(tmp_path, "vision_encoder", shapes, broken=True), 1, 1)
    assert encoders.vision is not None
    with pytest.raises(GemmaEdgeError) as caught:
        encoders.encode_image(np.zeros((1, 8, 8, 3), np.float32))
    path = tmp_path / "onnx" / "vision_encoder.onnx"
    assert str(caught.value).startswith(f"{path}: ONNX Runtime cannot load it (")
    assert str(caught.value).endswith("); convert the checkpoint again")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(bench, "open_encoders", lambda *_: encoders)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(GemmaEdgeError, match=r"config\.json: transformers\.js_config\.dtype is None"):
        bench.measure_encoders(str(tmp_path), 1, None)
