"""The weights of a bundle read back are those that were quantized, whatever the container, encoding and slicing."""

import math
from pathlib import Path

import numpy as np
import pytest

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.convert import convert
from gemma_edge.converter.graph.ops import ANY
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.quantize import stored as emitted
from gemma_edge.converter.quantize.quantize import quantize_rows
from gemma_edge.converter.quantize.recipes import Recipe
from gemma_edge.converter.quantize.tied import in_one_table
from gemma_edge.converter.verify.find.bundle_weights import BundleWeights
from gemma_edge.converter.verify.find.folds import as_in_bundle
from gemma_edge.converter.verify.measure.similarity import Similarity
from gemma_edge.runtime.formats.encoding import Encoding
from gemma_edge.runtime.formats.litertlm import Bundle, BundleError, ModelType, SectionKind
from tests.converter.verify.wrong import bundle_of, copied

NAMES = ("layers.1.mlp.up_proj.weight", "layers.0.laurel.linear_left.weight", "lm_head.weight", "norm.weight")


def _open(bundle: Path, model: Model) -> BundleWeights:
    return BundleWeights.of(bundle, model.tensors)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_litert_weights_are_read_back_to_the_bit(
    precision: str, tiny_gemma3n: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitted, "SPLIT_BYTES", 20_000)  # several row slices, as a head of Gemma's size has
    checkpoint = copied(tiny_gemma3n, tmp_path / "checkpoint")
    source = Checkpoint.open(checkpoint)
    model = Model.from_json(source.text_config)
    stored = _open(bundle_of(checkpoint, precision), model)
    assert len(stored.packed["lm_head.weight"]) > 1
    assert all(name in stored for name in model.tensors)
    model, recipe = in_one_table(as_in_bundle(model, source, stored), Recipe.named(precision))
    for name in (*NAMES, "embed_tokens.weight", "embed_tokens_per_layer.weight"):
        spec = model.tensors[name]
        storage = recipe.storage(spec)
        rows = spec.fold(source.read(spec.source))
        if storage.head is None:
            quantized = quantize_rows(rows, storage.encoding, storage.search)
            expected = storage.encoding.dequantize(quantized.data.reshape(-1), quantized.scales, spec.shape)
        else:
            expected = storage.restored(rows) * np.float32(spec.factor)
        assert stored.encoding(name) == storage.encoding.name
        if len(spec.shape) == 1:
            np.testing.assert_array_equal(stored.substitute(name, 0, rows), expected)
        else:
            for first, count in ((0, len(rows)), (3, 1), (len(rows) // 3, len(rows) // 2)):
                np.testing.assert_array_equal(stored.rows(name, first, count), expected[first : first + count])


def test_blockwise_scales_come_with_their_weight(tiny_gemma3n: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_gemma3n, tmp_path / "checkpoint")
    source = Checkpoint.open(checkpoint)
    model = Model.from_json(source.text_config)
    out = tmp_path / "blocks.litertlm"
    convert("custom-int4", checkpoint, out, context=64, prefill=(16,), encoding=["ffn=int4-b32"])
    stored = _open(out, model)
    spec = as_in_bundle(model, source, stored).tensors["layers.1.mlp.up_proj.weight"]
    encoding = Encoding.parse("int4-b32")
    quantized = quantize_rows(spec.fold(source.read(spec.source)), encoding)
    assert stored.encoding(spec.name) == "int4-b32"
    np.testing.assert_array_equal(
        stored.rows(spec.name, 0, spec.shape[0]),
        encoding.dequantize(quantized.data.reshape(-1), quantized.scales, spec.shape),
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_onnx_weights_are_near_the_checkpoints(
    precision: str, tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitted, "SPLIT_BYTES", 40_000)
    checkpoint = copied(tiny_gemma3, tmp_path / "checkpoint")
    source = Checkpoint.open(checkpoint)
    model = Model.from_json(source.text_config)
    stored = _open(bundle_of(checkpoint, precision, "onnx"), model)
    lowest_db = {"fp32": math.inf, "fp16": 60.0, "int8": 35.0, "int4": 15.0}[precision]
    used = {name for graph in (model.decoder("d", ANY, True), *model.lookups(ANY)) for name in graph.used}
    assert used == set(stored.packed)
    model = as_in_bundle(model, source, stored)
    for name in used:
        spec = model.tensors[name]
        expected = spec.fold(source.read(spec.source))
        assert Similarity.between(expected, stored.substitute(name, 0, expected)).snr_db >= lowest_db, name


def test_a_damaged_section_is_refused(tiny_gemma3: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_gemma3, tmp_path / "checkpoint")
    model = Model.from_json(Checkpoint.open(checkpoint).text_config)
    path = bundle_of(checkpoint)
    bundle = Bundle.open(path)
    section = bundle.section(SectionKind.TFLITE_MODEL, ModelType.PREFILL_DECODE)
    with path.open("r+b") as file:
        file.seek(section.begin)
        file.write(b"\xff" * 4096)
    with pytest.raises(BundleError, match=r"its tf_lite_prefill_decode section is corrupt; copy the file again$"):
        BundleWeights.of(path, model.tensors)
