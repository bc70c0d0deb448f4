"""The text that a checkpoint is calibrated on."""

import hashlib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from gemma_edge.converter.tokenizer.windows import read_text
from gemma_edge.profiles.paths import user_path

BUILT_IN_TEXT = "built-in"


@dataclass(frozen=True)
class CalibrationText:
    """What a checkpoint is run on to see what its layers are given. name: of the file, or BUILT_IN_TEXT."""

    name: str
    content: str = field(repr=False)

    @property
    def sha256(self) -> str:
        """Of the content in UTF-8."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def calibration_text(choice: str | Path) -> CalibrationText:
    """The built-in text, or that of a file. Raises TextError naming the file."""
    if str(choice) == BUILT_IN_TEXT:
        text = resources.files("gemma_edge.converter.calibrate").joinpath("text.txt").read_text("utf-8")
        return CalibrationText(BUILT_IN_TEXT, text)
    path = user_path(choice)
    return CalibrationText(path.name, read_text(path))
