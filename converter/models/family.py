"""From config.json to a Model: the facts of one checkpoint, whatever its family."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.models import gemma3, gemma3n, vision
from gemma_edge.converter.models.encoders import Modality, Tower, towers
from gemma_edge.converter.models.fields import ConfigError
from gemma_edge.converter.tensors import Role, TensorSpec

FAMILIES = (gemma3, gemma3n)


@dataclass(frozen=True)
class Model:
    """A family with the numbers of one checkpoint. The graphs are built on demand, per signature."""

    config: gemma3.Config | gemma3n.Config
    tensors: Mapping[str, TensorSpec]  # the decoder's, by the graph's name, in order of use
    towers: tuple[Tower, ...] = ()

    @classmethod
    def of_checkpoint(cls, config: Mapping[str, Any], image_pixels: int) -> "Model":
        """The model of a whole config.json, with the towers that it describes. Raises ConfigError as from_json does."""
        text = cls.from_json(config.get("text_config", config))
        return replace(text, towers=towers(config, image_pixels))

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
    def of(cls, config: gemma3.Config | gemma3n.Config) -> "Model":
        """The model of these numbers."""
        specs = gemma3.tensors(config) if isinstance(config, gemma3.Config) else gemma3n.tensors(config)
        return cls(config, {spec.name: spec for spec in specs})

    def with_modalities(self, modalities: Collection[Modality]) -> "Model":
        """This model without the towers of other ones."""
        return replace(self, towers=tuple(tower for tower in self.towers if tower.modality in modalities))

    @cached_property
    def shares(self) -> Mapping[Role, float]:
        """Part of the decoder's and the tables' values by role; they sum up to 1."""
        values = Counter[Role]()
        for spec in self.tensors.values():
            values[spec.role] += spec.values
        return {role: count / values.total() for role, count in values.items()}

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What it takes."""
        return (Modality.TEXT, *(tower.modality for tower in self.towers))

    @property
    def image_pixels(self) -> int | None:
        """Width and height of an image; None where the model takes none."""
        return next((t.config.image_size for t in self.towers if isinstance(t.config, vision.Config)), None)

    @property
    def takes_audio(self) -> bool:
        """Whether it hears."""
        return Modality.AUDIO in self.modalities

    @property
    def family(self) -> Literal["gemma3", "gemma3n"]:
        """LiteRT-LM's name of the model type."""
        return gemma3.FAMILY if isinstance(self.config, gemma3.Config) else gemma3n.FAMILY

    def decoder(self, name: str, tokens: int, with_logits: bool) -> Graph:
        """One signature of the decoder for `tokens` tokens at a time, or ANY number."""
        if isinstance(self.config, gemma3.Config):
            return gemma3.decoder(self.config, self.tensors, name, tokens, with_logits)
        return gemma3n.decoder(self.config, self.tensors, name, tokens, with_logits)

    def lookups(self, tokens: int = 1) -> Iterator[Graph]:
        """The tables read by row: embedder, and for 3n per_layer_embedder."""
        if isinstance(self.config, gemma3.Config):
            return gemma3.lookups(self.config, self.tensors, tokens)
        return gemma3n.lookups(self.config, self.tensors, tokens)
