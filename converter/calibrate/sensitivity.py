"""How much each part of a model loses in fewer bits: measured on a text, with all other parts as they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.measure import RoundedWeights, divergences
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import Hooks
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.quantize.recipes import Placement, Recipe, Storage
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.runtime.formats.encoding import Encoding

Float32 = NDArray[np.float32]

LAYER_GROUPS = 8
"""Attention and feed-forward matrices are judged in this many stretches of layers each; a run is taken for each."""

_WHOLE_ROLES = (Role.EMBEDDING, Role.PLE, Role.HEAD, Role.ALTUP, Role.SMALL)
_LAYERED_ROLES = (Role.ATTENTION, Role.FFN)
_INT8, _INT4, _INT2 = (Encoding("int", bits) for bits in (8, 4, 2))
IN_HEAD = Encoding("rest", 3)
"""Of an embedding: kept in the head's table, as the recipe's role says; see quantize/rests.py."""


@dataclass(frozen=True)
class Group:
    """Matrices that are stored alike. options: their possible encodings."""

    name: str
    specs: tuple[TensorSpec, ...]
    options: tuple[Encoding, ...]

    def recipe(self, recipe: Recipe, encoding: Encoding) -> dict[str, Storage]:
        """The group's tensors in an encoding, as a recipe's `tensors` says it; those below the floor are left out, and
        an embedding in the head's table."""
        if encoding == IN_HEAD:
            return {}
        admitted = (spec for spec in self.specs if recipe.floor.admits(spec.shape))
        return {spec.name: Storage(encoding, recipe.roles[spec.role].search) for spec in admitted}

    def storages(self, recipe: Recipe, encoding: Encoding) -> dict[str, Storage]:
        """What becomes of these tensors then; a table's int4 has a scale per layer, say."""
        chosen = replace(recipe, tensors=self.recipe(recipe, encoding))
        is_in_head = encoding == IN_HEAD
        return {spec.name: chosen.storage(spec) for spec in self.specs if is_in_head or spec.name in chosen.tensors}


def groups(specs: Sequence[TensorSpec], layers: int, *, may_share: bool = False) -> Iterator[Group]:
    """The parts that are judged one by one: tables, head and small matrices as a whole, the others by layers.

    Tables and head get at least 4 bits: they are looked up or multiplied by rows of their own, with no int2 kernel.
    may_share: whether the embedding may be kept in the head's table.
    """
    for role in _WHOLE_ROLES:
        matrices = tuple(spec for spec in specs if spec.role is role)
        is_table = role is Role.HEAD or Placement.of(role) is Placement.OFFLOADED
        if matrices:
            options = (_INT8, _INT4) if is_table else (_INT8, _INT4, _INT2)
            yield Group(role.value, matrices, (IN_HEAD, *options) if role is Role.EMBEDDING and may_share else options)
    stretches = min(LAYER_GROUPS, layers)
    for role in _LAYERED_ROLES:
        for stretch in range(stretches):
            first, last = stretch * layers // stretches, (stretch + 1) * layers // stretches
            prefixes = tuple(f"layers.{layer}." for layer in range(first, last))
            matrices = tuple(spec for spec in specs if spec.role is role and spec.name.startswith(prefixes))
            yield Group(f"{role} of layers {first} to {last - 1}", matrices, (_INT8, _INT4, _INT2))


def losses(
    checkpoint: Checkpoint,
    model: StreamingModel,
    windows: NDArray[np.integer[Any]],
    parts: Sequence[Group],
    recipe: Recipe,
    on_bytes: OnBytes,
) -> dict[tuple[str, Encoding], float]:
    """KL in nats by group name and encoding, on token ids [B, T]. on_bytes: `read_bytes` in total.

    The checkpoint runs once; where it comes to a group, a run with this group stored goes on from there.
    """
    exact = model.begin(windows, Hooks(on_bytes=on_bytes))
    names: list[tuple[str, Encoding]] = []
    found: list[tuple[Float32, Hooks]] = []
    for position, part in _in_order(model, parts):
        exact.advance(position or 0)
        for encoding in part.options:
            hooks = Hooks(None, RoundedWeights(checkpoint, model, part.storages(recipe, encoding)), on_bytes)
            walk = exact.fork(hooks) if position is not None else model.begin(windows, hooks)
            names.append((part.name, encoding))
            found.append((walk.finish(), hooks))
    divergence = divergences(model, exact.finish(), found, on_bytes)
    return {name: each.kl for name, each in zip(names, divergence, strict=True)}


def read_bytes(model: StreamingModel, parts: Sequence[Group]) -> int:
    """What `losses` reports."""
    walks = sum(len(part.options) * model.rest_bytes(position or 0) for position, part in _in_order(model, parts))
    return model.body_bytes + walks + model.head_bytes(1)


def _in_order(model: StreamingModel, parts: Sequence[Group]) -> list[tuple[int | None, Group]]:
    """With where a walk comes to each; None for tables, which are read before it begins."""
    placed = [(model.first_use({spec.name for spec in part.specs}), part) for part in parts]
    return sorted(placed, key=lambda place: place[0] or 0)
