"""The encoders of images and sound of one checkpoint: facts, as family.py has them for the decoder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.models import audio, gemma3n, vision
from gemma_edge.converter.models.embedder import Embedder
from gemma_edge.converter.models.fields import ConfigError
from gemma_edge.converter.tensors import TensorSpec


class Modality(StrEnum):
    """What a model takes. Text is part of every one."""

    TEXT = "text"
    VISION = "vision"
    AUDIO = "audio"


@dataclass(frozen=True)
class Tower:
    """An encoder with its adapter, with the numbers of one checkpoint. The graphs are built on demand."""

    config: vision.Config | audio.Config
    tensors: Mapping[str, TensorSpec]  # by the graph's name, in order of use

    @classmethod
    def of(cls, config: vision.Config | audio.Config) -> "Tower":
        """The tower of these numbers."""
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

    def is_stored_in(self, names: Iterable[str]) -> bool:
        """Whether any of a checkpoint's tensors is the encoder's. Its embedder alone is of no use."""
        prefix = self.prefixes[0]
        return any(name.removeprefix("model.").startswith(prefix) for name in names)

    def graphs(self, is_onnx: bool) -> tuple[Graph, ...]:
        """One for each section, named as the section."""
        if isinstance(self.config, vision.Config):
            return tuple(vision.graphs(self.config, self.tensors, is_onnx))
        return tuple(audio.graphs(self.config, self.tensors, is_onnx))


def towers(config: Mapping[str, Any], image_pixels: int) -> tuple[Tower, ...]:
    """Those that a config.json describes. Raises ConfigError for numbers that cannot be used.

    image_pixels: width and height of an image, which config.json does not tell.
    """
    if config.get("model_type") != gemma3n.FAMILY or "text_config" not in config:
        return ()
    found = []
    if _describes(config, "vision_config"):
        found.append(Tower.of(vision.Config.from_json(config, image_pixels)))
    if _describes(config, "audio_config"):
        found.append(Tower.of(audio.Config.from_json(config)))
    _check_ids([tower.embedder for tower in found])
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
