"""What conversion has to know of a checkpoint's image processor."""

import json
from pathlib import Path

import pytest

from gemma_edge.converter.checkpoint.processor import media_settings
from gemma_edge.converter.models.fields import ConfigError

SQUARE = {"size": {"height": 512, "width": 512}}
LARGER = {"height": 640, "width": 640}


@pytest.mark.parametrize(
    ("files", "pixels"),
    [
        ({}, 768),
        ({"preprocessor_config.json": SQUARE}, 512),
        ({"processor_config.json": {"image_processor": SQUARE}}, 512),
        ({"preprocessor_config.json": SQUARE, "processor_config.json": {"image_seq_length": 256}}, 512),
        (  # transformers 5 reads the table first
            {"preprocessor_config.json": SQUARE, "processor_config.json": {"image_processor": {"size": LARGER}}},
            640,
        ),
        ({"processor_config.json": {"image_seq_length": 256}}, 768),  # what transformers 4 has beside the first file
    ],
)
def test_the_size_of_images(files: dict[str, object], pixels: int, tmp_path: Path) -> None:
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    assert media_settings(tmp_path).pixels == pixels


@pytest.mark.parametrize("size", [None, 512, {"shortest_edge": 224}, {"height": 512, "width": 256}])
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_images_that_are_no_squares_are_refused(size: object, name: str, tmp_path: Path) -> None:
    values = {"size": size} if name.startswith("pre") else {"image_processor": {"size": size}}
    (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(ConfigError) as caught:
        _ = media_settings(tmp_path).pixels
    assert str(caught.value) == (
        f"{name}: size is {size!r}, expected equal height and width; this model needs new code"
    )


def test_a_size_that_cannot_be_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 0, "width": 0}}))
    with pytest.raises(ConfigError, match=r"^preprocessor_config.json: height is 0, expected a positive integer; fix"):
        _ = media_settings(tmp_path).pixels
