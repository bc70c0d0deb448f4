"""What a checkpoint's processor does to media before the model sees them, where a conversion has to know it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_edge.converter.checkpoint.checkpoint import read_json_object
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings

_FILE, _NESTED_FILE = "preprocessor_config.json", "processor_config.json"


def media_settings(checkpoint: Path) -> MediaSettings:
    """What the processor says, of which a model reads what it needs. Raises CheckpointError: a file is not JSON."""
    images, images_file = _settings(checkpoint, "image_processor")
    sound, sound_file = audio_settings(checkpoint)
    return MediaSettings(images if isinstance(images, Mapping) else {}, images_file, sound, sound_file)


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
