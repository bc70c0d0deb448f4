"""The encoders of images and audio of one checkpoint: facts, as family.py has them for the decoder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from types import ModuleType
from typing import Any, TypeAlias

from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.models import audio, vision
from gemma_edge.converter.models.fields import ConfigError
from gemma_edge.converter.models.gemma4_encoders import audio as gemma4_audio
from gemma_edge.converter.models.gemma4_encoders import vision as gemma4_vision
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.tensors import Overlay, TensorSpec
from gemma_edge.profiles.costs_encoders import EncoderDesign

PREFIXES = ("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.")
"""What the names of encoders' stored tensors begin with, and of what embeds their features."""


class Modality(StrEnum):
    """What a model takes. Text is part of every one."""

    TEXT = "text"
    VISION = "vision"
    AUDIO = "audio"


Config: TypeAlias = vision.Config | audio.Config | gemma4_vision.Config | gemma4_audio.Config

_OF_GEMMA3N: Mapping[Modality, ModuleType] = {Modality.VISION: vision, Modality.AUDIO: audio}
_OF_GEMMA4: Mapping[Modality, ModuleType] = {Modality.VISION: gemma4_vision, Modality.AUDIO: gemma4_audio}
_MODULES: Mapping[str, Mapping[Modality, ModuleType]] = {"gemma3n": _OF_GEMMA3N, "gemma4": _OF_GEMMA4}
"""By a family's ENCODERS. Each has a Config, `tensors` and `graphs`."""
_DESIGNS: Mapping[type, EncoderDesign] = {
    vision.Config: EncoderDesign.MOBILENET,
    audio.Config: EncoderDesign.USM,
    gemma4_vision.Config: EncoderDesign.PATCHES,
    gemma4_audio.Config: EncoderDesign.CONFORMER,
}


@dataclass(frozen=True)
class Encoder:
    """An encoder with its adapter, with the numbers of one checkpoint. The graphs are built on demand."""

    config: Config
    tensors: Mapping[str, TensorSpec]  # by the graph's name, in order of use

    @classmethod
    def of(cls, config: Config) -> "Encoder":
        """The encoder of these numbers."""
        return cls(config, {spec.name: spec for spec in _module(config).tensors(config)})

    @property
    def modality(self) -> Modality:
        """What it encodes."""
        return Modality.VISION if isinstance(self.config, vision.Config | gemma4_vision.Config) else Modality.AUDIO

    @property
    def design(self) -> EncoderDesign:
        """What it is, for what it costs."""
        return _DESIGNS[type(self.config)]

    @property
    def prefixes(self) -> tuple[str, str]:
        """What the names of its stored tensors begin with."""
        return f"{self.modality}_tower.", self.config.embedder.prefix

    @property
    def overlays(self) -> tuple[Overlay, ...]:
        """Rows of the decoder's table that its embedder has."""
        return self.config.embedder.overlays()

    @property
    def places(self) -> tuple[int, ...]:
        """Tokens in whose place its features go, and whose own per-layer embeddings nobody reads."""
        return self.config.embedder.places()

    @property
    def inputs(self) -> int:
        """Pixels or patches of an image, or frames of a clip, at most."""
        return self.config.inputs

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[1, H, W, 3] of an image, or [patches, values of each]; [frames, mel bins] of a clip."""
        return self.config.input_shape

    def shortened(self, embeddings: int) -> "Encoder":
        """The same encoder for clips of at most so many embeddings; an image has as many as it has."""
        if self.modality is Modality.VISION:
            return self
        assert isinstance(self.config, audio.Config | gemma4_audio.Config)
        return Encoder.of(replace(self.config, embeddings=min(embeddings, self.config.embeddings)))

    def is_stored_in(self, names: Iterable[str]) -> bool:
        """Whether any of a checkpoint's tensors is the encoder's. Its embedder alone is of no use."""
        prefix = self.prefixes[0]
        return any(name.removeprefix("model.").startswith(prefix) for name in names)

    def graphs(self, in_one: bool) -> tuple[Graph, ...]:
        """The encoder and what follows it, each a section named as its graph; or all of it in one graph."""
        return tuple(_module(self.config).graphs(self.config, self.tensors, in_one))


def encoders_of(config: Mapping[str, Any], settings: MediaSettings, kinds: str) -> tuple[Encoder, ...]:
    """Those that a multimodal config.json describes. Raises ConfigError for numbers that cannot be used.

    settings: what the checkpoint's processor says. kinds: its family's ENCODERS.
    """
    modules = _MODULES[kinds]
    described = [modality for modality in modules if _describes(config, f"{modality}_config")]
    found = [Encoder.of(modules[modality].Config.from_json(config, settings)) for modality in described]
    _check_ids([overlay for encoder in found for overlay in encoder.overlays])
    return tuple(found)


def _module(config: Config) -> ModuleType:
    modules = (module for family in _MODULES.values() for module in family.values())
    return next(module for module in modules if isinstance(config, module.Config))


def _check_ids(overlays: Sequence[Overlay]) -> None:
    """Each replaces rows of the decoder's table, so none may hold another's."""
    for first, second in pairwise(sorted(overlays, key=lambda overlay: overlay.first_row)):
        if first.first_row + first.rows > second.first_row:
            tables = (overlay.derivation.sources[0].source.removesuffix(".weight") for overlay in (first, second))
            raise ConfigError(
                f"config.json: {' and '.join(tables)} both hold id {second.first_row}, expected ids of their own; "
                "fix vocab_offset or vocab_size"
            )


def _describes(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"config.json: {key} is {value!r}, expected an object or null; fix the checkpoint")
    return value is not None
