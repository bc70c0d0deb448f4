"""config.json of a GGUF: the numbers of the checkpoint it was written from, or a refusal that names the key."""

from pathlib import Path
from typing import Any

import pytest

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.gguf.config import derived_config, derived_generation
from gemma_edge.converter.checkpoint.gguf.file import read_gguf
from gemma_edge.converter.checkpoint.safetensors_file import TensorInfo
from gemma_edge.converter.models.family import Model
from tests.converter.checkpoint.checkpoint_files import one_line
from tools.gguf_writer import write_gguf
from tools.tiny import TINY, write_tiny

FILE = Path("a.gguf")
SCALED_OTHERWISE = "gemma3-untied"  # its query_pre_attn_scalar is not the size of a head
WRITTEN = sorted(name for name in TINY if name != SCALED_OTHERWISE and not name.startswith("gemma4"))  # refused by name


def tensor(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, "F32", shape, FILE, 0, 0)


TENSORS = {
    info.name: info
    for info in (
        tensor("model.embed_tokens.weight", 100, 64),
        tensor("model.embed_tokens_per_layer.weight", 90, 64),
        tensor("model.layers.0.laurel.linear_left.weight", 8, 64),
    )
}


def metadata(architecture: str = "gemma3", **changes: Any) -> dict[str, Any]:
    """The keys that llama.cpp's converter writes; a change of None takes one away, __ stands for a dot."""
    values: dict[str, Any] = {
        "block_count": 7, "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16,
        "attention.value_length": 16, "embedding_length": 64, "feed_forward_length": 128, "context_length": 512,
        "attention.layer_norm_rms_epsilon": 9.999999974752427e-07, "rope.freq_base": 1e6,
        "attention.sliding_window": 32,
    }  # fmt: skip
    if architecture == "gemma3n":
        values |= {
            "altup.active_idx": 0, "altup.num_inputs": 4, "embedding_length_per_layer_input": 16,
            "attention.shared_kv_layers": 3, "activation_sparsity_scale": [1.6448534727] * 2 + [-float("inf")] * 5,
            "attention.sliding_window_pattern": [True] * 4 + [False, True, False],
        }  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    found = {f"{architecture}.{key}": value for key, value in values.items() if value is not None}
    return {"general.architecture": architecture} | found


def derived(architecture: str = "gemma3", tensors: dict[str, TensorInfo] = TENSORS, **changes: Any) -> dict[str, Any]:
    return derived_config(FILE, metadata(architecture, **changes), tensors)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_model_is_the_one_it_was_written_from(name: str, tmp_path: Path) -> None:
    write_tiny(name, tmp_path)
    write_gguf(tmp_path, tmp_path / "a.gguf", "F32")
    original, found = Checkpoint.open(tmp_path), Checkpoint.open(tmp_path / "a.gguf")
    expected = Model.from_json(original.text_config)
    config = Model.from_json(found.text_config).config
    rows = found.tensors["model.embed_tokens.weight"].shape[0]  # cut to the tokenizer's
    assert rows <= expected.config.vocab_size
    assert vars(config) == vars(expected.config) | {"vocab_size": rows}


def test_what_llama_cpp_has_no_word_for_is_not_written(tmp_path: Path) -> None:
    write_tiny(SCALED_OTHERWISE, tmp_path)
    with pytest.raises(ValueError, match=r"^query_pre_attn_scalar: llama.cpp scales by the size of a head$"):
        write_gguf(tmp_path, tmp_path / "a.gguf", "F32")


def test_a_number_is_the_one_that_was_meant() -> None:
    config = derived(rope__freq_base_swa=12345.599609375, rope__scaling__factor=8.0)
    assert config["rms_norm_eps"] == 1e-06
    assert config["rope_local_base_freq"] == 12345.6
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert derived("gemma3n")["activation_sparsity_pattern"] == [0.95, 0.95, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_a_share_that_is_not_round() -> None:
    [share, *_] = derived("gemma3n", activation_sparsity_scale=[0.123456789] * 7)["activation_sparsity_pattern"]
    assert share == pytest.approx(0.549127, abs=1e-6)
    assert round(share, 4) != share


def test_what_the_file_does_not_say_is_llama_cpps() -> None:
    config = derived()
    full = "full_attention"
    assert config["rope_local_base_freq"] == 10_000.0
    assert config["rope_scaling"] is None
    assert [i for i, kind in enumerate(config["layer_types"]) if kind == full] == [5]
    assert config["query_pre_attn_scalar"] == 16
    assert config["final_logit_softcapping"] is None
    assert config["tie_word_embeddings"] is True
    assert derived(block_count=62)["query_pre_attn_scalar"] == 64 // 4
    assert derived(attention__head_count_kv=None)["num_key_value_heads"] == 4
    assert set(derived(attention__sliding_window=None)["layer_types"]) == {full}
    assert set(derived(attention__sliding_window=0)["layer_types"]) == {full}
    assert derived(attention__sliding_window_pattern=2)["layer_types"].count(full) == 3
    assert derived(attention__sliding_window_pattern=0)["layer_types"].count(full) == 0
    assert derived(attention__head_count=[4] * 7)["num_attention_heads"] == 4
    assert derived(rope__scaling__type="none", rope__scaling__factor=2.0)["rope_scaling"] is None
    many = derived("gemma3n", block_count=30, attention__shared_kv_layers=None, attention__sliding_window_pattern=None,
                   activation_sparsity_scale=[0.0] * 30)  # fmt: skip
    assert many["num_kv_shared_layers"] == 10
    assert [i for i, kind in enumerate(many["layer_types"]) if kind == full] == [4, 9, 14, 19, 24, 29]
    assert many["final_logit_softcapping"] == 30.0
    assert many["altup_coef_clip"] == 120.0
    assert (many["vocab_size"], many["vocab_size_per_layer_input"], many["laurel_rank"]) == (100, 90, 8)


HEAD = {"lm_head.weight": tensor("lm_head.weight", 100, 64)}


def test_a_head_of_its_own() -> None:
    assert derived(tensors=TENSORS | HEAD)["tie_word_embeddings"] is False


@pytest.mark.parametrize("key", ["block_count", "attention.head_count", "attention.key_length", "embedding_length",
    "feed_forward_length", "context_length", "attention.layer_norm_rms_epsilon", "rope.freq_base"])  # fmt: skip
def test_what_cannot_be_known_is_refused_by_name(key: str) -> None:
    missing: dict[str, Any] = {key.replace(".", "__"): None}
    assert one_line(lambda: derived(**missing)) == (
        f"a.gguf: has no gemma3.{key}, which the model's config.json follows from; "
        "convert the model anew with llama.cpp"
    )


@pytest.mark.parametrize("name", ["embed_tokens.weight", "embed_tokens_per_layer.weight",
    "layers.0.laurel.linear_left.weight"])  # fmt: skip
def test_a_tensor_whose_shape_is_needed(name: str) -> None:
    tensors = {key: info for key, info in TENSORS.items() if key != f"model.{name}"}
    assert one_line(lambda: derived("gemma3n", tensors)) == f"a.gguf: {name} is missing; the file is incomplete"


@pytest.mark.parametrize(
    ("architecture", "key", "value", "expected"),
    [
        ("gemma3", "block_count", 0, "an integer from 1 to 1000"),
        ("gemma3", "block_count", 1001, "an integer from 1 to 1000"),
        ("gemma3", "block_count", "7", "an integer from 1 to 1000"),
        ("gemma3", "attention.head_count", [4, 2], "an integer from 1 to 2147483647"),
        ("gemma3", "attention.head_count", [], "an integer from 1 to 2147483647"),
        ("gemma3", "attention.head_count", True, "an integer from 1 to 2147483647"),
        ("gemma3", "attention.value_length", 8, "16, as attention.key_length"),
        ("gemma3", "rope.dimension_count", 8, "16, as attention.key_length"),
        ("gemma3", "attention.causal", False, "true"),
        ("gemma3", "rope.freq_base", "1e6", "a number of at least 0"),
        ("gemma3", "rope.freq_base", float("nan"), "a number of at least 0"),
        ("gemma3", "rope.freq_base", float("inf"), "a number of at least 0"),
        ("gemma3", "rope.freq_base", -1.0, "a number of at least 0"),
        ("gemma3", "rope.scaling.type", 3, "a text"),
        ("gemma3", "attention.sliding_window_pattern", [True] * 6, "a period, or true or false for each of 7 layers"),
        ("gemma3", "attention.sliding_window_pattern", -1, "a period, or true or false for each of 7 layers"),
        ("gemma3n", "attention.sliding_window_pattern", [2] * 7, "a period, or true or false for each of 7 layers"),
        ("gemma3n", "feed_forward_length", [128] * 6, "a positive integer, or one for each of 7 layers"),
        ("gemma3n", "feed_forward_length", [0] * 7, "a positive integer, or one for each of 7 layers"),
        ("gemma3n", "attention.shared_kv_layers", -1, "an integer of at least 0"),
        ("gemma3n", "altup.active_idx", 0.5, "an integer of at least 0"),
        ("gemma3n", "activation_sparsity_scale", [0.0] * 6, "a number for each of 7 layers"),
        ("gemma3n", "activation_sparsity_scale", [float("nan")] * 7, "a number for each of 7 layers"),
        ("gemma3n", "activation_sparsity_scale", 0.5, "a number for each of 7 layers"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be(architecture: str, key: str, value: Any, expected: str) -> None:
    assert one_line(lambda: derived(architecture, **{key.replace(".", "__"): value})) == (
        f"a.gguf: {architecture}.{key} is {value}, expected {expected}; correct the file"
    )


def test_a_rope_scaling_that_is_not_computed() -> None:
    assert one_line(lambda: derived(rope__scaling__type="yarn", rope__scaling__factor=4.0)) == (
        "a.gguf: gemma3.rope.scaling.type is yarn, expected 'linear' or 'none'; correct the file"
    )


@pytest.mark.parametrize("key", ["attention.temperature_scale", "rope.global.freq_base", "expert_count"])
def test_a_key_that_may_change_the_arithmetic(key: str) -> None:
    unknown: dict[str, Any] = {key.replace(".", "__"): 8}
    assert one_line(lambda: derived(**unknown)) == (
        f"a.gguf: gemma3.{key} is 8, which no model here knows; convert the original safetensors checkpoint"
    )
    assert derived(vision__block_count=27)  # a description of what lies in another file


def test_stop_tokens_and_sampling() -> None:
    ends = {f"tokenizer.ggml.{name}_token_id": number for name, number in (("eos", 1), ("eot", 106), ("bos", 2))}
    assert derived_generation(FILE, ends) == {"eos_token_id": [1, 106]}
    sampling = {
        "general.sampling.top_k": 40,
        "general.sampling.top_p": 0.89999998,
        "general.sampling.temp": 0.0,
    }
    assert derived_generation(FILE, sampling) == {"eos_token_id": [], "top_k": 40, "top_p": 0.9, "temperature": 0.0}
    assert one_line(lambda: derived_generation(FILE, {"general.sampling.top_k": 0})) == (
        "a.gguf: general.sampling.top_k is 0, expected an integer from 1 to 2147483647; correct the file"
    )


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])
def test_the_file_is_read_by_ggufs_keys(name: str, repository: Path, tmp_path: Path) -> None:
    """gguf's own writer names the keys that are read here."""
    write_gguf(repository / "tests" / "fixtures" / name, tmp_path / "a.gguf", "F16")
    keys = read_gguf(tmp_path / "a.gguf").metadata
    assert f"{name.removeprefix('tiny-')}.attention.layer_norm_rms_epsilon" in keys
