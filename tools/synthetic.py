"""Write a full-size checkpoint with the official names, shapes and dtypes, and random values, in little memory.

    python -m tools.synthetic {1b,e2b,e4b,gemma4-e2b,gemma4-e4b} DIRECTORY [--encoders] [--shards N] [--seed 0]

For measuring time and memory of conversions and of the converted models, where the real checkpoints cannot be had. The
values are one random block repeated, scaled so that activations stay finite. Of the vision and audio parts of Gemma 3n
only the two small embedders are written; with --encoders the encoders too, 1.9 GB more, and 0.9 GB of Gemma 4. The
tokenizer is the tiny fixtures': smaller than the vocabulary, but working.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import numpy as np

from gemma_edge.converter.checkpoint.slices.shards import Header, write_shards
from gemma_edge.converter.models.encoders import encoders_of
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.tensors import Role, TensorSpec

TOKENIZER = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-gemma3n"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")

# Prime, so that the repeated block meets the rows of a matrix at ever different columns.
BLOCK_VALUES = 2_097_143

GEMMA3_1B: Mapping[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": 262144,
}  # fmt: skip

GEMMA3N_AUDIO: Mapping[str, Any] = {
    "conf_attention_chunk_size": 12, "conf_attention_context_left": 13, "conf_attention_context_right": 0,
    "conf_attention_logit_cap": 50.0, "conf_conv_kernel_size": 5, "conf_num_attention_heads": 8,
    "conf_num_hidden_layers": 12, "conf_reduction_factor": 4, "conf_residual_weight": 0.5,
    "gradient_clipping": 10000000000.0, "hidden_size": 1536, "input_feat_size": 128, "model_type": "gemma3n_audio",
    "rms_norm_eps": 1e-06, "sscp_conv_channel_size": [128, 32], "sscp_conv_group_norm_eps": 0.001,
    "sscp_conv_kernel_size": [[3, 3], [3, 3]], "sscp_conv_stride_size": [[2, 2], [2, 2]], "torch_dtype": "bfloat16",
    "vocab_offset": 262272, "vocab_size": 128,
}  # fmt: skip

GEMMA3N_VISION: Mapping[str, Any] = {
    "architecture": "mobilenetv5_300m_enc", "do_pooling": False, "hidden_size": 2048, "initializer_range": 0.02,
    "label_names": ["LABEL_0", "LABEL_1"], "model_args": None, "model_type": "gemma3n_vision", "num_classes": 2,
    "rms_norm_eps": 1e-06, "torch_dtype": "bfloat16", "vocab_offset": 262144, "vocab_size": 128,
}  # fmt: skip

GEMMA4_VISION: Mapping[str, Any] = {
    "attention_bias": False, "head_dim": 64, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 768,
    "intermediate_size": 3072, "model_type": "gemma4_vision", "num_attention_heads": 12, "num_hidden_layers": 16,
    "num_key_value_heads": 12, "patch_size": 16, "pooling_kernel_size": 3, "position_embedding_size": 10240,
    "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 100.0, "rope_type": "axial"}, "standardize": False,
    "use_clipped_linears": True,
}  # fmt: skip

GEMMA4_AUDIO: Mapping[str, Any] = {
    "attention_chunk_size": 12, "attention_context_left": 13, "attention_context_right": 0,
    "attention_logit_cap": 50.0, "conv_kernel_size": 5, "gradient_clipping": 10000000000.0, "hidden_act": "silu",
    "hidden_size": 1024, "model_type": "gemma4_audio", "num_attention_heads": 8, "num_hidden_layers": 12,
    "output_proj_dims": 1536, "residual_weight": 0.5, "rms_norm_eps": 1e-06, "subsampling_conv_channels": [128, 32],
    "use_clipped_linears": True,
}  # fmt: skip


def gemma3n_config(layers: int, hidden: int, shared_layers: int) -> dict[str, Any]:
    """config.json of google/gemma-3n-E2B-it and E4B-it, which differ in these three numbers."""
    text = {
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * (layers - 10), "altup_active_idx": 0,
        "altup_coef_clip": 120.0, "altup_correct_scale": True, "altup_lr_multiplier": 1.0, "altup_num_inputs": 4,
        "attention_bias": False, "attention_dropout": 0.0, "final_logit_softcapping": 30.0, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2048, "hidden_size_per_layer_input": 256,
        "initializer_range": 0.02, "intermediate_size": [hidden] * layers, "laurel_rank": 64,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * (layers // 5),
        "max_position_embeddings": 32768, "model_type": "gemma3n_text", "num_attention_heads": 8,
        "num_hidden_layers": layers, "num_key_value_heads": 2, "num_kv_shared_layers": shared_layers,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0, "rope_scaling": None,
        "rope_theta": 1000000.0, "sliding_window": 512, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": 262400, "vocab_size_per_layer_input": 262144,
    }  # fmt: skip
    return {
        "architectures": ["Gemma3nForConditionalGeneration"], "audio_config": GEMMA3N_AUDIO,
        "audio_soft_tokens_per_image": 188, "audio_token_id": 262273, "boa_token_id": 256000, "boi_token_id": 255999,
        "eoa_token_id": 262272, "eoi_token_id": 262144, "eos_token_id": [1, 106], "image_token_id": 262145,
        "initializer_range": 0.02, "model_type": "gemma3n", "text_config": text, "torch_dtype": "bfloat16",
        "transformers_version": "4.53.0.dev0", "vision_config": GEMMA3N_VISION, "vision_soft_tokens_per_image": 256,
    }  # fmt: skip


def gemma4_config(**numbers: Any) -> dict[str, Any]:
    """config.json of google/gemma-4-E2B-it and E4B-it, which differ in these numbers; the encoders are the same."""
    text = {
        "attention_bias": False, "attention_k_eq_v": False, "enable_moe_block": False, "final_logit_softcapping": 30.0,
        "global_head_dim": 512, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 256, "max_position_embeddings": 131072, "model_type": "gemma4_text",
        "num_attention_heads": 8, "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 512, "tie_word_embeddings": True, "vocab_size": 262144, "vocab_size_per_layer_input": 262144,
    } | numbers  # fmt: skip
    return {
        "architectures": ["Gemma4ForConditionalGeneration"], "audio_config": GEMMA4_AUDIO, "dtype": "bfloat16",
        "eos_token_id": [1, 106], "model_type": "gemma4", "text_config": text, "tie_word_embeddings": True,
        "vision_config": GEMMA4_VISION,
    }  # fmt: skip


GEMMA4_E2B = gemma4_config(
    num_hidden_layers=35, num_kv_shared_layers=20, hidden_size=1536, intermediate_size=6144, num_key_value_heads=1,
    use_double_wide_mlp=True, layer_types=[*["sliding_attention"] * 4, "full_attention"] * 7,
)  # fmt: skip
GEMMA4_E4B = gemma4_config(
    num_hidden_layers=42, num_kv_shared_layers=18, hidden_size=2560, intermediate_size=10240, num_key_value_heads=2,
    use_double_wide_mlp=False, layer_types=[*["sliding_attention"] * 5, "full_attention"] * 7,
)  # fmt: skip

GENERATION_CONFIG: Mapping[str, Any] = {
    "bos_token_id": 2, "cache_implementation": "hybrid", "do_sample": True, "eos_token_id": [1, 106],
    "pad_token_id": 0, "top_k": 64, "top_p": 0.95,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """One official checkpoint: its config.json, what its decoder's names begin with, how many files it comes in."""

    config: Mapping[str, Any]
    prefix: str
    shards: int


SIZES: Mapping[str, Size] = {
    "1b": Size(GEMMA3_1B, "model.", 1),
    "e2b": Size(gemma3n_config(layers=30, hidden=8192, shared_layers=10), "model.language_model.", 3),
    "e4b": Size(gemma3n_config(layers=35, hidden=16384, shared_layers=15), "model.language_model.", 4),
    "gemma4-e2b": Size(GEMMA4_E2B, "model.language_model.", 3),
    "gemma4-e4b": Size(GEMMA4_E4B, "model.language_model.", 4),
}


@dataclass(frozen=True)
class Normal:
    """A stored bf16 tensor of normally distributed values."""

    shape: tuple[int, ...]
    mean: float
    deviation: float


def synthetic_tensors(size: Size, with_towers: bool = False) -> dict[str, Normal]:
    """Every tensor of the checkpoint by its stored name, in the order of the model."""
    text_config = size.config.get("text_config", size.config)
    specs = {spec.source: spec for spec in Model.from_json(text_config).tensors.values()}  # one entry for a tied head
    tensors = {size.prefix + source: _distribution(spec) for source, spec in specs.items()}
    if size.config["model_type"] == "gemma3n":
        tensors |= _unused_kv(text_config, size.prefix)
        tensors |= _embedder("model.embed_vision.", GEMMA3N_VISION, text_config["hidden_size"])
        tensors |= _embedder("model.embed_audio.", GEMMA3N_AUDIO, text_config["hidden_size"])
    if with_towers and "vision_config" in size.config:
        tensors |= _encoders(size.config)
    return tensors


def _distribution(spec: TensorSpec) -> Normal:
    """Values that keep activations near unit size, as trained ones do."""
    if spec.role is Role.NORM:
        return Normal(spec.shape, 1.0 - spec.fold.add, 0.1)  # Gemma 3 stores w-1
    if spec.source.endswith("modality_router.weight"):
        return Normal(spec.shape, 0.0, 1.0)
    if spec.role is Role.PLE:
        return Normal(spec.shape, 0.0, 1.0 / spec.fold.mul)  # a row is one vector per layer, multiplied by sqrt(P)
    return Normal(spec.shape, 0.0, 1.0 / math.sqrt(spec.shape[-1]))


def _unused_kv(text_config: Mapping[str, Any], prefix: str) -> dict[str, Normal]:
    """Keys and values of the layers that share another's: the official files hold them, transformers drops them.

    See _keys_to_ignore_on_load_unexpected in modeling_gemma3n.py; with them E2B's text part has the published 4.46 B.
    """
    layers, width, size = (text_config[key] for key in ("num_hidden_layers", "hidden_size", "head_dim"))
    kv_width = text_config["num_key_value_heads"] * size
    tensors = {}
    for layer in range(layers - text_config["num_kv_shared_layers"], layers):
        attention = f"{prefix}layers.{layer}.self_attn."
        for projection in ("k_proj", "v_proj"):
            tensors[f"{attention}{projection}.weight"] = Normal((kv_width, width), 0.0, width**-0.5)
        tensors[f"{attention}k_norm.weight"] = Normal((size,), 1.0, 0.1)
    return tensors


def _embedder(prefix: str, config: Mapping[str, Any], text_width: int) -> dict[str, Normal]:
    """Gemma3nMultimodalEmbedder, between an encoder and the decoder."""
    width = config["hidden_size"]
    return {
        prefix + "embedding.weight": Normal((config["vocab_size"], width), 0.0, width**-0.5),
        prefix + "hard_embedding_norm.weight": Normal((width,), 1.0, 0.1),
        prefix + "soft_embedding_norm.weight": Normal((width,), 1.0, 0.1),
        prefix + "embedding_projection.weight": Normal((text_width, width), 0.0, width**-0.5),
    }


def _encoders(config: Mapping[str, Any]) -> dict[str, Normal]:
    """Both encoders, with values that keep the size of a unit input; of Gemma 4's, the embedders as well."""
    stored = {
        part.source: part.shape
        for encoder in encoders_of(config, MediaSettings(), config["model_type"])
        for spec in encoder.tensors.values()
        for part in spec.stored
        if part.source.startswith(encoder.prefixes if config["model_type"] == "gemma4" else encoder.prefixes[0])
    }
    return {f"model.{source}": _encoder_values(source, shape) for source, shape in stored.items()}


def _encoder_values(source: str, shape: tuple[int, ...]) -> Normal:
    if source.endswith("position_embedding_table"):
        return Normal(shape, 0.0, 0.5)
    if len(shape) > 1:
        return Normal(shape, 0.0, 1.0 / math.sqrt(math.prod(shape[1:])))
    if source.endswith(("q_norm.weight", "k_norm.weight")):  # no attention scale: these norms hold E^-0.5
        return Normal(shape, shape[0] ** -0.25, 0.1 * shape[0] ** -0.25)
    if source.endswith(("_min", "_max")):  # bounds of a linear layer's inputs and outputs
        return Normal(shape, -5.0 if source.endswith("_min") else 5.0, 0.1)
    if source.endswith(("per_dim_scale", "bias")):
        return Normal(shape, 0.0, 0.1)
    return Normal(shape, 0.3 if source.endswith("gamma") else 1.0, 0.1)  # scales of a residual, norms


def write_synthetic(size: Size, directory: Path, shards: int, seed: int = 0, with_towers: bool = False) -> int:
    """Write the checkpoint; returns the bytes of its weights. Resident memory stays below 150 MB."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(size.config, indent=2) + "\n")
    (directory / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG, indent=2) + "\n")
    for file_name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER / file_name, directory / file_name)
    tensors = synthetic_tensors(size, with_towers)
    starts = {name: number * 12_289 % BLOCK_VALUES for number, name in enumerate(tensors)}
    noise = np.random.default_rng(seed).standard_normal(BLOCK_VALUES, np.float32)

    @lru_cache(maxsize=8)  # a model has few distinct distributions
    def block(mean: float, deviation: float) -> memoryview:
        values = noise * np.float32(deviation) + np.float32(mean)
        return (values.view(np.uint32) >> 16).astype(np.uint16).data.cast("B")  # bf16 is the upper half

    def values(name: str) -> Iterator[memoryview]:
        normal = tensors[name]
        source = block(normal.mean, normal.deviation)
        unwritten = 2 * math.prod(normal.shape)
        piece = source[2 * starts[name] :]
        while unwritten:
            yield piece[:unwritten]
            unwritten -= len(piece[:unwritten])
            piece = source

    stored = {name: Header("BF16", normal.shape) for name, normal in tensors.items()}
    write_shards(directory, stored, values, shards)
    return sum(tensor.nbytes for tensor in stored.values())


@click.command()
@click.argument("size", type=click.Choice(list(SIZES)))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--shards", type=int, help="safetensors files.  [default: as the official checkpoint has]")
@click.option("--seed", default=0, show_default=True)
@click.option("--encoders", is_flag=True, help="With the encoders of images and audio.")
def main(size: str, directory: Path, shards: int | None, seed: int, encoders: bool) -> None:
    """Write a full-size checkpoint with random values."""
    official = SIZES[size]
    begin = time.monotonic()
    nbytes = write_synthetic(official, directory, shards or official.shards, seed, encoders)
    seconds = time.monotonic() - begin
    click.echo(f"{directory}: {nbytes / 2**30:.2f} GiB in {seconds:.1f} s, {nbytes / 2**20 / seconds:.0f} MiB/s")


if __name__ == "__main__":
    main()
