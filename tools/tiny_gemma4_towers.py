"""A tiny random Gemma 4 that also sees and hears, in Hugging Face format.

    python -m tools.tiny_gemma4_towers DIRECTORY [--seed 0]

Everything is there, at a small size: both encoders with bounds of their linear layers, embedders, a tokenizer with the
tokens of images and audio, the settings of a processor.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import click
import torch
import transformers

from tools.tiny import (
    GENERATION_CONFIG,
    TINY,
    TOKENIZER,
    TOKENIZER_VOCAB,
    Tiny,
    random_values,
    write_json,
    write_parameters,
)

SOFT_TOKENS = 70  # of an image, at most
MEDIA_TOKENS = (
    "<|image>", "<image|>", "<|image|>", "<|audio>", "<audio|>", "<|audio|>", "<|video|>", "<|turn>", "<turn|>",
    *(f"<unused_media{i}>" for i in range(7)),
)  # fmt: skip
IDS = {token: number for number, token in enumerate(MEDIA_TOKENS, start=TOKENIZER_VOCAB)}
VOCAB = TOKENIZER_VOCAB + len(MEDIA_TOKENS)

VISION: Mapping[str, Any] = {
    "model_type": "gemma4_vision", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "patch_size": 16, "pooling_kernel_size": 3,
    "position_embedding_size": 256, "use_clipped_linears": True,
}  # fmt: skip
AUDIO: Mapping[str, Any] = {
    "model_type": "gemma4_audio", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
    "subsampling_conv_channels": [128, 8], "output_proj_dims": 80, "use_clipped_linears": True,
}  # fmt: skip
TEXT = Tiny(
    dict(TINY["gemma4-e2b-pattern"].config) | {"vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB},
    prefix="model.language_model.",
)


def config_json() -> dict[str, Any]:
    """The whole config.json."""
    return deepcopy({
        "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4",
        "text_config": dict(TEXT.config), "vision_config": dict(VISION), "audio_config": dict(AUDIO),
        "boi_token_id": IDS["<|image>"], "eoi_token_id": IDS["<image|>"], "image_token_id": IDS["<|image|>"],
        "boa_token_id": IDS["<|audio>"], "eoa_token_index": IDS["<audio|>"], "audio_token_id": IDS["<|audio|>"],
        "video_token_id": IDS["<|video|>"], "tie_word_embeddings": TEXT.config["tie_word_embeddings"],
        "dtype": "float32",
    })  # fmt: skip


def write_tiny_gemma4_towers(directory: Path, seed: int = 0) -> transformers.Gemma4ForConditionalGeneration:
    """Write the checkpoint. Returns the model that holds exactly the stored values, in float32 and eval mode."""
    directory.mkdir(parents=True, exist_ok=True)
    model = build(seed)
    write_json(directory / "config.json", config_json())
    write_json(directory / "generation_config.json", GENERATION_CONFIG)
    write_json(directory / "processor_config.json", processor_json())
    write_json(directory / "tokenizer.json", tokenizer_json())
    tokenizer = json.loads((TOKENIZER / "tokenizer_config.json").read_text())
    write_json(directory / "tokenizer_config.json", tokenizer | SPECIAL_TOKENS)
    write_parameters(directory, tensors(model), "F32", shards=1)
    return model


def tensors(model: transformers.Gemma4ForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Parameters and stored buffers by name; a tied head is not among them."""
    stored = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    return dict(model.named_parameters()) | stored


def build(seed: int) -> transformers.Gemma4ForConditionalGeneration:
    """transformers' model with random values that all matter."""
    config = transformers.Gemma4Config(**{k: v for k, v in config_json().items() if k != "model_type"})
    config._attn_implementation = "eager"
    model = transformers.Gemma4ForConditionalGeneration(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in tensors(model).items():
            if name.startswith(("model.language_model.", "lm_head.")):
                text_name = name.replace("model.language_model.", "model.")
                tensor.copy_(random_values(text_name, tensor.shape, TEXT, generator))
            else:
                tensor.copy_(random_tower_values(name, tensor.shape, generator))
    return model


def random_tower_values(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Of an encoder or an embedder: the size of a unit input is kept, norms are not neutral, bounds cut some values."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith(("input_max", "output_max")):
        return 2.0 + 0.3 * noise
    if name.endswith(("input_min", "output_min")):
        return -2.0 + 0.3 * noise
    if name.endswith(("norm.weight", "norm_pre_attn.weight", "norm_post_attn.weight", "norm_out.weight", "std_scale")):
        return 1.0 + 0.3 * noise
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return (1.0 + 0.3 * noise) * shape[0] ** -0.25  # no attention scale
    if name.endswith(("per_dim_scale", "output_proj.bias", "std_bias", "position_embedding_table")):
        return noise
    return noise / noise[0].numel() ** 0.5


SPECIAL_TOKENS: Mapping[str, Any] = {
    "boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>",
    "boa_token": "<|audio>", "eoa_token": "<audio|>", "audio_token": "<|audio|>",
    "tokenizer_class": "GemmaTokenizer", "processor_class": "Gemma4Processor",
}  # fmt: skip


def tokenizer_json() -> dict[str, Any]:
    """The tiny tokenizer with the tokens of images, sound and turns behind its own."""
    tokenizer: dict[str, Any] = json.loads((TOKENIZER / "tokenizer.json").read_text())
    added = tokenizer["added_tokens"]
    for content, number in IDS.items():
        added.append(added[-1] | {"id": number, "content": content})
    return tokenizer


def processor_json() -> dict[str, Any]:
    """processor_config.json, as far as it is not transformers' default."""
    return {
        "processor_class": "Gemma4Processor",
        "image_processor": {"image_processor_type": "Gemma4ImageProcessor", "max_soft_tokens": SOFT_TOKENS},
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor", "hop_length": 160},
        "image_seq_length": SOFT_TOKENS,
    }  # fmt: skip


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
def main(directory: Path, seed: int) -> None:
    """Write a tiny random Gemma 4 with both encoders."""
    write_tiny_gemma4_towers(directory, seed)


if __name__ == "__main__":
    main()
