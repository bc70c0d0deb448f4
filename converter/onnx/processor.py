"""What AutoProcessor reads of a directory with encoders, where the checkpoint leaves it out.

transformers has no defaults: without these files and names, neither Gemma3nProcessor nor Gemma4Processor loads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_edge.converter.models.family import Model

CHAT_TEMPLATE = "chat_template.jinja"  # where a processor, unlike a tokenizer, looks for it
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
FILES = (PREPROCESSOR, PROCESSOR)  # transformers 4 writes the first or both, transformers 5 the second

Values = dict[str, Any]

_TOKENS: Mapping[str, Mapping[str, str]] = {
    "Gemma3nProcessor": {
        "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
        "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>", "audio_token": "<audio_soft_token>",
    },
    "Gemma4Processor": {
        "boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>",
        "boa_token": "<|audio>", "eoa_token": "<audio|>", "audio_token": "<|audio|>",
    },
}  # fmt: skip
"""Of tokenizer_config.json (google/gemma-3n-E2B-it, google/gemma-4-E2B-it)."""


def tokens(model: Model) -> Mapping[str, str]:
    """What tokenizer_config.json has to name for a processor."""
    assert model.names.processor is not None
    return {**_TOKENS[model.names.processor], "processor_class": model.names.processor}


def made(checkpoint: Path, model: Model, template: str | list[dict[str, str]]) -> dict[str, str | Values]:
    """Files by name: the default template, and how images and sound are prepared where the checkpoint does not say.

    template: as tokenizer_config.json has it.
    """
    named = {"default": template} if isinstance(template, str) else {one["name"]: one["template"] for one in template}
    files: dict[str, str | Values] = {CHAT_TEMPLATE: named["default"]}
    if model.names.processor == "Gemma4Processor":
        files |= {PROCESSOR: _gemma4(model), PREPROCESSOR: _types(model, "Gemma4ImageProcessor")}
        return {name: content for name, content in files.items() if not (checkpoint / name).exists()}
    if not any((checkpoint / name).exists() for name in FILES):
        files[PREPROCESSOR] = _gemma3n(model)
    return files


def _types(model: Model, images: str) -> Values:
    """Where transformers.js (4.3.1) looks for the class, whatever else there is."""
    return {
        "processor_class": model.names.processor,
        "image_processor_type": images,
        "feature_extractor_type": model.names.audio_features,
    }


def _gemma3n(model: Model) -> Values:
    pixels = model.image_pixels or 768
    return _types(model, "SiglipImageProcessorFast") | {
        "size": {"height": pixels, "width": pixels},
        "do_resize": True,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    }


def _gemma4(model: Model) -> Values:
    """Spelled out: transformers.js has no defaults for sound."""
    patches = model.patches
    tokens, patch, pool = (280, 16, 3) if patches is None else (patches.tokens, patches.patch, patches.pool)
    images = {
        "image_processor_type": "Gemma4ImageProcessor", "patch_size": patch, "max_soft_tokens": tokens,
        "pooling_kernel_size": pool, "do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": False, "do_convert_rgb": True,
    }  # fmt: skip
    sound = {
        "feature_extractor_type": model.names.audio_features, "feature_size": 128, "sampling_rate": 16_000,
        "frame_length": 320, "hop_length": 160, "fft_length": 512, "min_frequency": 0.0, "max_frequency": 8000.0,
        "preemphasis": 0.0, "preemphasis_htk_flavor": True, "mel_floor": 1e-3, "dither": 0.0,
        "input_scale_factor": 1.0, "padding_value": 0.0, "return_attention_mask": True,
    }  # fmt: skip
    return {
        "processor_class": model.names.processor,
        "image_processor": images,
        "feature_extractor": sound,
        "image_seq_length": tokens,
        "audio_seq_length": 750,
        "audio_ms_per_token": 40,
    }
