"""Every decision about one conversion, before a weight is read: which tensor goes where, how, and what it will cost."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, Unconverted
from gemma_edge.converter.checkpoint.spelling import EMBEDDING
from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.models.encoders import PREFIXES
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.cache_layout import CacheLayout
from gemma_edge.converter.plan.door import DECODER, planning
from gemma_edge.converter.plan.fit import Fitted
from gemma_edge.converter.plan.footprint import cache_layout
from gemma_edge.converter.plan.format import Format
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.recipes import Placement, Recipe, RecipeError, Storage
from gemma_edge.converter.quantize.tied import in_one_table
from gemma_edge.converter.quantize.turning import with_turned_columns
from gemma_edge.converter.tensors import TensorSpec
from gemma_edge.profiles.costs import predicted_decode_tokens_per_s
from gemma_edge.profiles.footprint import Footprint
from gemma_edge.runtime.formats.encoding import EncodingError

MEDIA_PREFIXES = (*PREFIXES, "multi_modal_projector.")
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
class PlannedModel:
    """One of two models of the same weights. weight_bytes: of what a decode step reads, but for rows of tables."""

    name: str
    layers: int
    weight_bytes: int


@dataclass(frozen=True)
class Plan:
    """The whole request, decided. `graphs` are the signatures of each section, `specs` all tensors by their names."""

    fitted: Fitted
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
        return replace(self, fitted=replace(self.fitted, model=model), specs=specs)

    @property
    def target(self) -> Target:
        """The request that is carried out."""
        return self.fitted.target

    @property
    def model(self) -> Model:
        """What is converted; its encoders are those of the target's modalities."""
        return self.fitted.model

    @property
    def context_tokens(self) -> int:
        """Tokens of context."""
        return self.cache_layout.context_tokens

    @property
    def footprint(self) -> Footprint:
        """Memory at run time, by part."""
        return self.fitted.needs.footprint

    @property
    def predicted_decode_tokens_per_s(self) -> float | None:
        """On the device of the profile; None without one."""
        profile = self.target.profile
        if profile is None:
            return None
        return predicted_decode_tokens_per_s(profile, self.fitted.needs.bytes_per_token)

    @property
    def models(self) -> tuple[PlannedModel, ...]:
        """Both, the large one first, where there are two; else none."""
        beside = self.target.beside
        if beside is None:
            return ()
        nbytes = {t.spec.name: t.nbytes for t in self.tensors if Placement.of(t.spec.role) is Placement.RESIDENT}
        graphs = {graph.name: graph for graph in self.graphs[DECODER]}
        both = ((self.target.size, graphs["decode"]), (beside.name, graphs[f"{beside.name}/decode"]))
        return tuple(
            PlannedModel(name, len(graph.layers), sum(nbytes.get(spec, 0) for spec in graph.used))
            for name, graph in both
        )

    def predicted_tokens_per_s(self, model: PlannedModel) -> float | None:
        """As `predicted_decode_tokens_per_s`, of one of two models."""
        profile = self.target.profile
        if profile is None:
            return None
        return predicted_decode_tokens_per_s(profile, model.weight_bytes + self.cache_bytes)

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


def make_plan(fitted: Fitted, checkpoint: Checkpoint | None = None) -> Plan:
    """Decide everything about a request that fits. Touches headers and configuration only.

    checkpoint: whose tensors are matched; None where there is none yet.

    Raises CheckpointError for tensors that are missing or too many, RecipeError for one that its encoding cannot hold.
    """
    target = fitted.target
    model, recipe = in_one_table(fitted.model, target.recipe_for(fitted.model))
    model = with_turned_columns(model, recipe)
    fitted = replace(fitted, model=model)
    specs = _specs(model)
    target.recipe.check_names(specs)
    converted = [prefix for encoder in model.encoders for prefix in encoder.prefixes]
    ignored = [prefix for prefix in MEDIA_PREFIXES if prefix not in converted]
    known = (*ignored, *model.config.unused_tensors())
    unconverted = Unconverted({}) if checkpoint is None else checkpoint.match(specs.values(), known)
    layout = cache_layout(target, model)
    graphs = planning(target.format).graphs(model, target)
    tensors = tuple(
        _planned(specs[spec.name], recipe, section, target.format)
        for section, signatures in graphs.items()
        for spec in signatures[0].used.values()  # the first signature uses every tensor that the others do
    )
    caches = tuple(_caches(graphs[DECODER][0], layout))
    return Plan(fitted, specs, graphs, layout, tensors, caches, unconverted)


def _specs(model: Model) -> dict[str, TensorSpec]:
    """Every tensor by name. The rows of the embedding table that only media have come from the encoders' embedders."""
    specs = dict(model.tensors)
    overlays = tuple(overlay for encoder in model.encoders for overlay in encoder.overlays)
    specs[EMBEDDING] = replace(specs[EMBEDDING], overlays=overlays)
    drafter = {} if model.drafter is None else model.drafter.tensors
    return specs | {name: spec for encoder in model.encoders for name, spec in encoder.tensors.items()} | {**drafter}


def _planned(spec: TensorSpec, recipe: Recipe, section: str, format: Format) -> PlannedTensor:  # noqa: A002
    storage = recipe.storage(spec)
    try:
        return PlannedTensor(spec, storage, section, planning(format).nbytes(spec, storage))
    except EncodingError as error:
        raise RecipeError(f"{spec.name}: {error} (recipe {recipe.name}, {recipe.key(spec)})") from error


def _caches(decode: Graph, layout: CacheLayout) -> Iterator[PlannedCache]:
    for cache in decode.caches.values():
        _, _, kv_heads, head_size = cache.k.shape
        nbytes = layout.nbytes(kv_heads, head_size, cache.window)
        yield PlannedCache(cache.layer, cache.window, layout.slots(cache.window), nbytes)
