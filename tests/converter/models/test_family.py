"""From config.json to a model: families, defaults, layers that share KV, and configurations that are refused."""

from dataclasses import fields
from typing import Any

import pytest
import transformers

from gemma_edge.converter.graph.ops import Rope
from gemma_edge.converter.models import gemma3, gemma3n, gemma4
from gemma_edge.converter.models.blocks import AttentionLayer, Heads
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.fields import ConfigError
from tools.tiny import TINY

S, F = "sliding_attention", "full_attention"


def config_3n(**changes: Any) -> gemma3n.Config:
    config = Model.from_json({"model_type": "gemma3n_text"} | changes).config
    assert isinstance(config, gemma3n.Config)
    return config


def config_3(**changes: Any) -> gemma3.Config:
    config = Model.from_json({"model_type": "gemma3_text"} | changes).config
    assert isinstance(config, gemma3.Config)
    return config


def config_4(**changes: Any) -> gemma4.Config:
    config = Model.from_json({"model_type": "gemma4_text"} | changes).config
    assert isinstance(config, gemma4.Config)
    return config


def message(text_config: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        Model.from_json(text_config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "family"),
    [
        ("gemma3_text", "gemma3"),
        ("gemma3", "gemma3"),
        ("gemma3n_text", "gemma3n"),
        ("gemma3n", "gemma3n"),
        ("gemma4_text", "gemma4"),
        ("gemma4", "gemma4"),
    ],
)
def test_model_types(model_type: str, family: str) -> None:
    assert Model.from_json({"model_type": model_type}).family == family


@pytest.mark.parametrize("model_type", ["gemma2", "llama", None])
def test_an_unknown_model_type(model_type: str | None) -> None:
    assert message({"model_type": model_type}) == (
        f"config.json: model_type is {model_type!r}, expected one of gemma3_text, gemma3, gemma3n_text, gemma3n, "
        "gemma4_text, gemma4; see CONTRIBUTING.md"
    )


@pytest.mark.parametrize(
    ("config_class", "model_type"),
    [
        (transformers.Gemma3TextConfig, "gemma3_text"),
        (transformers.Gemma3nTextConfig, "gemma3n_text"),
        (transformers.Gemma4TextConfig, "gemma4_text"),
    ],
)
def test_absent_keys_mean_what_transformers_says(config_class: type, model_type: str) -> None:
    """A config.json with nothing but its model_type is the same model as transformers' defaults written out."""
    written_out = config_class().to_dict()
    assert Model.from_json({"model_type": model_type}).config == Model.from_json(written_out).config


COMMON_KEYS = {
    "vocab_size": 100, "hidden_size": 96, "intermediate_size": 100, "num_hidden_layers": 20, "head_dim": 64,
    "num_attention_heads": 16, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "sliding_window": 100,
    "max_position_embeddings": 100, "tie_word_embeddings": False, "final_logit_softcapping": 7.0,
}  # fmt: skip
OLD_ROPE = {
    "rope_theta": 7.0, "rope_local_base_freq": 7.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}  # fmt: skip
OTHER_KEYS: dict[str, dict[str, Any]] = {
    "gemma3_text": OLD_ROPE | {"query_pre_attn_scalar": 64, "sliding_window_pattern": 2, "layer_types": [S] * 25 + [F]},
    "gemma3n_text": OLD_ROPE | {
        "vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 64, "num_kv_shared_layers": 10,
        "altup_num_inputs": 3, "altup_active_idx": 1, "altup_coef_clip": 7.0, "altup_correct_scale": False,
        "laurel_rank": 32, "activation_sparsity_pattern": [0.5] * 35, "layer_types": [F] * 35,
    },
    "gemma4_text": {
        "vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 64, "num_kv_shared_layers": 10,
        "layer_types": [S] * 29 + [F], "global_head_dim": 64, "per_layer_config": {},
        "rope_parameters": {S: {"rope_theta": 1e4}, F: {"rope_theta": 1e6, "rope_type": "proportional"}},
    },
}  # fmt: skip


@pytest.mark.parametrize("model_type", OTHER_KEYS)
def test_no_key_is_ignored(model_type: str) -> None:
    base = Model.from_json({"model_type": model_type}).config
    for key, value in (COMMON_KEYS | OTHER_KEYS[model_type]).items():
        assert Model.from_json({"model_type": model_type, key: value}).config != base, key


def test_gemma3_layers() -> None:
    config = config_3(num_hidden_layers=7, sliding_window=512)
    heads = Heads(8, 4, 256)
    sliding, full = AttentionLayer(Rope(10_000.0), 512, heads), AttentionLayer(Rope(1_000_000.0), None, heads)
    assert config.attention == (sliding,) * 5 + (full, sliding)
    assert config_3(num_hidden_layers=4, sliding_window=512, sliding_window_pattern=2).attention == (sliding, full) * 2
    written = config_3(
        num_hidden_layers=4, sliding_window=512, _sliding_window_pattern=2
    )  # transformers does not read it
    assert written.attention == (sliding,) * 4


def test_gemma3n_layers_repeat_every_five() -> None:
    windows = [layer.window for layer in config_3n(num_hidden_layers=10, num_kv_shared_layers=5).attention]
    assert windows == [512, 512, 512, 512, None] * 2


def test_gemma3n_sparsity_defaults_to_the_first_ten_layers() -> None:
    assert config_3n(num_hidden_layers=12, num_kv_shared_layers=2).sparsity == (0.95,) * 10 + (0.0,) * 2
    assert config_3n(num_hidden_layers=10, num_kv_shared_layers=2).sparsity == (0.0,) * 10


def test_gemma3n_without_sparsity() -> None:
    """Only an absent pattern, or null, is transformers' default: none at all is another thing."""
    sizes = {"num_hidden_layers": 12, "num_kv_shared_layers": 2}
    assert config_3n(**sizes, activation_sparsity_pattern=None) == config_3n(**sizes)
    assert config_3n(**sizes, activation_sparsity_pattern=0.0).sparsity == (0.0,) * 12
    assert "activation_sparsity_pattern has 0 entries" in message(
        {"model_type": "gemma3n_text", **sizes, "activation_sparsity_pattern": []}
    )


def test_each_sharing_layer_reads_the_last_owner_of_its_kind() -> None:
    config = config_3n(num_hidden_layers=8, num_kv_shared_layers=3, layer_types=[S, S, F, S, F, S, F, S])
    assert config.kv_layers == 5
    assert [config.kv_source(layer) for layer in range(8)] == [0, 1, 2, 3, 4, 3, 4, 3]


def test_gemma4_layers() -> None:
    """Wider heads where attention is full, wider feed-forward parts where keys and values are another's."""
    sizes = {"num_hidden_layers": 5, "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "intermediate_size": 64}
    config = config_4(**sizes, layer_types=[F, S, S, S, S])
    sliding = AttentionLayer(Rope(10_000.0), 512, Heads(8, 4, 256))
    full = AttentionLayer(Rope(1_000_000.0, share=0.25), None, Heads(8, 4, 512))
    assert config.attention == (full, sliding, sliding, sliding, full)  # the last is full whatever layer_types says
    assert config.ffn_widths == (64, 64, 64, 128, 128)
    assert [config.kv_source(layer) for layer in range(5)] == [0, 1, 2, 2, 0]
    assert config_4(hidden_size_per_layer_input=0).ple_values == 0


def test_gemma4_heads_are_spelled_in_two_ways() -> None:
    sizes = {"num_hidden_layers": 4, "layer_types": [S, F, S, F]}
    spelled = {"per_layer_config": {"1": {"head_dim": 64}, "3": {"head_dim": 64}}}
    assert config_4(**sizes, **spelled) == config_4(**sizes, global_head_dim=64)
    assert config_4(**sizes, per_layer_config={"01": {"head_dim": 64}, "03": {"head_dim": 64}}) == config_4(
        **sizes, global_head_dim=64
    )
    assert config_4(**sizes, per_layer_config={}) == config_4(**sizes, global_head_dim=256)


@pytest.mark.parametrize("own", [{"head_dim": 64}, {"intermediate_size": 64}, {"skip": ["mlp"]}, 64])
def test_gemma4_heads_that_differ_within_a_kind(own: object) -> None:
    text_config = {"num_hidden_layers": 4, "layer_types": [S, F, S, F], "per_layer_config": {"2": own}}
    assert message({"model_type": "gemma4_text"} | text_config).startswith(
        f"config.json: per_layer_config is {own!r} for layer 2, expected head_dim and num_key_value_heads, the same in "
        "every layer of sliding_attention; this model needs new code"
    )


def test_gemma4_layers_that_are_not_there() -> None:
    assert message({"model_type": "gemma4_text", "num_hidden_layers": 4, "per_layer_config": {"4": {}}}) == (
        "config.json: per_layer_config has '4', expected numbers of the 4 layers; fix the checkpoint"
    )


def test_gemma4_rope() -> None:
    def rope(**full: Any) -> Rope:
        parameters = {S: {"rope_type": "default", "rope_theta": 7.0}, F: full}
        config = config_4(num_hidden_layers=2, rope_parameters=parameters)
        assert config.attention[0].rope == Rope(7.0)
        return config.attention[1].rope

    assert rope(rope_theta=9.0, partial_rotary_factor=0.5) == Rope(9.0)  # only "proportional" reads the share
    assert rope(rope_theta=9.0, rope_type="proportional") == Rope(9.0)
    assert rope(rope_theta=9.0, rope_type="proportional", partial_rotary_factor=0.5) == Rope(9.0, share=0.5)
    assert Rope(9.0, share=0.5).inverse_frequencies(8).tolist()[2:] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        ({"rope_type": "yarn", "rope_theta": 9.0}, "rope_type is 'yarn', only 'default' or 'proportional' is"),
        ({"rope_type": "default"}, "rope_theta is None, expected a number > 0"),
        (
            {"rope_type": "proportional", "rope_theta": 9.0, "partial_rotary_factor": 1.5},
            "partial_rotary_factor is 1.5, expected at most 1; fix the checkpoint",
        ),
    ],
)
def test_gemma4_rope_refused(full: dict[str, Any], expected: str) -> None:
    found = message({"model_type": "gemma4_text", "rope_parameters": {S: {"rope_theta": 7.0}, F: full}})
    assert found.startswith(f"config.json: rope_parameters: full_attention: {expected}")


def test_no_sharing() -> None:
    config = config_3n(num_hidden_layers=4, num_kv_shared_layers=0)
    assert [config.kv_source(layer) for layer in range(4)] == [0, 1, 2, 3]


def test_a_sharing_layer_has_neither_keys_nor_values_of_its_own() -> None:
    model = Model.from_json({"model_type": "gemma3n_text"} | dict(TINY["gemma3n-pattern"].config))
    assert isinstance(model.config, gemma3n.Config)
    for layer in range(10):
        owns = f"layers.{layer}.self_attn.k_proj.weight" in model.tensors
        assert owns == (f"layers.{layer}.self_attn.v_proj.weight" in model.tensors) == (layer < model.config.kv_layers)


@pytest.mark.parametrize("model_type", ["gemma3n_text", "gemma4_text"])
def test_more_shared_layers_than_layers(model_type: str) -> None:
    assert message({"model_type": model_type, "num_hidden_layers": 4, "num_kv_shared_layers": 4}) == (
        "config.json: num_kv_shared_layers is 4, expected less than the 4 layers; fix the checkpoint"
    )


@pytest.mark.parametrize("model_type", ["gemma3n_text", "gemma4_text"])
def test_a_kind_of_layer_whose_kv_nobody_owns(model_type: str) -> None:
    text_config = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": [S, S, S, F]}
    assert message({"model_type": model_type} | text_config) == (
        "config.json: the first 2 layers own KV but not of every kind in layer_types; "
        "lower num_kv_shared_layers or fix layer_types"
    )


@pytest.mark.parametrize("share", [1.0, -0.1, 95])
def test_sparsity_is_a_share(share: float) -> None:
    pattern = [share, 0.0]
    text_config = {"num_hidden_layers": 2, "num_kv_shared_layers": 0, "activation_sparsity_pattern": pattern}
    assert message({"model_type": "gemma3n_text"} | text_config) == (
        f"config.json: activation_sparsity_pattern is {tuple(pattern)}, expected shares in [0, 1); fix the checkpoint"
    )


def test_the_active_altup_stream_must_exist() -> None:
    assert config_3n(altup_active_idx=3).altup_active == 3
    assert message({"model_type": "gemma3n_text", "altup_active_idx": 4}) == (
        "config.json: altup_active_idx is 4, expected less than altup_num_inputs 4; fix the checkpoint"
    )


@pytest.mark.parametrize("model_type", ["gemma3_text", "gemma3n_text"])
def test_heads_that_do_not_divide(model_type: str) -> None:
    assert message({"model_type": model_type, "num_attention_heads": 6, "num_key_value_heads": 4}) == (
        "config.json: 6 attention heads do not share 4 KV heads evenly; fix the checkpoint"
    )


@pytest.mark.parametrize("model_type", ["gemma3_text", "gemma3n_text"])
def test_a_head_without_halves_to_rotate(model_type: str) -> None:
    assert message({"model_type": model_type, "head_dim": 33}) == (
        "config.json: head_dim is 33, expected an even number; fix the checkpoint"
    )


@pytest.mark.parametrize(
    ("model_type", "key"),
    [
        ("gemma3_text", "num_hidden_layers"),
        ("gemma3n_text", "num_hidden_layers"),
        ("gemma3n_text", "altup_num_inputs"),
        ("gemma4_text", "num_hidden_layers"),
    ],
)
def test_what_would_fill_the_memory_with_names(model_type: str, key: str) -> None:
    assert message({"model_type": model_type, key: 10**9}) == (
        f"config.json: {key} is 1000000000, expected at most 1000; fix the checkpoint"
    )


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("gemma3_text", "hidden_activation", "silu"),
        ("gemma3_text", "attention_bias", True),
        ("gemma3_text", "attn_logit_softcapping", 50.0),
        ("gemma3_text", "use_bidirectional_attention", True),
        ("gemma3n_text", "hidden_activation", "gelu"),
        ("gemma3n_text", "attention_bias", True),
        ("gemma4_text", "hidden_activation", "gelu"),
        ("gemma4_text", "attention_bias", True),
        ("gemma4_text", "attention_k_eq_v", True),
        ("gemma4_text", "enable_moe_block", True),
        ("gemma4_text", "use_bidirectional_attention", "all"),
    ],
)
def test_settings_that_would_give_other_numbers(model_type: str, key: str, value: object) -> None:
    assert message({"model_type": model_type, key: value}).startswith(f"config.json: {key} is {value!r}, only ")


@pytest.mark.parametrize("field", ["altup_clip", "softcap"])
def test_optional_numbers_of_3n(field: str) -> None:
    key = {"altup_clip": "altup_coef_clip", "softcap": "final_logit_softcapping"}[field]
    assert field in {f.name for f in fields(gemma3n.Config)}
    assert getattr(config_3n(**{key: None}), field) is None
    assert getattr(config_3n(**{key: 12}), field) == 12.0
