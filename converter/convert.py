"""The straight line: facts + decisions -> plan -> weights stream through -> one file."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from enum import StrEnum
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from gemma_edge.converter.calibrate.auto import automatic_recipe
from gemma_edge.converter.calibrate.step import (
    balanced_plan,
    calibrated,
    calibration_text,
    check_calibration,
    measuring_windows,
    spool_bytes,
)
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, read_config
from gemma_edge.converter.checkpoint.hub import resolve_checkpoint
from gemma_edge.converter.checkpoint.lora import merged
from gemma_edge.converter.checkpoint.processor import image_pixels
from gemma_edge.converter.models.encoders import Modality
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.official import TEXT_CONFIGS, official_model
from gemma_edge.converter.plan.fit import settle
from gemma_edge.converter.plan.output import Bundle
from gemma_edge.converter.plan.plan import Plan, make_plan
from gemma_edge.converter.plan.target import DEFAULT_PREFILL_TOKENS, Format, KVType, Target, TargetError
from gemma_edge.converter.progress import Stage, silent
from gemma_edge.converter.quality.acceptance import Acceptance
from gemma_edge.converter.quality.beside import report_path
from gemma_edge.converter.quality.measure import TEXT, Measurement, measuring
from gemma_edge.converter.quality.refusal import refuse_loss
from gemma_edge.converter.quantize.qat import with_grids
from gemma_edge.converter.quantize.recipes import OTHER_NAMES, Recipe
from gemma_edge.converter.quantize.stream import Round
from gemma_edge.converter.report import Report, Source, make_report, plan_values
from gemma_edge.profiles.device import load_profile
from gemma_edge.profiles.sizes import parse_size
from gemma_edge.runtime.formats.atomic import OutputError, atomic_directory, atomic_file, require_space
from gemma_edge.runtime.formats.digest import sha256_of

AUTO = "auto"
"""The recipe that is chosen by measuring."""

_Choice = TypeVar("_Choice", bound=StrEnum)


def convert(
    target: str,
    checkpoint: str | Path | None = None,
    out: str | Path = "model.litertlm",
    *,
    profile: str | None = None,
    context: int | None = None,
    prefill: Sequence[int] = DEFAULT_PREFILL_TOKENS,
    kv: str = KVType.FP32.value,
    recipe: str | Path | None = None,
    encoding: Sequence[str] = (),
    format: str = Format.LITERTLM.value,  # noqa: A002  the command line's name
    modalities: Sequence[str] | None = None,
    fit: bool = False,
    calibrate: str | Path | None = None,
    max_bytes: str | None = None,
    lora: str | Path | None = None,
    gate: str = "",
    measure: bool = True,
    accept_loss: bool = False,
    stage: Stage = silent,
) -> Report:
    """Convert a checkpoint; the parameters are those of the command line.

    target: "e2b-int4" and so on. checkpoint: a directory, a GGUF file or a hub id; None downloads the official one of
    that size.
    modalities: of "text", "vision" and "audio"; None is all that the checkpoint has and the profile can bear.
    profile: a device profile's name or file; the conversion is refused if the plan does not fit it, or, with fit, the
    nearest one that does is made. context, prefill: tokens. encoding: "ROLE=ENCODING" for roles in which the recipe is
    overridden. calibrate: a text file, or "built-in", that layers are rounded for. recipe "auto" measures which
    encodings lose least in a bundle of max_bytes ("2.6GB"). lora: a PEFT adapter's directory, merged on the way.
    measure: whether to measure what is lost. gate: bounds that it must keep, "kl<=0.05,ppl<=1.1". accept_loss: write
    what is not usable, too.
    Writes `out` and, beside it, the report as `out`.json; both complete or not at all.
    Raises GemmaEdgeError, with one line to print, for anything the caller can mend; of these QualityError for a bundle
    that loses too much.
    """
    started = time.monotonic()
    acceptance = Acceptance.of(gate, measure, accept_loss)
    out = Path(out)
    if out.name in ("", ".."):  # "." has a name, too, and the report goes beside it
        out = out.resolve()
    request = make_target(
        target, profile, context, prefill, kv, recipe, encoding, format, modalities, fit, calibrate, max_bytes, lora
    )
    # An output that cannot be written is refused before a download. The report appears after its bundle.
    with atomic_file(report_path(out)) as report_file, _output(request.format, out) as output:
        source, plan = plan_for(request, checkpoint, stage)
        check_calibration(plan)
        _spare_inputs(source, out)
        plan = balanced_plan(plan, source, stage)
        with _hashing(source, stage) as hashes:
            bundle = lay_out(plan, source)
            require_space(out, bundle.nbytes + spool_bytes(plan))
            with (
                calibrated(plan, source, out.parent, stage) as rounds,
                _measuring(measure, bundle, source, rounds, stage) as measurement,
            ):
                on_read = stage("convert", sum(tensor.spec.values * 2 for tensor in plan.tensors))
                look = None if measurement is None else measurement.look
                errors = bundle.write(output, source, lambda: identity(plan, hashes.result()), on_read, rounds, look)
                compared = None if measurement is None else measurement.result()
            if measurement is not None and compared is not None:
                refuse_loss(acceptance, plan, source, measurement.windows, compared, out.parent, stage)
            inputs_sha256 = hashes.result()
        output_sha256 = _digest_and_sync(output)
        seconds = time.monotonic() - started
        quality = acceptance.values(None if compared is None else compared.quality, TEXT)
        report = make_report(bundle, Source(source, inputs_sha256), (out, output_sha256), errors, seconds, quality)
        report.save(report_file)
    return report


def _measuring(
    is_wanted: bool, bundle: Bundle, source: Checkpoint, rounds: Mapping[str, Round], stage: Stage
) -> AbstractContextManager[Measurement | None]:
    return measuring(bundle.plan, bundle.tokenizer, source, rounds, stage) if is_wanted else nullcontext()


def make_target(
    target: str,
    profile: str | None = None,
    context: int | None = None,
    prefill: Sequence[int] = DEFAULT_PREFILL_TOKENS,
    kv: str = KVType.FP32.value,
    recipe: str | Path | None = None,
    encoding: Sequence[str] = (),
    format: str = Format.LITERTLM.value,  # noqa: A002  the command line's name
    modalities: Sequence[str] | None = None,
    fit: bool = False,
    calibrate: str | Path | None = None,
    max_bytes: str | None = None,
    lora: str | Path | None = None,
) -> Target:
    """The request as one checked value. Raises TargetError, RecipeError, TextError or ProfileError."""
    size, precision = Target.split_name(target)
    is_automatic = recipe == AUTO  # a Path, or "./auto", is a file
    if is_automatic != (max_bytes is not None):
        raise TargetError("recipe auto and max-bytes: expected both or none; give --recipe auto --max-bytes 2.6GB")
    if recipe is None or is_automatic:
        base = Recipe.named(precision)
    else:
        base = Recipe.named(str(recipe)) if recipe in OTHER_NAMES else Recipe.load(Path(recipe))
    return Target(
        size=size,
        precision=precision,
        recipe=reduce(Recipe.overridden, encoding, base),
        context_tokens=context,
        prefill_tokens=tuple(prefill),
        kv=_choice("kv", kv, KVType),
        format=_choice("format", format, Format),
        profile=None if profile is None else load_profile(profile),
        fit=fit,
        modalities=None if modalities is None else _modalities(modalities),
        calibration=None if calibrate is None else calibration_text(calibrate),
        max_bytes=None if max_bytes is None else _bytes(max_bytes),
        lora=None if lora is None else Path(lora),
    )


def _choice(option: str, value: str, choices: type[_Choice]) -> _Choice:
    try:
        return choices(value)
    except ValueError:
        raise TargetError(f"{option} {value!r}: expected {' or '.join(choices)}; use one of them") from None


def _bytes(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError:
        raise TargetError(f"max-bytes {text!r}: expected a number with its unit, such as 2.6GB or 900MiB") from None


def _modalities(names: Sequence[str]) -> tuple[Modality, ...]:
    """In the order of Modality, each once."""
    chosen = {_choice("modalities", name, Modality) for name in names}
    return tuple(modality for modality in Modality if modality in chosen)


def plan_for(request: Target, checkpoint: str | Path | None, stage: Stage = silent) -> tuple[Checkpoint, Plan]:
    """Find the checkpoint, downloading it where needed, and decide everything about it.

    What does not fit its profile is refused before the official checkpoint is downloaded, and before a shard is opened.
    Raises OverBudget, LoraError, and what reading and matching a checkpoint raise.
    """
    if checkpoint is None and request.size in TEXT_CONFIGS and request.max_bytes is None:
        settle(request, official_model(request.size))
    path = resolve_checkpoint(None if checkpoint is None else str(checkpoint), request.size)
    model = Model.of_checkpoint(read_config(path), image_pixels(path))
    request.check(model)
    if request.max_bytes is None:
        settle(request, model)
    source, model = _open(path, request, model)
    request.check(model)
    if request.max_bytes is not None:
        request = _measured(request, request.max_bytes, model, source, stage)
    return source, make_plan(settle(request, model), source)


def _open(path: Path, request: Target, model: Model) -> tuple[Checkpoint, Model]:
    """The checkpoint, with its adapter if there is one, and the model with what only its tensors tell.

    A tower that config.json describes and no shard holds is a modality that the checkpoint does not have.
    """
    source = Checkpoint.open(path)
    model = model.with_modalities([tower.modality for tower in model.towers if tower.is_stored_in(source.tensors)])
    if request.lora is not None:
        source = merged(source, request.lora)
        model = replace(Model.from_json(source.text_config), towers=model.towers)  # its head may have become untied
    return source, with_grids(model, source, request.recipe_for(model))


def _measured(request: Target, max_bytes: int, model: Model, source: Checkpoint, stage: Stage) -> Target:
    """The request with the recipe that loses least in a bundle of at most `max_bytes`."""
    without_profile = replace(request, profile=None, fit=False)

    def plan_of(recipe: Recipe) -> Plan:
        return make_plan(settle(replace(without_profile, recipe=recipe), model), source)

    plan = balanced_plan(plan_of(request.recipe), source, stage)
    windows = measuring_windows(request, model, source)
    recipe = automatic_recipe(
        plan, source, max_bytes, lambda recipe: lay_out(plan_of(recipe), source).nbytes, windows, stage
    )
    return replace(request, recipe=recipe)


def lay_out(plan: Plan, source: Checkpoint) -> Bundle:
    """The output in the format asked for, to the byte, without its weights.

    A format is imported when it is asked for: a refusal should not wait for what it does not need.
    """
    match plan.target.format:
        case Format.LITERTLM:
            from gemma_edge.converter.litert.bundle import LitertBundle

            return LitertBundle.lay_out(plan, source.side_path)
        case Format.TASK:
            from gemma_edge.converter.litert.task_bundle import TaskBundle

            return TaskBundle.lay_out(plan, source.side_path)
        case Format.ONNX:
            from gemma_edge.converter.onnx.bundle import OnnxBundle

            return OnnxBundle.lay_out(plan, source.side_path)


def _spare_inputs(source: Checkpoint, out: Path) -> None:
    """Raises OutputError where the bundle or its report would replace a file that it is made from."""
    inputs = {path.resolve() for path in source.input_files()}
    for path in (out, report_path(out)):
        if path.resolve() in inputs:
            raise OutputError(f"{path}: is part of the checkpoint that is converted; choose another output")


def _output(format: Format, out: Path) -> AbstractContextManager[Any]:  # noqa: A002  as above
    """What a bundle writes itself into: a directory for ONNX, else a file."""
    return atomic_directory(out) if format is Format.ONNX else atomic_file(out)


def _digest_and_sync(output: Any) -> str:
    """SHA-256 of a file; of a directory, of its files' digests and names as sha256sum prints them."""
    if not isinstance(output, Path):
        output.flush()
        with ThreadPoolExecutor(1) as pool:
            synced = pool.submit(os.fsync, output.fileno())  # part of the time that a conversion takes
            digest = sha256_of(output.fileno(), 0, os.fstat(output.fileno()).st_size)
            synced.result()
        return digest
    lines = []
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            lines.append(f"{_digest_and_sync(file)}  {path.relative_to(output).as_posix()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# What of a plan changes no byte of the output.
_WISHES = ("profile", "fit", "modalities", "predicted_decode_tokens_per_s", "footprint")


def identity(plan: Plan, hashes: Mapping[str, str]) -> str:
    """A digest of everything the output follows from: the inputs' contents and the decisions."""
    decisions = {key: value for key, value in plan_values(plan).items() if key not in _WISHES}
    text = json.dumps({"inputs": dict(hashes), "plan": decisions}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _hashing(source: Checkpoint, stage: Stage) -> Iterator[Future[dict[str, str]]]:
    """SHA-256 of the inputs, in the background from now on.

    Given up when the block fails: nobody waits for gigabytes to be hashed to read an error.
    """
    on_bytes = stage("hash input", sum(path.stat().st_size for path in source.input_files()))
    failed = threading.Event()

    def count(nbytes: int) -> None:
        if failed.is_set():
            raise CancelledError
        on_bytes(nbytes)

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(source.sha256, count)
        except BaseException:
            failed.set()
            raise
