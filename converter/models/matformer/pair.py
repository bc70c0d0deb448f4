"""A model and a slice of it that share every weight: each matrix is stored in the parts that one or both multiply with.

The large model reads all parts, the small one the first of each feed-forward matrix, and of the projection for
per-layer embeddings those of the layers that it keeps. Both read one table of per-layer embeddings. Keys and values are
called by the layer's number in the large model, so that one memory can hold either's; they are never each other's.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from gemma_edge.converter.models import gemma3n
from gemma_edge.converter.models.blocks import PLE_PROJECTION, Part, part_names
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.matformer.slices import Slice, SliceError

_NAME: Final = re.compile(r"[A-Za-z0-9_][\w.-]{0,30}")
_SIGNATURES: Final = ("prefill", "decode", "verify")


@dataclass(frozen=True)
class StoredPart:
    """What a part is cut from. axis: 0 for rows [begin, end), 1 for columns."""

    name: str
    source: str
    axis: int
    begin: int
    end: int


def large_model(model: Model, cut: Slice) -> Model:
    """`model`, stored so that the slice shares its weights. Raises SliceError where there is no such slice of it."""
    config = _checked(model, cut)
    kept, widths = cut.kept, cut.widths(config.ffn_widths)
    core = dict(zip(kept, widths, strict=True))
    ffn = tuple(_halves(core.get(layer, width), width) for layer, width in enumerate(config.ffn_widths))
    layers = range(len(config.attention))
    runs = [len([*run]) for _, run in groupby(layers, lambda layer: layer in core)]
    projection = tuple(Part(number, size) for number, size in enumerate(runs)) if len(runs) > 1 else ()
    place = gemma3n.Place(tuple(layers), len(layers), ffn, projection)
    return replace(Model.of(replace(config, place=place)), encoders=model.encoders)


def small_model(large: Model, cut: Slice) -> Model:
    """The slice, of the tensors of `large_model`. It takes the images and recordings that the large one takes."""
    config = _checked(large, cut)
    assert config.place is not None
    kept, whole = cut.kept, config.place
    firsts = [sum(part.size for part in whole.projection[:i]) for i in range(len(whole.projection))]
    place = gemma3n.Place(
        kept,
        whole.all_layers,
        tuple(whole.ffn[layer][:1] for layer in kept),
        tuple(part for part, first in zip(whole.projection, firsts, strict=True) if first in kept),
    )
    small = replace(
        config,
        ffn_widths=cut.widths(config.ffn_widths),
        sparsity=tuple(config.sparsity[layer] for layer in kept),
        attention=tuple(config.attention[layer] for layer in kept),
        kv_layers=sum(layer < config.kv_layers for layer in kept),
        place=place,
    )
    names = Model.of(small).tensors
    return replace(large, config=small, tensors={name: large.tensors[name] for name in names})


def layers_of(model: Model) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of either: the numbers of its layers, and the feed-forward width of each."""
    config = model.config
    assert isinstance(config, gemma3n.Config)
    return tuple(config.number(layer) for layer in range(len(config.attention))), config.ffn_widths


def stored_parts(model: Model) -> Iterator[StoredPart]:
    """Every part of a `large_model`."""
    config = model.config
    assert isinstance(config, gemma3n.Config)
    for layer in range(len(config.attention)):
        for axis, which in ((0, "gate_proj"), (0, "up_proj"), (1, "down_proj")):
            source = f"layers.{layer}.mlp.{which}.weight"
            yield from _parts(source, axis, config.ffn_parts(layer), 1)
    yield from _parts(PLE_PROJECTION, 0, config.projection_parts, config.ple_width)


def _parts(source: str, axis: int, parts: tuple[Part, ...], unit: int) -> Iterator[StoredPart]:
    begin = 0
    for part, name in zip(parts, part_names(source, parts), strict=False):
        yield StoredPart(name, source, axis, begin * unit, (begin + part.size) * unit)
        begin += part.size


def _halves(core: int, width: int) -> tuple[Part, ...]:
    return (Part(0, core), Part(1, width - core)) if core < width else ()


def _checked(model: Model, cut: Slice) -> gemma3n.Config:
    config = model.config
    if not isinstance(config, gemma3n.Config):
        raise SliceError(f"slice {cut.name}: cut from Gemma 3n, this is {model.family}; give Gemma 3n E4B")
    cut.check(config)
    if not _NAME.fullmatch(cut.name) or cut.name.startswith(_SIGNATURES):
        raise SliceError(
            f"slice {cut.name!r}: its name becomes that of a model in the bundle, expected up to 31 letters, digits, "
            f"'.', '-' and '_' that do not begin with {', '.join(_SIGNATURES)}; give it another name"
        )
    if cut.kept == tuple(range(len(config.attention))) and cut.widths(config.ffn_widths) == config.ffn_widths:
        raise SliceError(f"slice {cut.name}: leaves nothing out, so that there is one model; give a smaller slice")
    return config
