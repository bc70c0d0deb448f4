"""A GGUF that we write: metadata and values against llama.cpp's own package, and read again as a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.gguf.file import read_gguf
from gemma_edge.converter.checkpoint.gguf.names import gguf_name
from gemma_edge.converter.convert import convert
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.gguf.blocks import BLOCK
from gemma_edge.converter.models import gemma3n
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.target import Target, TargetError
from gemma_edge.converter.quantize.recipes import Storage
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.converter.tokenizer.chat_template import bundle_template
from gemma_edge.converter.tokenizer.template_turns import GEMMA_TURNS
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.formats.encoding import Encoding
from tools.gguf_writer import write_gguf
from tools.tiny import write_tiny

FIXTURES = Path(__file__).parents[2] / "fixtures"
TRAINED = ("tiny-gemma3", "tiny-gemma3n")
RANDOM = ("gemma3-pattern", "gemma3-linear-rope", "gemma3n-pattern", "gemma3n-small-vocab-untied")
OURS_ALONE = (
    "gemma_edge.", "general.quantization_version", "general.sampling.", "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id", "tokenizer.chat_template",
)  # fmt: skip
PLAIN = """
[roles]
embedding = "{table}"
ple = "{matrix}"
head = "{table}"
attention = "{matrix}"
ffn = "{matrix}"
altup = "{table}"
small = "{table}"
router = "{table}"
norm = "fp32"
[floor]
values = 4096
columns_multiple_of = 32
"""
IDS = [2, *range(300, 376)]  # longer than the fixtures' window

Float32 = NDArray[np.float32]


def written(source: Path, out: Path, target: str, **options: Any) -> Path:
    convert(target, source, out, measure=False, **options)
    return out


def refusal(call: Callable[[], object]) -> str:
    """The one line that `call` is refused with."""
    with pytest.raises(GemmaEdgeError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def values_of(path: Path) -> dict[str, Float32]:
    """By llama.cpp's name, as llama.cpp's package reads them."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = values.reshape([int(size) for size in reversed(tensor.shape)]).astype(np.float32)
    return found


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of that name: trained, or random."""
    if request.param in TRAINED:
        return FIXTURES / str(request.param)
    write_tiny(request.param, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("checkpoint", [*TRAINED, *RANDOM], indirect=True)
def test_metadata_and_values_are_llama_cpps(checkpoint: Path, tmp_path: Path) -> None:
    """Its package wrote the other file, after its converter's rules; what we do better is named here."""
    path = written(checkpoint, tmp_path / "model.gguf", "custom-fp32")
    write_gguf(checkpoint, tmp_path / "other.gguf", "F32")
    ours, other = read_gguf(path), read_gguf(tmp_path / "other.gguf")
    added = {key for key in ours.metadata if key not in other.metadata}
    assert all(key.startswith(OURS_ALONE) for key in added), added
    model = Model.from_json(Checkpoint.open(checkpoint).text_config)
    of_vocabulary = {f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type")}
    for key, expected in other.metadata.items():
        if key in of_vocabulary:  # it cuts Gemma 3n's at the end of the per-layer table
            count = min(len(expected), model.config.vocab_size)
            assert ours.metadata[key][:count] == expected[:count], key
            assert len(ours.metadata[key]) == model.config.vocab_size
        elif key not in ("general.name", "tokenizer.ggml.eot_token_id"):
            assert ours.metadata[key] == expected, key
    found, reference = values_of(path), values_of(tmp_path / "other.gguf")
    sharing = range(getattr(model.config, "kv_layers", len(model.config.attention)), len(model.config.attention))
    never_read = {f"blk.{n}.{name}.weight" for n in sharing for name in ("attn_k", "attn_v", "attn_k_norm")}
    assert found.keys() == reference.keys() | never_read  # which transformers no longer writes
    for name, expected in reference.items():
        rows = min(len(expected), len(found[name]))
        clipped = (
            np.clip(expected, -120, 120) if "_coef" in name else expected
        )  # transformers clips, llama.cpp does not
        np.testing.assert_array_equal(found[name][:rows], clipped[:rows], err_msg=name)


def test_a_tables_rows_without_a_value_are_its_first(tmp_path: Path) -> None:
    """A token behind the per-layer table looks up its first row, in transformers; llama.cpp's converter has zeros."""
    write_tiny("gemma3n-pattern", tmp_path / "checkpoint")
    path = written(tmp_path / "checkpoint", tmp_path / "model.gguf", "custom-fp16")
    table = values_of(path)["per_layer_token_embd.weight"]
    assert len(table) == 2112
    np.testing.assert_array_equal(table[2048:], np.repeat(table[:1], 64, axis=0))
    assert np.ptp(table[0]) > 0


def test_layers_that_share_keys_and_values_have_some_that_nobody_reads(tmp_path: Path) -> None:
    """llama.cpp loads none without."""
    checkpoint = write_tiny("gemma3n-pattern", tmp_path / "checkpoint")
    path = written(tmp_path / "checkpoint", tmp_path / "model.gguf", "custom-int4")
    tensors, values = read_gguf(path).tensors, values_of(path)
    heads = checkpoint.config.num_key_value_heads * checkpoint.config.head_dim
    for layer in range(10):
        for name in ("attn_k", "attn_v"):
            assert values[f"blk.{layer}.{name}.weight"].shape == (heads, checkpoint.config.hidden_size)
            assert bool(np.any(values[f"blk.{layer}.{name}.weight"])) == (layer < 6)
        assert tensors[f"blk.{layer}.attn_k_norm.weight"].type == "F32"


@pytest.mark.parametrize("checkpoint", [*TRAINED, *RANDOM, "gemma3-untied"], indirect=True)
def test_read_again_it_is_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """Numbers, tokens and logits. gemma3-untied scales queries as llama.cpp cannot: a norm makes up for it."""
    source = Checkpoint.open(checkpoint)
    again = Checkpoint.open(written(checkpoint, tmp_path / "model.gguf", "custom-fp32"))
    model, found = Model.from_json(source.text_config), Model.from_json(again.text_config)
    assert found.config.attention == model.config.attention
    assert found.config.softcap == model.config.softcap
    if isinstance(model.config, gemma3n.Config) and isinstance(found.config, gemma3n.Config):
        assert found.config.sparsity == model.config.sparsity
        assert found.config.kv_layers == model.config.kv_layers
    ends = json.loads((again.side_path / "generation_config.json").read_bytes())["eos_token_id"]
    assert {1, 11} <= set(ends)  # <eos> and the tiny tokenizer's <end_of_turn>
    assert bundle_template(again.side_path).turns == GEMMA_TURNS
    logits = [
        np.concatenate([rows for _, rows in StreamingModel(each, of).run(np.array([IDS]))])
        for each, of in ((source, model), (again, found))
    ]
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-4, rtol=0)
    assert np.ptp(logits[0]) > 5


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(
    ("matrix", "table", "kinds"),
    [("fp16", "bf16", ("F16", "BF16")), ("int8", "fp16", ("Q8_0", "F16")), ("int4", "int8", ("Q4_0", "Q8_0"))],
)
def test_values_are_those_of_the_recipe(
    name: str, matrix: str, table: str, kinds: tuple[str, str], tmp_path: Path
) -> None:
    """As llama.cpp's package reads them, to the last bit."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(PLAIN.format(matrix=matrix, table=table))
    path = written(FIXTURES / name, tmp_path / "model.gguf", "custom-int8", recipe=recipe)
    types = {tensor.name: tensor.type for tensor in read_gguf(path).tensors.values()}
    assert (types["blk.0.ffn_up.weight"], types["token_embd.weight"]) == kinds
    source, found = Checkpoint.open(FIXTURES / name), values_of(path)
    request = Target.parse("custom-int8", format="gguf", recipe=recipe)
    model = Model.from_json(source.text_config)
    for spec in model.tensors.values():
        if spec.role in (Role.NORM, Role.EMBEDDING):
            continue
        place, index = gguf_name(spec.source)
        stored = found[place] if index is None else found[place][index]
        expected = restored(source, spec, request, model)
        np.testing.assert_array_equal(stored[: spec.shape[0]], expected, err_msg=spec.name)


def restored(source: Checkpoint, spec: TensorSpec, request: Target, model: Model) -> Float32:
    """What the recipe stores of a matrix."""
    storage = request.recipe_for(model).storage(spec)
    rows = np.clip(source.read(spec.source), -(spec.fold.clip or np.inf), spec.fold.clip or np.inf)
    stored = storage.store(rows)
    return storage.encoding.dequantize(stored.data, stored.scales, spec.shape)


def test_q4_0_is_int4_in_another_order(tmp_path: Path) -> None:
    """Integers and scales, in both directions: what is read and written again is the same bytes."""
    (tmp_path / "recipe.toml").write_text(PLAIN.format(matrix="int4", table="int4"))
    options: dict[str, Any] = {"recipe": tmp_path / "recipe.toml"}
    path = written(FIXTURES / "tiny-gemma3", tmp_path / "model.gguf", "custom-int8", **options)
    name = "layers.1.mlp.up_proj.weight"
    rows = Checkpoint.open(FIXTURES / "tiny-gemma3").read(name)
    expected = Storage(Encoding("int", 4, BLOCK)).store(rows)
    assert expected.scales is not None
    [tensor] = [t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight"]
    blocks = np.asarray(tensor.data, np.uint8).reshape(-1, 18)
    np.testing.assert_array_equal(blocks[:, :2].copy().view(np.float16)[:, 0], np.ravel(expected.scales))
    integers = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.int8) - 8
    np.testing.assert_array_equal(integers.reshape(rows.shape), Encoding("int", 4).unpack(expected.data, rows.shape))
    again = written(path, tmp_path / "again.gguf", "custom-int8", **options)
    tensors = [read_gguf(each).tensors for each in (path, again)]
    for key, one in tensors[0].items():
        if one.type == "Q4_0":
            pair = [each.read_bytes()[t.offset :][: t.nbytes] for each, t in ((path, one), (again, tensors[1][key]))]
            assert pair[0] == pair[1], key


def test_sizes_are_planned_and_files_lie_beside(tmp_path: Path) -> None:
    source = FIXTURES / "tiny-gemma3n"
    report = convert("custom-int4", source, tmp_path / "model.gguf", context=512)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.gguf",
        "model.gguf.Modelfile",
        "model.gguf.json",
    ]
    assert report.values["output"]["bytes"] == (tmp_path / "model.gguf").stat().st_size
    sections = {section["name"]: section["bytes"] for section in report.values["sections"]}
    stored = read_gguf(tmp_path / "model.gguf").tensors.values()
    for kind in ("Q4_0", "Q8_0", "F32"):
        assert sections[f"tensors of type {kind}"] == sum(t.nbytes for t in stored if t.type == kind)
    assert report.values["bytes_by_role"]["head"] == 0
    [note] = report.values["notes"]
    assert note.startswith("llama.cpp has the numbers of E2B and E4B fixed in its code of gemma3n and cannot run this")
    assert "laurel_rank 16, there 64" in note
    assert report.values["quality"]["verdict"] in ("good", "usable")
    lines = (tmp_path / "model.gguf.Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert lines[-5:] == [
        'PARAMETER stop "<end_of_turn>"', "PARAMETER num_ctx 512", "PARAMETER temperature 1", "PARAMETER top_k 64",
        "PARAMETER top_p 0.95",
    ]  # fmt: skip
    assert "<start_of_turn>user\n{{ .Content }}<end_of_turn>\n" in "\n".join(lines)


def test_the_same_bytes_from_two_places(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        written(FIXTURES / "tiny-gemma3", tmp_path / name / f"{name}.gguf", "custom-int8")
    assert (tmp_path / "one" / "one.gguf").read_bytes() == (tmp_path / "other" / "other.gguf").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"encoding": ["ffn=int4-b64"]},
            "layers.0.mlp.gate_proj.weight: GGUF does not store int4-b64; use int4 alone, which gets blocks of 32 "
            "(recipe int8, ffn=int4-b64, roles.ffn)",
        ),
        (
            {"encoding": ["ffn=int2"]},
            "layers.5.mlp.up_proj.weight: found int2, expected int4 or int8; this format has a scale for every 32 "
            "columns (recipe int8, ffn=int2, roles.ffn)",
        ),
        (
            {"modalities": ["text", "vision"]},
            "modalities text,vision: gguf holds the text model alone; use --modalities text",
        ),
    ],
)
def test_what_gguf_cannot_hold(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert refusal(lambda: written(FIXTURES / "tiny-gemma3", tmp_path / "a.gguf", "custom-int8", **options)) == message
    assert not list(tmp_path.glob("a.gguf*"))


@pytest.mark.parametrize(
    ("container", "program"), [("litertlm", "LiteRT has no kernel for"), ("onnx", "ONNX directories hold no")]
)
@pytest.mark.parametrize("encoding", ["bf16", "int8-b32"])
def test_what_gguf_alone_can(container: str, program: str, encoding: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"encoding": [f"ffn={encoding}"], "format": container}
    assert refusal(lambda: written(FIXTURES / "tiny-gemma3", tmp_path / "a", "custom-int8", **options)) == (
        f"layers.0.mlp.gate_proj.weight: {program} {encoding}; use int8 or fp16 "
        f"(recipe int8, ffn={encoding}, roles.ffn)"
    )


def test_a_family_that_is_not_written(tiny_gemma4: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        written(tiny_gemma4, tmp_path / "model.gguf", "custom-int8")
    assert str(caught.value) == (
        "format gguf: written for gemma3 and gemma3n, not for gemma4; use --format litertlm or --format onnx"
    )
