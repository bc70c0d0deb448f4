import numpy as np
import pytest

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.quantize.balance import Place, balanced, exponents, places
from gemma_edge.converter.quantize.recipes import Recipe
from gemma_edge.converter.quantize.turning import with_turned_columns
from tests.conftest import FIXTURES

WINDOWS = np.random.default_rng(1).integers(4, 500, (2, 48))
BOTH = pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])


def opened(name: str) -> tuple[Checkpoint, Model]:
    source = Checkpoint.open(FIXTURES / name)
    return source, Model.from_json(source.text_config)


def stored_as_integers(model: Model) -> dict[str, bool]:
    recipe = Recipe.named("int4")
    return {name: recipe.encoding(spec).kind == "int" for name, spec in model.tensors.items()}


@BOTH
def test_no_bit_of_what_the_model_computes_changes(name: str) -> None:
    source, model = opened(name)
    scaled = balanced(source, model, stored_as_integers(model), WINDOWS, lambda _n: None)
    changed = [spec for spec in scaled.tensors.values() if spec.fold.columns is not None]
    assert any(np.ptp(spec.fold.columns.values) > 1 for spec in changed if spec.fold.columns is not None)
    before = StreamingModel(source, model).hidden(WINDOWS)
    np.testing.assert_array_equal(StreamingModel(source, scaled).hidden(WINDOWS), before)


@BOTH
def test_turned_columns_change_nothing_but_the_last_bits(name: str) -> None:
    source, model = opened(name)
    scaled = balanced(source, model, stored_as_integers(model), WINDOWS, lambda _n: None)
    turned = with_turned_columns(scaled, Recipe.named("int4"))
    assert any(spec.fold.hadamard and spec.fold.columns is not None for spec in turned.tensors.values())
    before, after = (StreamingModel(source, m).hidden(WINDOWS) for m in (model, turned))
    assert np.abs(after - turned_hidden(turned, before)).max() < 2e-4 * np.abs(before).max()


def turned_hidden(model: Model, hidden: np.ndarray) -> np.ndarray:
    """What the head reads is turned as well."""
    from gemma_edge.runtime.formats import hadamard

    return np.asarray(hadamard.turn(hidden)) if model.tensors["lm_head.weight"].fold.hadamard else hidden


def test_what_is_not_stored_as_integers_stays_as_it_is() -> None:
    source, model = opened("tiny-gemma3")
    integers = dict.fromkeys(model.tensors, False)
    scaled = balanced(source, model, integers, WINDOWS, lambda _n: None)
    assert all(spec.fold.columns is None and spec.fold.rows is None for spec in scaled.tensors.values())


def test_factors_stand_where_errors_cost_most() -> None:
    power = np.array([1, 1, 256, 1], np.float32)
    square = np.ones(4, np.float32)
    np.testing.assert_array_equal(exponents(power, [square], np.arange(4)), [0, 0, 2, 0])  # s^2 = sqrt(p) / w


def test_inputs_that_one_row_makes_have_one_factor() -> None:
    power = np.array([1, 1, 65536, 1], np.float32)
    found = exponents(power, [np.ones(4, np.float32)], np.array([0, 1, 0, 1]))
    assert found[0] == found[2] > found[1] == found[3]


def test_columns_without_inputs_or_weights_do_not_run_away() -> None:
    found = exponents(np.zeros(4, np.float32), [np.array([0, 1, 1, 1], np.float32)], np.arange(4))
    assert np.abs(found).max() <= 6


def found_places(name: str) -> dict[str, Place]:
    """By the name of the first matrix that reads the input."""
    source, model = opened(name)
    return {place.linears[0]: place for place in places(StreamingModel(source, model).graph)}


def test_gemma3_scales_at_norms_and_between_matrices() -> None:
    found = found_places("tiny-gemma3")
    p = "layers.2."
    attention = {p + f"self_attn.{name}_proj.weight" for name in "qkv"}
    [after_norm] = [place for place in found.values() if place.source == p + "input_layernorm.weight"]
    assert set(after_norm.linears) == attention
    assert found[p + "mlp.down_proj.weight"].source == p + "mlp.up_proj.weight"
    values = found[p + "self_attn.o_proj.weight"]
    assert values.source == p + "self_attn.v_proj.weight"
    np.testing.assert_array_equal(values.rows, np.tile(np.arange(32), 4))  # 4 heads share one head of v


def test_gemma3n_scales_only_what_nothing_else_reads() -> None:
    """LAuReL adds the first norm's output itself, v is normed, and every layer reads the per-layer inputs."""
    sources = {place.source.split(".", 2)[-1] for place in found_places("tiny-gemma3n").values()}
    assert sources == {"pre_feedforward_layernorm.weight", "mlp.up_proj.weight", "laurel.linear_left.weight"}


def test_tied_matrices_are_not_scaled() -> None:
    """The embedding is read by row: a factor of its columns would have nowhere to go."""
    source, model = opened("tiny-gemma3")
    scaled = balanced(source, model, stored_as_integers(model), WINDOWS, lambda _n: None)
    assert scaled.tensors["embed_tokens.weight"] == model.tensors["embed_tokens.weight"]
    assert scaled.tensors["lm_head.weight"] == model.tensors["lm_head.weight"]
