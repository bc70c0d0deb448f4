"""`--recipe auto --max-bytes`: the encodings that lose least in a bundle of at most that size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.calibrate import sensitivity
from gemma_edge.converter.calibrate.budget import Choice, allocate
from gemma_edge.converter.calibrate.sensitivity import IN_HEAD, Group
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.spelling import EMBEDDING
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.progress import Stage
from gemma_edge.converter.quantize.recipes import Recipe, RecipeError, Storage
from gemma_edge.converter.tensors import Role
from gemma_edge.runtime.formats.encoding import Encoding


def automatic_recipe(
    plan: Plan,
    checkpoint: Checkpoint,
    max_bytes: int,
    size_of: Callable[[Recipe], int],
    windows: NDArray[np.integer[Any]],
    stage: Stage,
) -> Recipe:
    """The recipe of `plan` with the tensors named whose encoding was chosen by measuring.

    plan: says how weights are turned and balanced, as they will be in the bundle. size_of: bytes of the whole bundle.
    windows: token ids [B, T] that the loss is measured on.
    Raises RecipeError where no choice of encodings fits.
    """
    model, recipe = plan.model, plan.target.recipe_for(plan.model)
    may_share = plan.storages[EMBEDDING].head is not None
    parts = tuple(sensitivity.groups(tuple(model.tensors.values()), len(model.config.attention), may_share=may_share))
    ways = _ways(parts)
    smallest = min((_chosen(recipe, _least(way)) for way in ways), key=size_of)
    least_bytes = size_of(smallest)
    if least_bytes > max_bytes:
        raise RecipeError(
            f"max-bytes {max_bytes:,}: the smallest bundle of this model has {least_bytes:,} bytes; "
            "give at least that, or take a smaller model"
        )
    streaming = StreamingModel(checkpoint, model)
    on_bytes = stage("measure", sensitivity.read_bytes(streaming, parts))
    losses = sensitivity.losses(checkpoint, streaming, windows, parts, recipe, on_bytes)
    if plan.target.calibration is not None:
        left = {(part.name, option): left_by_calibration(part, option) for part in parts for option in part.options}
        losses = {key: loss * left[key] for key, loss in losses.items()}
    found = [best for way in ways if (best := _best(recipe, way, losses, max_bytes, size_of)) is not None]
    _, chosen = min(found, key=itemgetter(0), default=(0.0, smallest))
    return replace(chosen, name=f"auto, {recipe.name}, at most {max_bytes} bytes")


def _ways(parts: tuple[Group, ...]) -> list[tuple[Group, ...]]:
    """The parts with options that go together: once with the embedding in the head's table, once with its own."""
    sharing = next((part for part in parts if IN_HEAD in part.options), None)
    if sharing is None:
        return [parts]
    shared = replace(sharing, options=(IN_HEAD,))
    own = replace(sharing, options=tuple(option for option in sharing.options if option != IN_HEAD))
    return [tuple(embedding if part is sharing else part for part in parts) for embedding in (shared, own)]


def _best(
    recipe: Recipe,
    parts: Sequence[Group],
    losses: Mapping[tuple[str, Encoding], float],
    max_bytes: int,
    size_of: Callable[[Recipe], int],
) -> tuple[float, Recipe] | None:
    """The least sum of losses within `max_bytes`, and the recipe that has it; None where nothing fits."""
    least = _least(parts)
    least_bytes = size_of(_chosen(recipe, least))

    def choice(part: Group, option: Encoding) -> Choice:
        """In whole bundles: beside values and scales, each signature lists what a matrix has for every row."""
        more_bytes = size_of(_chosen(recipe, least | {part: option})) - least_bytes
        return Choice(max(0, more_bytes), losses[part.name, option])

    choices = [[choice(part, option) for option in part.options] for part in parts]
    budget_bytes = max_bytes - least_bytes
    while budget_bytes >= 0 and (picked := allocate(choices, budget_bytes)):
        chosen = _chosen(recipe, {part: part.options[index] for part, index in zip(parts, picked, strict=True)})
        excess_bytes = size_of(chosen) - max_bytes  # by alignment
        if excess_bytes <= 0:
            return sum(options[index].loss for options, index in zip(choices, picked, strict=True)), chosen
        budget_bytes -= excess_bytes
    return None


_LEFT_OF_HEAD, _LEFT_OF_LAYERS = 0.26, 0.73
"""Which part of the loss calibration leaves: of the real 270M, the mean of three texts that it has not read. In the
first table of QUALITY.md the head in int4 has 0.123 and 0.032 nats, feed-forward matrices add 0.147 and 0.108.
The head is rounded for what reaches it; layers pass on what those before them do wrong."""


def left_by_calibration(part: Group, encoding: Encoding) -> float:
    """Which part of a group's loss in this encoding --calibrate leaves, from 0 to 1: foreseen, not measured."""
    if encoding.bits >= 8 or any(spec.role in (Role.EMBEDDING, Role.PLE) for spec in part.specs):
        return 1.0  # is not rounded for a text
    return _LEFT_OF_HEAD if all(spec.role is Role.HEAD for spec in part.specs) else _LEFT_OF_LAYERS


def _least(parts: Sequence[Group]) -> dict[Group, Encoding]:
    """Each in its fewest bits."""
    return {part: part.options[-1] for part in parts}


def _chosen(recipe: Recipe, encodings: Mapping[Group, Encoding]) -> Recipe:
    tensors: dict[str, Storage] = {}
    for part, encoding in encodings.items():
        tensors |= part.recipe(recipe, encoding)
    return replace(recipe, tensors=tensors)
