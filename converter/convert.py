"""The straight line: facts + decisions -> plan -> weights stream through -> one file."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Unpack

from gemma_edge.converter.calibrate.planning import lay_out, plan_for
from gemma_edge.converter.calibrate.step import balanced_plan, calibrated, check_calibration, spool_bytes
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.hashing import hashing
from gemma_edge.converter.identity import identity
from gemma_edge.converter.plan.options import Options
from gemma_edge.converter.plan.output import Bundle, digest_and_sync, output_of
from gemma_edge.converter.plan.target import Target, format_of
from gemma_edge.converter.progress import Stage, silent
from gemma_edge.converter.quality.acceptance import Acceptance
from gemma_edge.converter.quality.beside import report_path, spare_inputs
from gemma_edge.converter.quality.measure import TEXT, Measurement, measuring
from gemma_edge.converter.quality.refusal import refuse_loss
from gemma_edge.converter.quantize.stream import Quantizer
from gemma_edge.converter.report import Report, Source, make_report
from gemma_edge.profiles.paths import user_path
from gemma_edge.runtime.formats.atomic import atomic_file, disk_errors_of, output_lock, require_directory, require_space


def convert(
    target: str,
    checkpoint: str | Path | None = None,
    out: str | Path = "model.litertlm",
    *,
    gate: str = "",
    measure: bool = True,
    accept_loss: bool = False,
    stage: Stage = silent,
    **options: Unpack[Options],
) -> Report:
    """Convert a checkpoint; the parameters are those of the command line.

    target: "e2b-int4" and so on. checkpoint: a directory, a GGUF file or a hub id; None downloads the official one of
    that size. options: see Options; a format that is left out is what the name of `out` says.
    measure: whether to measure what is lost. gate: bounds that it must keep, "kl<=0.05,ppl<=1.1". accept_loss: write
    what is not usable, too.
    Writes `out` and, beside it, the report as `out`.json; both complete or not at all. A run that is killed between the
    two leaves a report that names no bundle or another one, and is known by that.
    Raises GemmaEdgeError, with one line to print, for anything the caller can mend; of these QualityError for a bundle
    that loses too much.
    """
    started = time.monotonic()
    acceptance = Acceptance.of(gate, measure, accept_loss)
    out = user_path(out)
    if out.name in ("", ".."):  # "." has a name, too, and the report goes beside it
        out = out.resolve()
    options["format"] = format_of(out, options.get("format"))
    request = Target.parse(target, **options)
    require_directory(out)
    # An output that cannot be written is refused before a download. A bundle appears after its report.
    with (
        output_lock(out),
        output_of(request.format).opened(out) as output,
        atomic_file(report_path(out)) as report_file,
        disk_errors_of(out),
    ):
        source, plan = plan_for(request, checkpoint, stage)
        check_calibration(plan)
        spare_inputs(source, out)
        with hashing(source, stage) as hashes:
            plan = balanced_plan(plan, source, stage)
            bundle = lay_out(plan, source)
            beside = bundle.beside(out)
            require_space(out, bundle.nbytes + spool_bytes(plan))
            with (
                calibrated(plan, source, out.parent, stage) as quantizers,
                _measuring(measure, bundle, source, quantizers, stage) as measurement,
            ):
                on_read = stage("convert", sum(tensor.spec.values * 2 for tensor in plan.tensors))
                look = None if measurement is None else measurement.look
                errors = bundle.write(
                    output, source, lambda: identity(plan, hashes.result(), quantizers), on_read, quantizers, look
                )
                compared = None if measurement is None else measurement.result()
            if measurement is not None and compared is not None:
                refuse_loss(acceptance, plan, source, measurement.windows, compared, out.parent, stage)
            inputs_sha256 = hashes.result()
        output_sha256 = digest_and_sync(output)
        seconds = time.monotonic() - started
        quality = acceptance.values(None if compared is None else compared.quality, TEXT)
        report = make_report(bundle, Source(source, inputs_sha256), (out, output_sha256), errors, seconds, quality)
        report.save(report_file)
        for path, content in beside.items():
            with atomic_file(path) as file:
                file.write(content)
    return report


def _measuring(
    is_wanted: bool, bundle: Bundle, source: Checkpoint, quantizers: Mapping[str, Quantizer], stage: Stage
) -> AbstractContextManager[Measurement | None]:
    return measuring(bundle.plan, bundle.tokenizer, source, quantizers, stage) if is_wanted else nullcontext()
