"""The encoders of images and audio of one checkpoint: facts, as family.py has them for the decoder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.models import audio, vision
from gemma_edge.converter.models.embedder import Embedder
from gemma_edge.converter.models.fields import ConfigError
from gemma_edge.converter.tensors import TensorSpec

PREFIXES = ("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.")
"""What the names of encoders' stored tensors begin with, and of what embeds their features."""


class Modality(StrEnum):
    """What a model takes. Text is part of every one."""

    TEXT = "text"
    VISION = "vision"
    AUDIO = "audio"


@dataclass(frozen=True)
class Encoder:
    """An encoder with its adapter, with the numbers of one checkpoint. The graphs are built on demand."""

    config: vision.Config | audio.Config
    tensors: Mapping[str, TensorSpec]  # by the graph's name, in order of use

    @classmethod
    def of(cls, config: vision.Config | audio.Config) -> "Encoder":
        """The encoder of these numbers."""
        specs = vision.tensors(config) if isinstance(config, vision.Config) else audio.tensors(config)
        return cls(config, {spec.name: spec for spec in specs})

    @property
    def modality(self) -> Modality:
        """What it encodes."""
        return Modality.VISION if isinstance(self.config, vision.Config) else Modality.AUDIO

    @property
    def prefixes(self) -> tuple[str, str]:
        """What the names of its stored tensors begin with."""
        return f"{self.modality}_tower.", self.embedder.prefix

    @property
    def embedder(self) -> Embedder:
        """What brings its features into the decoder's embeddings."""
        return self.config.embedder

    @property
    def inputs(self) -> int:
        """Pixels of an image, or frames of a clip."""
        return self.config.pixels if isinstance(self.config, vision.Config) else self.config.frames

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[1, H, W, 3] of an image, [frames, mel bins] of a clip."""
        if isinstance(self.config, vision.Config):
            return 1, self.config.image_size, self.config.image_size, 3
        return self.config.frames, self.config.mel_bins

    def shortened(self, embeddings: int) -> "Encoder":
        """The same encoder for clips of at most so many embeddings; an image has as many as it has."""
        if isinstance(self.config, vision.Config):
            return self
        return Encoder.of(replace(self.config, embeddings=min(embeddings, self.config.embeddings)))

    def is_stored_in(self, names: Iterable[str]) -> bool:
        """Whether any of a checkpoint's tensors is the encoder's. Its embedder alone is of no use."""
        prefix = self.prefixes[0]
        return any(name.removeprefix("model.").startswith(prefix) for name in names)

    def graphs(self, in_one: bool) -> tuple[Graph, ...]:
        """The encoder and what follows it, each a section named as its graph; or all of it in one graph."""
        if isinstance(self.config, vision.Config):
            return tuple(vision.graphs(self.config, self.tensors, in_one))
        return tuple(audio.graphs(self.config, self.tensors, in_one))


def encoders_of(config: Mapping[str, Any], image_pixels: int) -> tuple[Encoder, ...]:
    """Those that a multimodal config.json describes. Raises ConfigError for numbers that cannot be used.

    image_pixels: width and height of an image, which config.json does not tell.
    """
    found = []
    if _describes(config, "vision_config"):
        found.append(Encoder.of(vision.Config.from_json(config, image_pixels)))
    if _describes(config, "audio_config"):
        found.append(Encoder.of(audio.Config.from_json(config)))
    _check_ids([encoder.embedder for encoder in found])
    return tuple(found)


def _check_ids(embedders: Sequence[Embedder]) -> None:
    """Each replaces rows of the decoder's table, so none may hold another's."""
    for first, second in pairwise(sorted(embedders, key=lambda embedder: embedder.vocab_offset)):
        if first.vocab_offset + first.vocab_size > second.vocab_offset:
            raise ConfigError(
                f"config.json: {first.prefix}embedding and {second.prefix}embedding both hold id "
                f"{second.vocab_offset}, expected ids of their own; fix vocab_offset or vocab_size"
            )


def _describes(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"config.json: {key} is {value!r}, expected an object or null; fix the checkpoint")
    return value is not None
