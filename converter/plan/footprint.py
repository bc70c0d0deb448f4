"""What a request will need at run time, from config.json alone: no checkpoint opened, no graph built, under 1 ms.

`plan` shows it, `fit` compares hundreds of requests by it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from gemma_edge.converter.models import gemma3n
from gemma_edge.converter.models.blocks import AttentionLayer
from gemma_edge.converter.models.encoders import Modality
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.cache_layout import CacheLayout
from gemma_edge.converter.plan.target import Format, KVType, Target
from gemma_edge.converter.quantize.onnx_blocks import scale_count
from gemma_edge.converter.quantize.recipes import Placement, Recipe
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.profiles.costs import ActivationShape, litert_footprint
from gemma_edge.profiles.costs_encoders import EncoderKind, EncoderShape, with_encoders
from gemma_edge.profiles.costs_onnx import PREFILL_TOKENS, onnx_footprint
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
class ModelNeeds:
    """A model, its tensors counted once by role, shape and grid. `needs` then costs microseconds.

    kinds, towers: one tensor of each -> how many there are, of the decoder and of each tower.
    """

    model: Model
    kinds: Mapping[TensorSpec, int]
    towers: Mapping[Modality, Mapping[TensorSpec, int]]

    @classmethod
    def of(cls, model: Model) -> "ModelNeeds":
        """Count the tensors."""
        towers = {tower.modality: _kinds(tower.tensors.values()) for tower in model.towers}
        return cls(model, _kinds(model.tensors.values()), towers)

    def needs(self, target: Target) -> Needs:
        """Raises TargetError where the target's context is not one of this model's, RecipeError as the recipe does."""
        layout = cache_layout(target, self.model)
        by_role = self._sums(target)
        resident = _resident(by_role)
        embedder_bytes, ple_bytes = by_role.get(Role.EMBEDDING, 0), by_role.get(Role.PLE, 0)
        shape = self._activations(layout.context_tokens)
        if target.format is Format.ONNX:
            kv_bytes, ring_bytes = self._onnx_kv_bytes(layout.context_tokens)
            footprint = onnx_footprint(
                values_bytes=_resident(self._sums(target, Encoding.data_bytes)),
                scales=_resident(self._sums(target, scale_count)),
                embedder_bytes=embedder_bytes,
                ple_bytes=ple_bytes,
                kv_bytes=kv_bytes,
                ring_bytes=ring_bytes,
                shape=shape,
            )
        else:
            kv_bytes, ring_bytes = self._kv_bytes(layout)
            footprint = litert_footprint(
                weights_bytes=resident,
                embedder_bytes=embedder_bytes,
                ple_bytes=ple_bytes,
                kv_bytes=kv_bytes,
                ring_bytes=ring_bytes,
                kv_is_half=layout.half,
                prefill_tokens=target.prefill_tokens,
                shape=shape,
            )
        return Needs(with_encoders(footprint, self._encoders(target)), resident + kv_bytes)

    def _sums(self, target: Target, size: Size = Encoding.nbytes) -> dict[Role, int]:
        return _sums(self.kinds, self.model.tensors, target.recipe_for(self.model), size)

    def _encoders(self, target: Target) -> Iterator[EncoderShape]:
        """Of the modalities that the target takes."""
        for tower in self.model.with_modalities(target.modalities or ()).towers:
            kinds = self.towers[tower.modality]
            sizes = _sums(kinds, tower.tensors, target.recipe_for(self.model))
            yield EncoderShape(EncoderKind[tower.modality.name], sum(sizes.values()), tower.inputs)

    @property
    def _owners(self) -> tuple[AttentionLayer, ...]:
        """The layers with keys and values of their own."""
        config = self.model.config
        return config.attention[: config.kv_layers] if isinstance(config, gemma3n.Config) else config.attention

    def _kv_bytes(self, layout: CacheLayout) -> tuple[int, int]:
        """(all, those of rings)."""
        heads = self.model.config.heads
        sizes = [(layout.nbytes(heads.kv, heads.size, x.window), layout.is_ring(x.window)) for x in self._owners]
        return sum(nbytes for nbytes, _ in sizes), sum(nbytes for nbytes, is_ring in sizes if is_ring)

    def _onnx_kv_bytes(self, context_tokens: int) -> tuple[int, int]:
        """(all, those of rings), as our executor keeps them, whatever the graph says: rings, but for caches that other
        layers read as well."""
        config, owners = self.model.config, self._owners
        readers = range(len(owners), len(config.attention))
        shared = {config.kv_source(layer) for layer in readers} if isinstance(config, gemma3n.Config) else set()
        layout = CacheLayout(context_tokens, PREFILL_TOKENS)
        windows = [None if layer in shared else owner.window for layer, owner in enumerate(owners)]
        sizes = [(layout.nbytes(config.heads.kv, config.heads.size, window), window) for window in windows]
        return sum(nbytes for nbytes, _ in sizes), sum(nbytes for nbytes, window in sizes if window is not None)

    def _activations(self, context_tokens: int) -> ActivationShape:
        config = self.model.config
        if isinstance(config, gemma3n.Config):
            ffn_width, altup_inputs = max(config.hidden), config.altup_inputs
            ple_values = len(config.attention) * config.ple_width
        else:
            ffn_width, altup_inputs, ple_values = config.hidden, 1, 0
        return ActivationShape(
            context_tokens,
            heads=config.heads.query,
            kv_heads=config.heads.kv,
            model_width=config.width,
            ffn_width=ffn_width,
            altup_inputs=altup_inputs,
            ple_values=ple_values,
            kv_values=2 * len(self._owners) * config.heads.kv * config.heads.size,
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


def _resident(sums: Mapping[Role, int]) -> int:
    return sum(n for role, n in sums.items() if Placement.of(role) is Placement.RESIDENT)


def cache_layout(target: Target, model: Model) -> CacheLayout:
    """How the target keeps keys and values. Raises TargetError for a context that this model cannot have."""
    return CacheLayout(
        target.context_for(model),
        target.prefill_tokens[-1],
        half=target.kv is KVType.FP16,
        rings=target.format is Format.LITERTLM,
    )
