"""How a reply is written and what a question consists of, as values with the documents' names and defaults."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.messages import AudioFile, Content, Contents, ImageBytes, ImageFile, Message
from gemma_edge.runtime.services.errors import ServiceError
from gemma_edge.runtime.text.penalties import RepetitionPenaltyConfig
from gemma_edge.runtime.text.sampler import SamplerConfig


class Picture(Protocol):
    """An image in memory, as Pillow has it."""

    def save(self, fp: Any, format: str) -> None:  # noqa: A002  Pillow's name
        """Writes it to a file."""


Image: TypeAlias = str | os.PathLike[str] | bytes | Picture
"""The path of an image, the bytes of such a file, or a Pillow image."""


@dataclass(frozen=True)
class GenerationConfig:
    """How a reply is written.

    max_tokens: its longest length. do_sample False: always the most likely token, whatever the other values say.
    repetition_penalty: as `RepetitionPenaltyConfig`. seed: of the generator; None is 0, the same reply every time.

    Raises ServiceError: max_tokens below 1. SamplerError: another value out of range.
    """

    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.05
    do_sample: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ServiceError(f"max_tokens is {self.max_tokens}, expected at least 1; ask for a longer reply")
        _ = self.sampler, self.penalty

    @property
    def sampler(self) -> SamplerConfig:
        drawn = SamplerConfig(top_p=self.top_p, temperature=self.temperature, seed=self.seed)
        return drawn if self.do_sample else SamplerConfig(top_k=1)

    @property
    def penalty(self) -> RepetitionPenaltyConfig:
        return RepetitionPenaltyConfig(repetition_penalty=self.repetition_penalty)


PLAIN = GenerationConfig(max_tokens=256, repetition_penalty=1.0)
"""Of a reply that is measured: no longer than it has to be, and no word is avoided."""


@dataclass(frozen=True)
class MultimodalInput:
    """A question with what it is about. Images stand before the text and the recording after it, as Google advises."""

    text: str
    images: Sequence[Image] = ()
    audio_path: str | os.PathLike[str] | None = None

    def message(self) -> Json:
        """The user's message. Raises ServiceError: something among the images that is none."""
        heard = [] if self.audio_path is None else [AudioFile(str(Path(self.audio_path).absolute()))]
        return Message.user(Contents.of(*map(image_content, self.images), self.text, *heard)).to_json()


def image_content(image: Image) -> Content:
    """The part of a message that shows it. Raises ServiceError: no image."""
    if isinstance(image, bytes):
        return ImageBytes(image)
    if isinstance(image, str | os.PathLike):
        return ImageFile(str(Path(image).absolute()))
    if not callable(getattr(image, "save", None)):
        raise ServiceError(f"an image is {type(image).__name__}, expected a path, bytes or a Pillow image; pass one")
    encoded = io.BytesIO()
    image.save(encoded, "PNG")  # nothing is lost
    return ImageBytes(encoded.getvalue())
