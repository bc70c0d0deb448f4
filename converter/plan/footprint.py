"""What a request will need at run time, from config.json alone: no checkpoint opened, no graph built, under 1 ms.

`plan` shows it, `fit` compares hundreds of requests by it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from gemma_edge.converter.models.blocks import AttentionLayer
from gemma_edge.converter.models.encoders import Modality
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.cache_layout import CacheLayout
from gemma_edge.converter.plan.format import KVType
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.recipes import Placement, Recipe
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.profiles.costs import ActivationShape
from gemma_edge.profiles.costs_encoders import EncoderShape
from gemma_edge.profiles.footprint import Footprint
from gemma_edge.runtime.formats.encoding import Encoding

Size: TypeAlias = Callable[[Encoding, tuple[int, ...]], int]
"""Of a tensor in an encoding: bytes, say."""


@dataclass(frozen=True)
class Needs:
    """footprint: of the largest moment. bytes_per_token: weights and keys and values that one decode step reads."""

    footprint: Footprint
    bytes_per_token: int


@dataclass(frozen=True)
class ModelSizes:
    """A model, its tensors counted once by role, shape and grid. Sums then cost microseconds.

    kinds, encoder_kinds: one tensor of each -> how many there are, of the decoder and of each encoder. A format makes
    its sums of them, see plan/door.py.
    """

    model: Model
    kinds: Mapping[TensorSpec, int]
    encoder_kinds: Mapping[Modality, Mapping[TensorSpec, int]]

    @classmethod
    def of(cls, model: Model) -> "ModelSizes":
        """Count the tensors."""
        encoder_kinds = {encoder.modality: _kinds(encoder.tensors.values()) for encoder in model.encoders}
        return cls(model, _kinds(model.tensors.values()), encoder_kinds)

    def sums(self, target: Target, size: Size = Encoding.nbytes) -> dict[Role, int]:
        """Of the decoder's tensors, by role."""
        return _sums(self.kinds, self.model.tensors, target.recipe_for(self.model), size)

    def encoders(self, target: Target) -> Iterator[EncoderShape]:
        """Of the modalities that the target takes."""
        for encoder in self.model.with_modalities(target.modalities or ()).encoders:
            kinds = self.encoder_kinds[encoder.modality]
            sizes = _sums(kinds, encoder.tensors, target.recipe_for(self.model))
            yield EncoderShape(encoder.design, sum(sizes.values()), encoder.inputs)

    @property
    def owners(self) -> tuple[AttentionLayer, ...]:
        """The layers with keys and values of their own."""
        return self.model.config.attention[: self.model.config.kv_layers]

    def activations(self, context_tokens: int) -> ActivationShape:
        """What the size of activations depends on."""
        config = self.model.config
        return ActivationShape(
            context_tokens,
            heads=max(layer.heads.query for layer in config.attention),
            kv_heads=min(layer.heads.kv for layer in config.attention),
            model_width=config.width,
            ffn_width=config.ffn_width,
            altup_inputs=config.residual_streams,
            ple_values=config.ple_values,
            kv_values=sum(2 * layer.heads.kv * layer.heads.size for layer in self.owners),
            vocab_size=config.vocab_size,
        )


def _kinds(specs: Collection[TensorSpec]) -> dict[TensorSpec, int]:
    counts = Counter((spec.role, spec.shape, spec.grid) for spec in specs)
    last = {(spec.role, spec.shape, spec.grid): spec for spec in specs}
    return {last[kind]: count for kind, count in counts.items()}


def _sums(
    kinds: Mapping[TensorSpec, int], tensors: Mapping[str, TensorSpec], recipe: Recipe, size: Size = Encoding.nbytes
) -> dict[Role, int]:
    """By role. kinds: of `tensors`, which have names, in case the recipe goes by them."""
    sums: dict[Role, int] = {}
    by_role = replace(recipe, tensors={})
    for spec, count in kinds.items():
        sums[spec.role] = sums.get(spec.role, 0) + count * size(by_role.encoding(spec), spec.shape)
    for spec in (tensors[name] for name in recipe.tensors if name in tensors):
        sums[spec.role] += size(recipe.encoding(spec), spec.shape) - size(by_role.encoding(spec), spec.shape)
    return sums


def resident(sums: Mapping[Role, int]) -> int:
    """The part of what stays in memory."""
    return sum(n for role, n in sums.items() if Placement.of(role) is Placement.RESIDENT)


def cache_layout(target: Target, model: Model) -> CacheLayout:
    """How the target keeps keys and values. Raises TargetError for a context that this model cannot have."""
    return CacheLayout(
        target.context_for(model),
        target.prefill_tokens[-1],
        half=target.kv is KVType.FP16,
        rings=target.format.rings,
    )
