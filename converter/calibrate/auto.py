"""`--recipe auto --max-bytes`: the encodings that lose least in a bundle of at most that size."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.calibrate import sensitivity
from gemma_edge.converter.calibrate.budget import Choice, allocate
from gemma_edge.converter.calibrate.sensitivity import Group
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
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
    calibration_tokens: int,
    stage: Stage,
) -> Recipe:
    """The recipe of `plan` with the tensors named whose encoding was chosen by measuring.

    plan: says how weights are turned and balanced, as they will be in the bundle. size_of: bytes of the whole bundle.
    windows: token ids [B, T] that the loss is measured on. calibration_tokens: of the text that weights will be rounded
    for; 0 where there is none.
    Raises RecipeError where no choice of encodings fits.
    """
    model, recipe = plan.model, plan.target.recipe_for(plan.model)
    parts = tuple(sensitivity.groups(tuple(model.tensors.values()), len(model.config.attention)))
    least = {part: part.options[-1] for part in parts}
    smallest = _chosen(recipe, least)
    least_bytes = size_of(smallest)
    if least_bytes > max_bytes:
        raise RecipeError(
            f"max-bytes {max_bytes:,}: the smallest bundle of this model has {least_bytes:,} bytes; "
            "give at least that, or take a smaller model"
        )
    streaming = StreamingModel(checkpoint, model)
    on_bytes = stage("measure", sensitivity.read_bytes(streaming, parts))
    losses = sensitivity.losses(checkpoint, streaming, windows, parts, recipe, on_bytes)

    def choice(part: Group, option: Encoding) -> Choice:
        """In whole bundles: beside values and scales, each signature lists what a matrix has for every row."""
        more_bytes = size_of(_chosen(recipe, least | {part: option})) - least_bytes
        loss = losses[part.name, option]
        if calibration_tokens and is_rounded_for_a_text(part, option):
            loss *= left_by_calibration(calibration_tokens, max(spec.shape[1] for spec in part.specs))
        return Choice(max(0, more_bytes), loss)

    choices = [[choice(part, option) for option in part.options] for part in parts]
    budget_bytes = max_bytes - least_bytes
    while picked := allocate(choices, budget_bytes):
        options = [part.options[index] for part, index in zip(parts, picked, strict=True)]
        chosen = _chosen(recipe, dict(zip(parts, options, strict=True)))
        excess_bytes = size_of(chosen) - max_bytes  # by alignment
        if excess_bytes <= 0:
            return replace(chosen, name=f"auto, {recipe.name}, at most {max_bytes} bytes")
        budget_bytes -= excess_bytes
    return replace(smallest, name=f"auto, {recipe.name}, at most {max_bytes} bytes")


_LEFT: Final = ((1.4, 0.60), (2.0, 0.44), (4.0, 0.32), (8.0, 0.28), (32.0, 0.19))
"""Tokens of calibration text for each column, and which part of the loss is left: measured on tiny-gemma3 (QUALITY.md).
The head of the real 270M, 16 tokens for each column, keeps 0.26 of its loss on text that calibration has not read."""


def left_by_calibration(tokens: int, columns: int) -> float:
    """Which part of a matrix's loss calibration leaves, from 0 to 1: as `_LEFT` says, with straight lines between.

    Nothing is promised for less text than was tried.
    """
    per_column = tokens / columns
    if per_column < _LEFT[0][0]:
        return 1.0
    logs, left = np.log([many for many, _ in _LEFT]), [part for _, part in _LEFT]
    return float(np.interp(np.log(per_column), logs, left))


def is_rounded_for_a_text(part: Group, encoding: Encoding) -> bool:
    """Whether calibration makes up for a part of the loss: not of tables, of which rows are only read."""
    return encoding.bits < 8 and all(spec.role not in (Role.EMBEDDING, Role.PLE) for spec in part.specs)


def _chosen(recipe: Recipe, encodings: Mapping[Group, Encoding]) -> Recipe:
    tensors: dict[str, Storage] = {}
    for part, encoding in encodings.items():
        tensors |= part.recipe(recipe, encoding)
    return replace(recipe, tensors=tensors)
