"""Requests: the grammar of names, and what is refused before a weight is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.options import Options
from gemma_edge.converter.plan.target import Target, TargetError, format_of
from gemma_edge.converter.quantize.recipes import Floor
from gemma_edge.converter.tensors import Role, TensorSpec

# The published config.json of each official model, as far as it differs from the defaults of its family.
OFFICIAL: dict[str, dict[str, Any]] = {
    "e2b": {
        "model_type": "gemma3n_text",
        "num_hidden_layers": 30,
        "num_kv_shared_layers": 10,
        "hidden_size": 2048,
        "intermediate_size": [8192] * 30,
    },
    "e4b": {
        "model_type": "gemma3n_text",
        "num_hidden_layers": 35,
        "num_kv_shared_layers": 15,
        "hidden_size": 2048,
        "intermediate_size": [16384] * 35,
    },
    "1b": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 26,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32_768,
    },
}


@pytest.fixture
def model(tiny_gemma3n: Path) -> Model:
    """8 layers, 2048 tokens of context at most."""
    return Model.from_json(Checkpoint.open(tiny_gemma3n).text_config)


@pytest.mark.parametrize("size", ["e2b", "e4b", "1b", "custom"])
@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32"])
def test_every_name_of_the_grammar(size: str, precision: str) -> None:
    target = Target.parse(f"{size}-{precision}")
    assert (target.size, target.precision, target.recipe.name) == (size, precision, precision)
    assert target.name == f"{size}-{precision}"


@pytest.mark.parametrize("name", ["", "e2b", "e2b-int2", "e3b-int4", "int4-e2b", "E2B-int4", "e2b-int4-", "-int4"])
def test_anything_else_is_refused_with_the_grammar(name: str) -> None:
    with pytest.raises(TargetError) as caught:
        Target.split_name(name)
    assert str(caught.value) == (
        f"target {name!r}: expected {{gemma4-e4b,gemma4-e2b,e4b,e2b,1b,custom}}-{{fp32,fp16,int8,int4}}, or a "
        "slice of E4B such as e3.39-int4, or both such as e4b+e2b-int4; `gemma-edge targets` lists them"
    )


@pytest.mark.parametrize("context", [-1, 0, 15])
def test_a_context_too_short_for_anything(context: int) -> None:
    with pytest.raises(TargetError) as caught:
        Target.parse("custom-int4", context=context, prefill=(1,))
    assert str(caught.value) == f"context {context}: expected at least 16 tokens; give a longer --context"


@pytest.mark.parametrize(
    ("prefill", "shown"),
    [((), "empty"), ((0, 16), "0,16"), ((-8,), "-8"), ((128, 16), "128,16"), ((16, 16), "16,16")],
)
def test_prefill_lengths_that_make_no_sense(prefill: tuple[int, ...], shown: str) -> None:
    with pytest.raises(TargetError) as caught:
        Target.parse("custom-int4", prefill=prefill)
    assert str(caught.value) == (
        f"prefill {shown}: expected chunk lengths of at least 1, rising; for example --prefill 16,128"
    )


@pytest.mark.parametrize(("spans", "shown"), [((0,), "0"), ((64, 32), "64,32"), ((64, 64), "64,64")])
def test_spans_that_make_no_sense(spans: tuple[int, ...], shown: str) -> None:
    with pytest.raises(TargetError) as caught:
        Target.parse("custom-int4", spans=spans)
    assert str(caught.value) == (
        f"spans {shown}: expected lengths of at least 1, rising; for example --spans 1024,4096"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("context", "spans"), [(512, ()), (1024, ()), (1025, (1024,)), (4096, (1024,)), (32_768, (1024, 8192))]
)
def test_a_long_context_has_spans(context: int, spans: tuple[int, ...]) -> None:
    model = Model.from_json(OFFICIAL["e2b"])
    assert Target.parse("e2b-int4", context=context).spans_for(model) == spans
    assert Target.parse("e2b-int4", context=context, spans=()).spans_for(model) == ()


@pytest.mark.parametrize(
    ("draft", "options", "message"),
    [
        ((1,), {}, "draft 1: expected lengths of at least 2, one token and what is guessed after it, rising; for "
         "example --draft 4"),
        ((8, 4), {}, "draft 8,4: expected lengths of at least 2, one token and what is guessed after it, rising; for "
         "example --draft 4"),
        ((4, 32), {"prefill": (8, 16)}, "draft 32: longer than the longest prefill chunk, 16; give lengths up to that"),
        ((4,), {"format": "onnx"}, "draft 4: onnx verifies nothing; use --format litertlm, or leave --draft out"),
        ((4,), {"format": "gguf"}, "draft 4: gguf verifies nothing; use --format litertlm, or leave --draft out"),
    ],
)  # fmt: skip
def test_drafts_that_make_no_sense(draft: tuple[int, ...], options: Options, message: str) -> None:
    asked: Options = {**options, "draft": draft}
    with pytest.raises(TargetError) as caught:
        Target.parse("custom-int4", **asked)
    assert str(caught.value) == message
    assert Target.parse("custom-int4").draft_tokens == ()


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ((1,), {}, "batch 1: expected numbers of conversations from 2 to 8, rising; for example --batch 4"),
        ((4, 9), {}, "batch 4,9: expected numbers of conversations from 2 to 8, rising; for example --batch 4"),
        ((4, 2), {}, "batch 4,2: expected numbers of conversations from 2 to 8, rising; for example --batch 4"),
        ((4,), {"format": "onnx"}, "batch 4: onnx has no signatures for several conversations; use --format litertlm, "
         "or leave --batch out"),
    ],
)  # fmt: skip
def test_batches_that_make_no_sense(batch: tuple[int, ...], options: Options, message: str) -> None:
    asked: Options = {**options, "batch": batch}
    with pytest.raises(TargetError) as caught:
        Target.parse("custom-int4", **asked)
    assert str(caught.value) == message
    assert Target.parse("custom-int4").batch_rows == ()


def test_spans_beyond_the_context_are_left_out() -> None:
    model = Model.from_json(OFFICIAL["e2b"])
    assert Target.parse("e2b-int4", context=512, spans=(64, 512, 1024)).spans_for(model) == (64,)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"kv": "fp8"}, "kv 'fp8': expected fp32 or fp16; use one of them"),
        ({"format": "ggml"}, "format 'ggml': expected litertlm, onnx, gguf or compressed-tensors; use one of them"),
    ],
)
def test_choices_that_do_not_exist(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError) as caught:
        Target.parse("custom-int4", **choice)
    assert str(caught.value) == message


def test_onnx_has_no_fp16_kv() -> None:
    with pytest.raises(TargetError) as caught:
        Target.parse("custom-int4", format="onnx", kv="fp16")
    assert str(caught.value) == "kv fp16: onnx keeps keys and values as fp32; use --kv fp32"


@pytest.mark.parametrize(
    ("columns", "shown"), [(512, "int4-b256"), (384, "int4-b128"), (192, "int4-b64"), (96, "int4-b32"), (80, "int4")]
)
def test_int4_matrices_get_blocks_in_onnx(columns: int, shown: str, model: Model) -> None:
    matrix = TensorSpec("w", "w", (4096, columns), Role.FFN)
    table = TensorSpec("t", "t", (4096, columns), Role.PLE)  # read row by row, by our runtime too
    recipe = Target.parse("custom-int4", format="onnx").recipe_for(model)
    recipe = replace(recipe, floor=Floor())
    assert recipe.encoding(matrix).name == shown
    assert recipe.encoding(table).name == "int4"
    fast = Target.parse("custom-int4", recipe="int4-fast").recipe_for(model)
    assert fast.encoding(TensorSpec("w", "w", (64, 256), Role.FFN)).name == "int4"


@pytest.mark.parametrize(("columns", "shown"), [(512, "int4-b64"), (96, "int4-b32"), (80, "int4")])
def test_int4_matrices_get_smaller_blocks_in_litert(columns: int, shown: str, model: Model) -> None:
    recipe = replace(Target.parse("custom-int4").recipe_for(model), floor=Floor())
    assert recipe.encoding(TensorSpec("w", "w", (4096, columns), Role.FFN)).name == shown


def test_the_shortest_context_and_prefill_work(model: Model) -> None:
    assert Target.parse("custom-int4", context=16, prefill=(1, 16)).context_for(model) == 16


def test_the_default_context_is_the_models_maximum_where_that_is_less_than_4096(model: Model) -> None:
    assert Target.parse("custom-int4").context_for(model) == 2048
    assert Target.parse("e2b-int4").context_for(Model.from_json(OFFICIAL["e2b"])) == 4096


def test_a_context_beyond_the_model(model: Model) -> None:
    assert Target.parse("custom-int4", context=2048).context_for(model) == 2048
    with pytest.raises(TargetError) as caught:
        Target.parse("custom-int4", context=2049).context_for(model)
    assert str(caught.value) == "context 2049: this model takes up to 2048 tokens; give --context 2048 or less"


def test_a_prefill_longer_than_the_context(model: Model) -> None:
    assert Target.parse("custom-int4", context=128).context_for(model) == 128
    with pytest.raises(TargetError) as caught:
        Target.parse("custom-int4", context=127, prefill=(16, 128)).context_for(model)
    assert str(caught.value) == (
        "prefill 128: longer than the context of 127 tokens; give chunk lengths up to 127"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("context", "chunks"), [(16, (16,)), (64, (16,)), (127, (16,)), (128, (16, 128)), (None, (16, 128))]
)
def test_chunks_that_nobody_asked_for_fit_the_context(context: int | None, chunks: tuple[int, ...]) -> None:
    assert Target.parse("custom-int4", context=context).prefill_tokens == chunks


@pytest.mark.parametrize(
    ("out", "asked", "expected"),
    [
        ("model.task", None, "task"),
        ("model.litertlm", None, "litertlm"),
        ("model.task", "task", "task"),
        ("model", None, None),
        ("model.bin", "onnx", "onnx"),
        ("dir.v1/model", None, None),
    ],
)
def test_the_format_is_what_the_outputs_name_says(out: str, asked: str | None, expected: str | None) -> None:
    assert format_of(Path(out), asked) == expected


@pytest.mark.parametrize(("out", "asked"), [("a.task", "litertlm"), ("a.litertlm", "onnx"), ("a.task", "onnx")])
def test_a_name_that_says_another_format_than_was_asked_for(out: str, asked: str) -> None:
    with pytest.raises(TargetError) as caught:
        format_of(Path(out), asked)
    assert str(caught.value) == (
        f"out {out}: its name says {out.partition('.')[2]}, --format {asked}; leave --format out, or choose another "
        "name"
    )


def test_an_onnx_graph_has_no_chunks_to_fit_in(model: Model) -> None:
    """The default --prefill, which such a graph does not look at, is no reason to refuse a short context."""
    assert Target.parse("custom-int4", context=64, format="onnx").context_for(model) == 64


@pytest.mark.parametrize("size", OFFICIAL)
def test_a_named_size_takes_its_own_shape_only(size: str) -> None:
    for other, config in OFFICIAL.items():
        target = Target.parse(f"{size}-int8")
        if other == size:
            target.check(Model.from_json(config))
        else:
            with pytest.raises(TargetError, match=f"target {size}-int8: the checkpoint has "):
                target.check(Model.from_json(config))


def test_every_wrong_number_is_listed(model: Model) -> None:
    with pytest.raises(TargetError) as caught:
        Target.parse("e2b-int4").check(model)
    assert str(caught.value) == (
        "target e2b-int4: the checkpoint has layers 8, expected 30; hidden_size 128, expected 2048; "
        "ffn 256, expected 8192; use another size, or custom-int4 for a model of your own shape"
    )


def test_another_family_is_named(model: Model) -> None:
    with pytest.raises(TargetError, match="the checkpoint has family gemma3n, expected gemma3; layers 8, expected 26"):
        Target.parse("1b-fp16").check(model)


def test_only_the_numbers_that_differ_are_listed() -> None:
    with pytest.raises(TargetError, match="the checkpoint has layers 35, expected 30; ffn 16384, expected 8192; use"):
        Target.parse("e2b-int4").check(Model.from_json(OFFICIAL["e4b"]))


def test_custom_takes_any_shape(model: Model) -> None:
    Target.parse("custom-int4").check(model)
    Target.parse("custom-int4").check(Model.from_json(OFFICIAL["1b"]))
