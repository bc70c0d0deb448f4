"""From a request to a plan: the checkpoint found and opened, its recipe measured where that is asked for."""

from dataclasses import replace
from pathlib import Path

from gemma_edge.converter.calibrate.auto import automatic_recipe
from gemma_edge.converter.calibrate.step import balanced_plan, measuring_windows, rounds_for_a_text
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, read_config
from gemma_edge.converter.checkpoint.drafted import drafted, with_order
from gemma_edge.converter.checkpoint.hub import resolve_checkpoint
from gemma_edge.converter.checkpoint.lora import merged
from gemma_edge.converter.checkpoint.processor import media_settings
from gemma_edge.converter.checkpoint.slices.view import in_parts, sliced
from gemma_edge.converter.evaluate.static_scales import with_static_scales
from gemma_edge.converter.models.encoders import Modality
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.official import OFFICIAL
from gemma_edge.converter.plan.fit import fit_target
from gemma_edge.converter.plan.output import Bundle, output_of
from gemma_edge.converter.plan.plan import Plan, make_plan
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.progress import Stage, silent
from gemma_edge.converter.quantize.qat import with_grids
from gemma_edge.converter.quantize.recipes import Recipe


def plan_for(request: Target, checkpoint: str | Path | None, stage: Stage = silent) -> tuple[Checkpoint, Plan]:
    """Find the checkpoint, downloading it where needed, and decide everything about it.

    What does not fit its profile is refused before the official checkpoint is downloaded, and before a shard is opened.
    Raises OverBudget, LoraError, and what reading and matching a checkpoint raise.
    """
    if checkpoint is None and request.size in OFFICIAL and request.max_bytes is None:
        fit_target(request, request.official_model())
    path = resolve_checkpoint(None if checkpoint is None else str(checkpoint), request.size)
    config = read_config(path)
    if request.slice is not None:
        config = request.slice.checkpoint_config(config)
    model = request.stored(Model.of_checkpoint(config, media_settings(path)))
    request.check(model)
    drafter = None
    if request.drafter is not None:
        drafter = resolve_checkpoint(request.drafter, request.size, "--drafter")
        model = model.with_drafter(read_config(drafter))
    changes = ""
    if request.max_bytes is None:
        fitting = fit_target(request, model)
        if fitting.target.slice != request.slice:  # found with --fit: the rest is settled once more for what is cut
            request, model, changes = replace(request, slice=fitting.target.slice), fitting.model, fitting.changes
    source, model = _open(path, drafter, request, model)
    request.check(model)
    if request.max_bytes is not None:
        request = _measured(request, request.max_bytes, model, source, stage)
    settled = fit_target(request, model)
    return source, make_plan(replace(settled, changes=changes or settled.changes), source)


def published_plan(request: Target) -> Plan | None:
    """The plan for an official model, from what is published of it: nothing is downloaded, no checkpoint is needed.

    None where the request follows from a checkpoint: another model, an adapter, a drafter, a recipe that is measured.
    Raises OverBudget.
    """
    if request.size not in OFFICIAL or request.max_bytes is not None:
        return None
    if request.lora is not None or request.drafter is not None:
        return None
    return make_plan(fit_target(request, request.official_model()))


def _open(path: Path, drafter: Path | None, request: Target, model: Model) -> tuple[Checkpoint, Model]:
    """The checkpoint, with its adapter and drafter if there are any, and the model with what only its tensors tell.

    An encoder that config.json describes and no shard holds is a modality that the checkpoint does not have.
    """
    source = Checkpoint.open(path)
    model = model.with_modalities([each.modality for each in model.encoders if each.is_stored_in(source.tensors)])
    if request.lora is not None:
        source = merged(source, request.lora, text_only=request.modalities == (Modality.TEXT,))
    if request.slice is not None:
        source = sliced(source, request.slice)
    if request.lora is not None:  # the head may have become untied
        text = Model.from_json(source.text_config)
        model = request.stored(replace(text, encoders=model.encoders, drafter=model.drafter))
    if request.beside is not None:
        source = in_parts(source, model)
    if drafter is not None and model.drafter is not None:
        source = both = drafted(source, drafter)
        model = replace(model, drafter=with_order(model.drafter, both))
    model = with_static_scales(model, source)
    return source, with_grids(model, source, request.recipe_for(model))


def _measured(request: Target, max_bytes: int, model: Model, source: Checkpoint, stage: Stage) -> Target:
    """The request with the recipe that loses least in a bundle of at most `max_bytes`.

    Without a calibration text where that recipe leaves nothing to calibrate: nobody could know that before.
    """
    without_profile = replace(request, profile=None, fit=False)

    def plan_of(recipe: Recipe) -> Plan:
        return make_plan(fit_target(replace(without_profile, recipe=recipe), model), source)

    plan = balanced_plan(plan_of(request.recipe), source, stage)
    windows = measuring_windows(request, model, source)
    recipe = automatic_recipe(
        plan, source, max_bytes, lambda recipe: lay_out(plan_of(recipe), source).nbytes, windows, stage
    )
    request = replace(request, recipe=recipe)
    return request if rounds_for_a_text(plan_of(recipe)) else replace(request, calibration=None)


def lay_out(plan: Plan, source: Checkpoint) -> Bundle:
    """The output in the format asked for, to the byte, without its weights."""
    return output_of(plan.target.format).lay_out(plan, source)
