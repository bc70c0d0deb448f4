"""Every decision about one conversion, before a weight is read: which tensor goes where, how, and what it will cost."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, Unconverted
from gemma_edge.converter.graph.ops import ANY, Graph
from gemma_edge.converter.models import gemma3n
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.cache_layout import CacheLayout
from gemma_edge.converter.plan.fit import Settled
from gemma_edge.converter.plan.footprint import cache_layout
from gemma_edge.converter.plan.target import Format, Target
from gemma_edge.converter.quantize import onnx_blocks
from gemma_edge.converter.quantize.recipes import Placement, Recipe, RecipeError, Storage
from gemma_edge.converter.quantize.turning import with_turned_columns
from gemma_edge.converter.tensors import TensorSpec
from gemma_edge.profiles.costs import predicted_decode_tokens_per_s
from gemma_edge.profiles.footprint import Footprint
from gemma_edge.runtime.formats.encoding import EncodingError

DECODER = "decoder"
EMBEDDING = "embed_tokens.weight"
TOWERS = ("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.", "multi_modal_projector.")
"""Stored beside the text model by multimodal checkpoints; reported as not converted."""


@dataclass(frozen=True)
class PlannedTensor:
    """A fact, a decision and a place."""

    spec: TensorSpec
    storage: Storage
    section: str  # DECODER, or the name of a lookup's or an encoder's section
    nbytes: int  # values and scales in the file


@dataclass(frozen=True)
class PlannedCache:
    """Keys and values of one layer that owns them."""

    layer: int
    window: int | None
    slots: int  # tokens
    nbytes: int


@dataclass(frozen=True)
class Plan:
    """The whole request, decided. `graphs` are the signatures of each section, `specs` all tensors by their names."""

    settled: Settled
    specs: Mapping[str, TensorSpec]
    graphs: Mapping[str, Sequence[Graph]]
    cache_layout: CacheLayout
    tensors: tuple[PlannedTensor, ...]
    caches: tuple[PlannedCache, ...]
    unconverted: Unconverted

    def with_folds(self, model: Model) -> "Plan":
        """The same plan of weights that are folded as in `model`, which differs in nothing else."""
        folds = {name: spec.fold for name, spec in model.tensors.items()}
        specs = {name: replace(spec, fold=folds.get(name, spec.fold)) for name, spec in self.specs.items()}
        return replace(self, settled=replace(self.settled, model=model), specs=specs)

    @property
    def target(self) -> Target:
        """The request that is carried out."""
        return self.settled.target

    @property
    def model(self) -> Model:
        """What is converted; its towers are those of the target's modalities."""
        return self.settled.model

    @property
    def context_tokens(self) -> int:
        """Tokens of context."""
        return self.cache_layout.context_tokens

    @property
    def footprint(self) -> Footprint:
        """Memory at run time, by part."""
        return self.settled.needs.footprint

    @property
    def predicted_decode_tokens_per_s(self) -> float | None:
        """On the device of the profile; None without one."""
        profile = self.target.profile
        if profile is None:
            return None
        return predicted_decode_tokens_per_s(profile, self.settled.needs.bytes_per_token)

    @property
    def storages(self) -> dict[str, Storage]:
        """Decision by tensor name; a tensor in two sections is stored the same way in both."""
        return {tensor.spec.name: tensor.storage for tensor in self.tensors}

    @property
    def cache_bytes(self) -> int:
        """Keys and values of all layers."""
        return sum(cache.nbytes for cache in self.caches)

    def bytes_by(self, key: str) -> dict[str, int]:
        """Stored bytes by "role", "section", "encoding" or "placement"."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            group = {
                "role": tensor.spec.role.value,
                "section": tensor.section,
                "encoding": tensor.storage.encoding.name,
                "placement": Placement.of(tensor.spec.role).value,
            }[key]
            sizes[group] = sizes.get(group, 0) + tensor.nbytes
        return sizes


def make_plan(settled: Settled, checkpoint: Checkpoint) -> Plan:
    """Decide everything about a request that fits. Touches headers and configuration only.

    Raises CheckpointError for tensors that are missing or too many, RecipeError for one that its encoding cannot hold.
    """
    target = settled.target
    recipe = target.recipe_for(settled.model)
    model = with_turned_columns(settled.model, recipe)
    settled = replace(settled, model=model)
    specs = _specs(model)
    target.recipe.check_names(specs)
    converted = [prefix for tower in model.towers for prefix in tower.prefixes]
    ignored = [prefix for prefix in TOWERS if prefix not in converted]
    unconverted = checkpoint.match(specs.values(), (*ignored, *unused(model)))
    layout = cache_layout(target, model)
    graphs = _graphs(model, target)
    tensors = tuple(
        _planned(specs[spec.name], recipe, section, target.format)
        for section, signatures in graphs.items()
        for spec in signatures[0].used.values()  # the first signature uses every tensor that the others do
    )
    caches = tuple(_caches(graphs[DECODER][0], layout))
    return Plan(settled, specs, graphs, layout, tensors, caches, unconverted)


def _specs(model: Model) -> dict[str, TensorSpec]:
    """Every tensor by name. The rows of the embedding table that only media have come from the towers' embedders."""
    specs = dict(model.tensors)
    overlays = tuple(tower.embedder.overlay() for tower in model.towers)
    specs[EMBEDDING] = replace(specs[EMBEDDING], overlays=overlays)
    return specs | {name: spec for tower in model.towers for name, spec in tower.tensors.items()}


def _graphs(model: Model, target: Target) -> dict[str, list[Graph]]:
    encoders = {g.name: [g] for tower in model.towers for g in tower.graphs(target.format is Format.ONNX)}
    if target.format is Format.ONNX:
        lookups = model.lookups(tokens=ANY)
        decoder = model.decoder("decoder", tokens=ANY, with_logits=True)
        return {DECODER: [decoder]} | {g.name: [g] for g in lookups} | encoders
    decode = model.decoder("decode", tokens=1, with_logits=True)
    prefills = [model.decoder(f"prefill_{n}", tokens=n, with_logits=False) for n in target.prefill_tokens]
    return {DECODER: [decode, *prefills]} | {lookup.name: [lookup] for lookup in model.lookups()} | encoders


def _planned(spec: TensorSpec, recipe: Recipe, section: str, format: Format) -> PlannedTensor:  # noqa: A002
    storage = recipe.storage(spec)
    if format is not Format.ONNX:
        return PlannedTensor(spec, storage, section, storage.encoding.nbytes(spec.shape))
    try:
        is_table = Placement.of(spec.role) is Placement.OFFLOADED
        nbytes = onnx_blocks.stored_bytes(spec.shape, storage.encoding, is_table)
    except EncodingError as error:
        raise RecipeError(f"{spec.name}: {error} (recipe {recipe.name}, {recipe.key(spec)})") from error
    return PlannedTensor(spec, storage, section, nbytes)


def unused(model: Model) -> Iterator[str]:
    """What official 3n checkpoints store although no layer reads it: keys and values of layers that share KV."""
    if isinstance(model.config, gemma3n.Config):
        for layer in range(model.config.kv_layers, len(model.config.attention)):
            for name in ("k_proj.", "v_proj.", "k_norm.", "v_norm."):
                yield f"layers.{layer}.self_attn.{name}"


def _caches(decode: Graph, layout: CacheLayout) -> Iterator[PlannedCache]:
    for cache in decode.caches.values():
        _, _, kv_heads, head_size = cache.k.shape
        nbytes = layout.nbytes(kv_heads, head_size, cache.window)
        yield PlannedCache(cache.layer, cache.window, layout.slots(cache.window), nbytes)
