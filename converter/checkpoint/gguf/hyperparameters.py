"""A model's numbers as metadata of a GGUF: what config.py reads again. Keys as conversion/gemma.py writes them."""

from statistics import NormalDist
from typing import Final

from gemma_edge.converter.checkpoint.gguf.families import FAMILIES
from gemma_edge.converter.checkpoint.gguf.writer import Value
from gemma_edge.converter.models import gemma3n
from gemma_edge.converter.models.family import Model

NOTHING_CUT: Final = float("-inf")  # the quantile of a share of 0


def hyperparameters(model: Model) -> dict[str, Value]:
    """general.architecture and all that stands below its name."""
    config, family = model.config, FAMILIES[model.family]
    layers, heads = len(config.attention), config.attention[0].heads  # the same in all layers
    full = next((layer for layer in config.attention if layer.window is None), config.attention[0])
    values = {
        "context_length": Value("u32", config.max_context_tokens),
        "embedding_length": Value("u32", config.width),
        "block_count": Value("u32", layers),
        "feed_forward_length": Value("u32", config.ffn_width),
        "attention.head_count": Value("u32", heads.query),
        "attention.head_count_kv": Value("u32", heads.kv),
        "attention.key_length": Value("u32", heads.size),
        "attention.value_length": Value("u32", heads.size),
        "attention.layer_norm_rms_epsilon": Value("f32", config.eps),
        "rope.freq_base": Value("f32", full.rope.theta),
    }
    if config.softcap is not None:
        values["final_logit_softcapping"] = Value("f32", config.softcap)
    if full.rope.factor != 1.0:
        values["rope.scaling.type"] = Value("string", "linear")
        values["rope.scaling.factor"] = Value("f32", full.rope.factor)
    slides = [layer.window is not None for layer in config.attention]
    sliding = next((layer for layer in config.attention if layer.window is not None), None)
    if sliding is not None:
        values["attention.sliding_window"] = Value("u32", sliding.window)
        values["rope.freq_base_swa"] = Value("f32", sliding.rope.theta)
    if isinstance(config, gemma3n.Config):
        values |= _gemma3n(config)
    if slides != [(i + 1) % family.period != 0 for i in range(layers)] or model.family == gemma3n.FAMILY:
        values["attention.sliding_window_pattern"] = Value("bool", slides)
    named = {f"{family.architecture}.{key}": value for key, value in values.items()}
    return {"general.architecture": Value("string", family.architecture)} | named


def _gemma3n(config: gemma3n.Config) -> dict[str, Value]:
    scales = [NormalDist().inv_cdf(share) if share else NOTHING_CUT for share in config.sparsity]
    return {
        "feed_forward_length": Value("i32", list(config.ffn_widths)),
        "altup.active_idx": Value("u32", config.altup_active),
        "altup.num_inputs": Value("u32", config.altup_inputs),
        "embedding_length_per_layer_input": Value("u32", config.ple_width),
        "attention.shared_kv_layers": Value("u32", len(config.attention) - config.kv_layers),
        "activation_sparsity_scale": Value("f32", scales),
    }
