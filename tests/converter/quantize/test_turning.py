"""Which matrices are turned, and that what reads a bundle finds out by itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemma_edge.converter.calibrate.planning import plan_for
from gemma_edge.converter.calibrate.step import balanced_plan
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.convert import convert
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.progress import silent
from gemma_edge.converter.quantize.quantize import Search, quantize_rows
from gemma_edge.converter.quantize.recipes import Recipe
from gemma_edge.converter.quantize.turning import with_turned_columns
from gemma_edge.converter.tensors import Role
from gemma_edge.converter.verify.find.bundle_weights import BundleWeights
from gemma_edge.converter.verify.find.folds import as_in_bundle
from gemma_edge.runtime.formats.encoding import Encoding
from tests.conftest import FIXTURES

BOTH = pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])


def model_of(name: str) -> Model:
    return Model.from_json(Checkpoint.open(FIXTURES / name).text_config)


def turned(model: Model, recipe: Recipe) -> set[str]:
    return {name for name, spec in with_turned_columns(model, recipe).tensors.items() if spec.fold.hadamard}


@BOTH
def test_int8_turns_tables_attention_and_feed_forward(name: str) -> None:
    model = model_of(name)
    found = turned(model, Recipe.named("int8"))
    roles = (Role.EMBEDDING, Role.HEAD, Role.ATTENTION, Role.FFN)
    assert found == {spec.name for spec in model.tensors.values() if spec.role in roles and not spec.sparse_inputs}
    assert "embed_tokens_per_layer.weight" not in found


def test_inputs_that_are_mostly_zero_stay_as_they_are() -> None:
    sparse = {name for name, spec in model_of("tiny-gemma3n").tensors.items() if spec.sparse_inputs}
    assert sparse
    assert all(name.endswith("mlp.down_proj.weight") for name in sparse)
    assert not sparse & turned(model_of("tiny-gemma3n"), Recipe.named("int4"))


def test_floats_and_trained_grids_stay_as_they_are() -> None:
    model = model_of("tiny-gemma3")
    assert with_turned_columns(model, Recipe.named("fp16")) is model
    name = "layers.0.mlp.up_proj.weight"
    on_grid = replace(model, tensors={**model.tensors, name: replace(model.tensors[name], grid="BF16")})
    assert name not in turned(on_grid, Recipe.named("int4"))


def test_columns_that_are_no_whole_blocks_stay_as_they_are() -> None:
    model = model_of("tiny-gemma3")
    name = "layers.0.mlp.up_proj.weight"
    narrow = replace(model, tensors={name: replace(model.tensors[name], shape=(512, 96))})
    assert turned(narrow, Recipe.named("int8")) == set()


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
@BOTH
def test_a_bundle_shows_what_was_done_to_its_weights(name: str, precision: str, container: str, tmp_path: Path) -> None:
    options = {"context": 64, "prefill": (16,), "format": container}
    source, plan = plan_for(Target.parse(f"custom-{precision}", **options), FIXTURES / name)  # type: ignore[arg-type]
    expected = balanced_plan(plan, source, silent).model
    convert(f"custom-{precision}", FIXTURES / name, tmp_path / "model", **options, measure=False)  # type: ignore[arg-type]
    model = Model.from_json(source.text_config)
    found = as_in_bundle(model, source, BundleWeights.of(tmp_path / "model", model.tensors))
    windows = np.random.default_rng(0).integers(4, 500, (1, 8))
    # A row that is read from the head's table is multiplied after its columns are turned, which rounds to 17 bits.
    np.testing.assert_allclose(
        StreamingModel(source, found).hidden(windows), StreamingModel(source, expected).hidden(windows), atol=1e-4
    )
    for tensor, spec in expected.tensors.items():
        assert found.tensors[tensor].fold.hadamard == spec.fold.hadamard, tensor
        for mine, theirs in ((found.tensors[tensor].fold.rows, spec.fold.rows),):
            ones = np.ones(spec.shape[0], np.float32)
            a, b = (ones if each is None else each.values for each in (mine, theirs))
            np.testing.assert_array_equal(a, b, err_msg=tensor)


def test_the_search_for_scales_never_loses_to_the_largest_value_on_a_real_matrix(real_checkpoint: Path) -> None:
    """Of what comes out for real inputs, the squared error, in blocks and rows, after balancing and turning."""
    source, plan = plan_for(Target.parse("custom-int4", context=64, prefill=(16,)), real_checkpoint)
    model = balanced_plan(plan, source, silent).model
    rng = np.random.default_rng(0)
    for name in (f"layers.{layer}.{part}.weight" for layer in (0, 9) for part in ("mlp.up_proj", "self_attn.q_proj")):
        spec = model.tensors[name]
        rows = spec.fold(source.read(spec.source))
        inputs = rng.standard_normal((256, spec.shape[1])).astype(np.float32)  # as balanced and turned inputs are
        for encoding in (Encoding("int", 4), Encoding("int", 4, 64)):
            errors = {}
            for search in Search:
                stored = quantize_rows(rows, encoding, search)
                restored = encoding.dequantize(stored.data, stored.scales, rows.shape)
                errors[search] = float(np.square(inputs @ (restored - rows).T).sum())
            assert errors[Search.MSE] < errors[Search.ABSMAX], (name, encoding.name)
