"""What a checkpoint's processor does to media before the model sees them, where a conversion has to know it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_edge.converter.checkpoint.checkpoint import read_json_object
from gemma_edge.converter.models.fields import ConfigError, Fields
from gemma_edge.converter.models.vision_config import IMAGE_PIXELS

_FILE, _NESTED_FILE = "preprocessor_config.json", "processor_config.json"


def image_pixels(checkpoint: Path) -> int:
    """Width and height of every image, which config.json does not tell.

    Raises CheckpointError where the file is not JSON, ConfigError where it says something else than a square.
    """
    values, name = _settings(checkpoint, "image_processor")
    if not name:
        return IMAGE_PIXELS
    size: Any = values.get("size") if isinstance(values, Mapping) else None
    if not isinstance(size, Mapping) or "height" not in size or size["height"] != size.get("width"):
        raise ConfigError(f"{name}: size is {size!r}, expected equal height and width; this model needs new code")
    return Fields(size, name).positive("height")


def audio_settings(checkpoint: Path) -> tuple[Mapping[str, Any], str]:
    """The settings of the audio feature extractor and the name of the file they are in, ({}, "") where there are none.

    Raises CheckpointError where the file is not JSON.
    """
    values, name = _settings(checkpoint, "feature_extractor")
    is_for_audio = isinstance(values, Mapping) and "hop_length" in values  # one file serves images, too
    return (values, name) if is_for_audio else ({}, "")


def _settings(checkpoint: Path, part: str) -> tuple[Any, str]:
    """Of one part of the processor, and the file they are in; ({}, "") where there are none.

    transformers 5 writes one file, with a table for each part, and reads that first (image_processing_base.py,
    feature_extraction_utils.py); version 4 wrote all of them flat into the other.
    """
    if (checkpoint / _NESTED_FILE).is_file():
        nested = read_json_object(checkpoint / _NESTED_FILE)
        if part in nested:
            return nested[part], _NESTED_FILE
    return (read_json_object(checkpoint / _FILE), _FILE) if (checkpoint / _FILE).is_file() else ({}, "")
