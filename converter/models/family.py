"""From config.json to a Model: the facts of one checkpoint, whatever its family."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import Any

from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.models import gemma3, gemma3n, gemma4, vision
from gemma_edge.converter.models.drafter.gemma4 import Config as DrafterConfig
from gemma_edge.converter.models.drafter.gemma4 import Drafter
from gemma_edge.converter.models.encoders import Encoder, Modality, encoders_of
from gemma_edge.converter.models.fields import ConfigError
from gemma_edge.converter.models.gemma4_encoders import vision as gemma4_vision
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.models.questions import Config, Names
from gemma_edge.converter.tensors import Role, TensorSpec

FAMILIES: tuple[ModuleType, ...] = (gemma3, gemma3n, gemma4)
"""Modules with FAMILY, MODEL_TYPES (of text models first), MULTIMODAL_TYPES, ENCODERS, NAMES, a Config, which answers
questions.py, and the functions `tensors`, `decoder` and `lookups`. CONTRIBUTING.md says how to add one."""


@dataclass(frozen=True)
class Model:
    """A family with the numbers of one checkpoint. The graphs are built on demand, per signature."""

    config: Config
    tensors: Mapping[str, TensorSpec]  # the decoder's, by the graph's name, in order of use
    encoders: tuple[Encoder, ...] = ()
    drafter: Drafter | None = None

    @classmethod
    def of_checkpoint(cls, config: Mapping[str, Any], settings: MediaSettings) -> "Model":
        """The model of a whole config.json, with the encoders it describes. Raises ConfigError as from_json does."""
        text = cls.from_json(config.get("text_config", config))
        family = _family(text.config)
        if config.get("model_type") not in family.MULTIMODAL_TYPES or "text_config" not in config:
            return text
        return replace(text, encoders=encoders_of(config, settings, family.ENCODERS))

    @classmethod
    def from_json(cls, text_config: Mapping[str, Any]) -> "Model":
        """Choose the family by model_type. Raises ConfigError for an unknown one or unusable numbers."""
        model_type = text_config.get("model_type")
        for family in FAMILIES:
            if model_type in family.MODEL_TYPES:
                return cls.of(family.Config.from_json(text_config))
        known = ", ".join(name for family in FAMILIES for name in family.MODEL_TYPES)
        raise ConfigError(f"config.json: model_type is {model_type!r}, expected one of {known}; see CONTRIBUTING.md")

    @classmethod
    def of(cls, config: Config) -> "Model":
        """The model of these numbers."""
        return cls(config, {spec.name: spec for spec in _family(config).tensors(config)})

    def with_modalities(self, modalities: Collection[Modality]) -> "Model":
        """This model without the encoders of other ones."""
        return replace(self, encoders=tuple(encoder for encoder in self.encoders if encoder.modality in modalities))

    def with_drafter(self, config: Mapping[str, Any]) -> "Model":
        """This model with the drafter of that config.json beside it. Raises ConfigError where the two do not fit."""
        drafter = DrafterConfig.from_json(config)
        if not isinstance(self.config, gemma4.Config):
            raise ConfigError(f"drafter: made for {gemma4.FAMILY}, the model is a {self.family}; leave --drafter out")
        return replace(self, drafter=Drafter.of(drafter, self.config))

    @cached_property
    def shares(self) -> Mapping[Role, float]:
        """Part of the decoder's and the tables' values by role; they sum up to 1."""
        values = Counter[Role]()
        for spec in self.tensors.values():
            values[spec.role] += spec.values
        return {role: count / values.total() for role, count in values.items()}

    @property
    def has_overlays(self) -> bool:
        """Whether some rows of the embedding are its encoders', and not the head's."""
        return any(encoder.overlays for encoder in self.encoders)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What it takes."""
        return (Modality.TEXT, *(encoder.modality for encoder in self.encoders))

    @property
    def image_pixels(self) -> int | None:
        """Width and height of an image; None where the model takes none, or cuts it into patches."""
        return next((t.config.image_size for t in self.encoders if isinstance(t.config, vision.Config)), None)

    @property
    def patches(self) -> gemma4_vision.Config | None:
        """How an image is cut into patches; None where the model takes none, or takes it whole."""
        return next((t.config for t in self.encoders if isinstance(t.config, gemma4_vision.Config)), None)

    @property
    def media(self) -> tuple[str, ...]:
        """What it takes beside text, as templates call it."""
        return tuple("image" if e.modality is Modality.VISION else "audio" for e in self.encoders)

    @property
    def takes_audio(self) -> bool:
        """Whether it hears."""
        return Modality.AUDIO in self.modalities

    @property
    def family(self) -> str:
        """Our name of it."""
        name: str = _family(self.config).FAMILY
        return name

    @property
    def names(self) -> Names:
        """What others call it."""
        names: Names = _family(self.config).NAMES
        return names

    def decoder(self, name: str, tokens: int, with_logits: bool, every_row: bool = False) -> Graph:
        """One signature of the decoder for `tokens` tokens at a time, or ANY number.

        with_logits: of the last token, or of each with every_row.
        """
        graph: Graph = _family(self.config).decoder(self.config, self.tensors, name, tokens, with_logits, every_row)
        return graph

    def lookups(self, tokens: int = 1) -> Iterator[Graph]:
        """The tables read by row: embedder, and per_layer_embedder where the family has one."""
        graphs: Iterator[Graph] = _family(self.config).lookups(self.config, self.tensors, tokens)
        return graphs


def text_type_of(model_type: str) -> str | None:
    """The model_type of the text_config in a config.json of that model_type; None where no family here is called so."""
    types: list[str] = [family.MODEL_TYPES[0] for family in FAMILIES if model_type in family.MODEL_TYPES[1:]]
    return types[0] if types else None


def _family(config: Config) -> ModuleType:
    """The module that these numbers are from."""
    return next(family for family in FAMILIES if isinstance(config, family.Config))
