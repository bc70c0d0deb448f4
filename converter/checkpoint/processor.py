"""What a checkpoint's processor does to media before the model sees them, where a conversion has to know it."""

from pathlib import Path
from typing import Any

from gemma_edge.converter.checkpoint.checkpoint import read_json_object
from gemma_edge.converter.models.fields import ConfigError, Fields
from gemma_edge.converter.models.vision_config import IMAGE_PIXELS

_FILE, _NESTED_FILE = "preprocessor_config.json", "processor_config.json"  # transformers 4; 5 nests it in the second


def image_pixels(checkpoint: Path) -> int:
    """Width and height of every image, which config.json does not tell.

    Raises CheckpointError where the file is not JSON, ConfigError where it says something else than a square.
    """
    if (checkpoint / _FILE).is_file():
        values, name = read_json_object(checkpoint / _FILE), _FILE
    elif (checkpoint / _NESTED_FILE).is_file():
        values, name = read_json_object(checkpoint / _NESTED_FILE), _NESTED_FILE
        if "image_processor" not in values:  # transformers 4 leaves it to the file that is not there
            return IMAGE_PIXELS
        values = values["image_processor"]
    else:
        return IMAGE_PIXELS
    size: Any = values.get("size") if isinstance(values, dict) else None
    if not isinstance(size, dict) or "height" not in size or size["height"] != size.get("width"):
        raise ConfigError(f"{name}: size is {size!r}, expected equal height and width; this model needs new code")
    return Fields(size, name).positive("height")
