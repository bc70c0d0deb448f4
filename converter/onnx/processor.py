"""What AutoProcessor reads of a directory with encoders, where the checkpoint leaves it out.

transformers has no defaults: without these files and names, Gemma3nProcessor does not load.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_edge.converter.models.questions import Names
from gemma_edge.converter.models.vision_config import IMAGE_PIXELS

CHAT_TEMPLATE = "chat_template.jinja"  # where a processor, unlike a tokenizer, looks for it
PREPROCESSOR = "preprocessor_config.json"
FILES = (PREPROCESSOR, "processor_config.json")  # transformers 4 writes the first or both, transformers 5 the second

TOKENS: Mapping[str, str] = {
    "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
    "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>", "audio_token": "<audio_soft_token>",
}  # fmt: skip
"""Of tokenizer_config.json (google/gemma-3n-E2B-it)."""


def made(
    checkpoint: Path, names: Names, image_pixels: int | None, template: str | list[dict[str, str]]
) -> dict[str, str | dict[str, Any]]:
    """Files by name: the default template, and how images and sound are prepared where the checkpoint does not say.

    template: as tokenizer_config.json has it.
    """
    named = {"default": template} if isinstance(template, str) else {one["name"]: one["template"] for one in template}
    files: dict[str, str | dict[str, Any]] = {CHAT_TEMPLATE: named["default"]}
    if not any((checkpoint / name).exists() for name in FILES):
        pixels = image_pixels or IMAGE_PIXELS
        files[PREPROCESSOR] = {
            "processor_class": names.processor,
            "image_processor_type": "SiglipImageProcessorFast",
            "feature_extractor_type": names.audio_features,
            "size": {"height": pixels, "width": pixels},
            "do_resize": True,
            "resample": 2,  # bilinear
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": False,
        }
    return files
