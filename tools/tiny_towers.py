"""A tiny random Gemma 3n that also sees and hears, in Hugging Face format.

    python -m tools.tiny_towers DIRECTORY [--seed 0]

Everything is there, at a small size: a MobileNet-V5 with each kind of block (timm builds it from `model_args`), a
conformer, both embedders, a tokenizer with the tokens of images and audio, the settings of a processor.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import click
import torch
import transformers

from tools.timm_beside import load_timm
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

IMAGE_PIXELS = 48  # 24, 12, 6, 3 places across, an odd number at last
VISION_TOKENS = ("<end_of_image>", "<image_soft_token>", *(f"<unused_image{i}>" for i in range(6)))
AUDIO_TOKENS = ("<end_of_audio>", "<audio_soft_token>", *(f"<unused_audio{i}>" for i in range(6)))
VISION_OFFSET = TOKENIZER_VOCAB
AUDIO_OFFSET = VISION_OFFSET + len(VISION_TOKENS)
VOCAB = AUDIO_OFFSET + len(AUDIO_TOKENS)

_COMMON: Mapping[str, Any] = {"act_layer": None, "noskip": False, "stride": 1}
EDGE = {**_COMMON, "block_type": "er", "exp_kernel_size": 3, "pw_kernel_size": 1, "force_in_chs": 0, "se_ratio": 0.0}
BOTTLENECK = {
    **_COMMON, "block_type": "uir", "dw_kernel_size_start": 0, "dw_kernel_size_mid": 0, "dw_kernel_size_end": 0,
    "se_ratio": 0.0,
}  # fmt: skip
ATTENTION = {**_COMMON, "block_type": "mqa", "dw_kernel_size": 3}

BLOCKS: list[list[dict[str, Any]]] = [
    [EDGE | {"out_chs": 32, "exp_ratio": 4.0, "stride": 2}, EDGE | {"out_chs": 32, "exp_ratio": 2.0}],
    [
        BOTTLENECK | {"out_chs": 64, "exp_ratio": 6.0, "stride": 2, "dw_kernel_size_start": 3, "dw_kernel_size_mid": 5},
        BOTTLENECK | {"out_chs": 64, "exp_ratio": 4.0, "dw_kernel_size_start": 5},
        ATTENTION | {"out_chs": 64, "num_heads": 3, "key_dim": 32, "value_dim": 32, "kv_stride": 2},
        BOTTLENECK | {"out_chs": 64, "exp_ratio": 1.0},
    ],
    [
        BOTTLENECK | {"out_chs": 96, "exp_ratio": 6.0, "stride": 2, "dw_kernel_size_start": 5, "dw_kernel_size_mid": 5},
        ATTENTION | {"out_chs": 96, "num_heads": 4, "key_dim": 32, "value_dim": 32, "kv_stride": 1},
        BOTTLENECK | {"out_chs": 96, "exp_ratio": 2.0},
    ],
]
"""As timm's decode_arch_def gives them."""

VISION: Mapping[str, Any] = {
    "model_type": "gemma3n_vision", "architecture": "mobilenetv5_300m_enc", "hidden_size": 2048, "num_classes": 2,
    "label_names": ["LABEL_0", "LABEL_1"], "vocab_size": len(VISION_TOKENS), "vocab_offset": VISION_OFFSET,
    "model_args": {"block_args": BLOCKS, "stem_size": 16, "msfa_output_resolution": 3},
}  # fmt: skip
AUDIO: Mapping[str, Any] = {
    "model_type": "gemma3n_audio", "hidden_size": 64, "conf_num_attention_heads": 4, "conf_num_hidden_layers": 2,
    "sscp_conv_channel_size": [16, 8], "vocab_size": len(AUDIO_TOKENS), "vocab_offset": AUDIO_OFFSET,
}  # fmt: skip
TEXT = Tiny(
    dict(TINY["gemma3n-pattern"].config) | {"vocab_size": VOCAB, "vocab_size_per_layer_input": TOKENIZER_VOCAB},
    prefix="model.language_model.",
)
IMAGE_TOKENS, CLIP_TOKENS = 9, 12


def config_json() -> dict[str, Any]:
    """The whole config.json."""
    return deepcopy({
        "architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n",
        "text_config": dict(TEXT.config), "vision_config": dict(VISION), "audio_config": dict(AUDIO),
        "vision_soft_tokens_per_image": IMAGE_TOKENS, "audio_soft_tokens_per_image": CLIP_TOKENS,
        "boi_token_id": 16, "eoi_token_id": VISION_OFFSET, "image_token_id": VISION_OFFSET + 1,
        "boa_token_id": 18, "eoa_token_id": AUDIO_OFFSET, "audio_token_id": AUDIO_OFFSET + 1,
        "tie_word_embeddings": TEXT.config["tie_word_embeddings"], "dtype": "float32",
    })  # fmt: skip


def write_tiny_towers(directory: Path, seed: int = 0) -> transformers.Gemma3nForConditionalGeneration:
    """Write the checkpoint. Returns the model that holds exactly the stored values, in float32 and eval mode."""
    directory.mkdir(parents=True, exist_ok=True)
    model = build(seed)
    write_json(directory / "config.json", config_json())
    write_json(directory / "generation_config.json", GENERATION_CONFIG)
    write_json(directory / "preprocessor_config.json", processor_json())
    write_json(directory / "tokenizer.json", tokenizer_json())
    tokenizer = json.loads((TOKENIZER / "tokenizer_config.json").read_text())
    write_json(directory / "tokenizer_config.json", tokenizer | SPECIAL_TOKENS)
    write_parameters(directory, dict(model.named_parameters()), "F32", shards=1)
    return model


def build(seed: int) -> transformers.Gemma3nForConditionalGeneration:
    """transformers' model with random values that all matter. Raises TimmMissingError."""
    load_timm()
    config = transformers.Gemma3nConfig(**{k: v for k, v in config_json().items() if k != "model_type"})
    config._attn_implementation = "eager"
    model = transformers.Gemma3nForConditionalGeneration(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("model.language_model.", "lm_head.")):
                text_name = name.replace("model.language_model.", "model.")
                parameter.copy_(random_values(text_name, parameter.shape, TEXT, generator))
            else:
                parameter.copy_(random_tower_values(name, parameter.shape, generator))
    return model


def random_tower_values(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Of an encoder or an embedder: the size of a unit input is kept, norms and scales are not neutral."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith(("norm.weight", "bn.weight", "bn1.weight", "bn2.weight")):
        return 1.0 + 0.3 * noise
    if name.endswith("layer_scale.gamma"):
        return 0.3 + 0.1 * noise
    if name.endswith(("per_dim_scale", "embedding.weight", "conv_stem.conv.bias")):
        return noise
    return noise / noise[0].numel() ** 0.5


SPECIAL_TOKENS: Mapping[str, Any] = {
    "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
    "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>", "audio_token": "<audio_soft_token>",
    "tokenizer_class": "GemmaTokenizer", "processor_class": "Gemma3nProcessor",
}  # fmt: skip


def tokenizer_json() -> dict[str, Any]:
    """The tiny tokenizer with the tokens of both modalities behind its own, as Gemma 3n's has them."""
    tokenizer: dict[str, Any] = json.loads((TOKENIZER / "tokenizer.json").read_text())
    vocabulary, added = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
    for number, taken in ((17, "<end_of_image>"), (19, "<end_of_audio>")):  # its own of these names give way
        vocabulary[free := f"<unused9{number}>"] = vocabulary.pop(taken)
        added[next(i for i, token in enumerate(added) if token["id"] == number)]["content"] = free
    for number, content in enumerate((*VISION_TOKENS, *AUDIO_TOKENS), start=TOKENIZER_VOCAB):
        added.append(added[-1] | {"id": number, "content": content})
    return tokenizer


def processor_json() -> dict[str, Any]:
    """preprocessor_config.json, as far as it is not transformers' default."""
    return {
        "processor_class": "Gemma3nProcessor", "image_processor_type": "SiglipImageProcessorFast",
        "feature_extractor_type": "Gemma3nAudioFeatureExtractor",
        "size": {"height": IMAGE_PIXELS, "width": IMAGE_PIXELS},
        "do_normalize": False, "do_rescale": True, "do_resize": True, "rescale_factor": 1 / 255, "resample": 2,
        "image_seq_length": IMAGE_TOKENS, "audio_seq_length": CLIP_TOKENS,
    }  # fmt: skip


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
def main(directory: Path, seed: int) -> None:
    """Write a tiny random Gemma 3n with both encoders."""
    write_tiny_towers(directory, seed)


if __name__ == "__main__":
    main()
