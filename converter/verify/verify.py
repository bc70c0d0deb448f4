"""The straight line: text -> checkpoint and bundle side by side -> layers -> faults -> gates -> report."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.hub import resolve_checkpoint
from gemma_edge.converter.checkpoint.lora import merged
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.plan.output import format_at
from gemma_edge.converter.progress import Stage, silent
from gemma_edge.converter.quality.gates import judge, parse_gates
from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.expected import expected_model
from gemma_edge.converter.verify.explain import explain, readable_weights
from gemma_edge.converter.verify.find.encoders import EncoderScore, encoder_findings, score_encoders
from gemma_edge.converter.verify.find.folds import as_in_bundle
from gemma_edge.converter.verify.measure.bootstrap import Resampling
from gemma_edge.converter.verify.measure.heap import kept_memory
from gemma_edge.converter.verify.measure.scores import differences
from gemma_edge.converter.verify.measure.subject import BundleSubject, Subject
from gemma_edge.converter.verify.measure.tasks import TaskResult, load_tasks, run_tasks
from gemma_edge.converter.verify.measure.text import file_windows, text_windows
from gemma_edge.converter.verify.measure.weights_subject import WeightsSubject
from gemma_edge.converter.verify.prompts.prompting import prompting_faults
from gemma_edge.converter.verify.run import read
from gemma_edge.converter.verify.show.report import BundleScores, VerifyReport
from gemma_edge.profiles.paths import user_path
from gemma_edge.runtime.memory.reading import PeakSampler

REPLY_TOKENS = 128


def verify(
    bundle: str | Path,
    checkpoint: str | Path,
    *,
    text: Path | None = None,
    tokens: Path | None = None,
    limit: int = 1024,
    window: int = 256,
    against: str | Path | None = None,
    lora: Path | None = None,
    slice: str | Path | None = None,  # noqa: A002  the option's name
    gate: str = "",
    prompts: Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    cache_dir: str | None = None,
    stage: Stage = silent,
) -> VerifyReport:
    """Measure what conversion did; the parameters are those of the command line.

    bundle, against: .litertlm files, ONNX directories, or what is a checkpoint as well: GGUF files. checkpoint: a
    directory or a hub id, as for `convert`. lora: the adapter that was merged into the checkpoint. slice: what was cut
    out of it, as for `convert`. text, tokens: what to read, at most one of them; neither reads the built-in text.
    limit, window: tokens in all, and in one text.
    Raises GemmaEdgeError, with one line to print, for what keeps it from being measured; a bad bundle is no error.
    """
    started = time.monotonic()
    tasks = () if prompts is None else load_tasks(prompts)
    gates = parse_gates(gate, with_tasks=bool(tasks))
    numbers = {"limit": (limit, 2), "window": (window, 2), "seed": (seed, 0), "threads": (threads, 1)}
    for option, (value, lowest) in numbers.items():
        if value is not None and value < lowest:
            raise VerifyError(f"--{option} {value}: expected at least {lowest}; give a larger number")
    if text is not None and tokens is not None:
        raise VerifyError("found both a text and a file of tokens, expected one of them; leave one out")
    with PeakSampler(interval_ms=50) as memory, kept_memory(), ExitStack() as stack:
        base = Checkpoint.open(resolve_checkpoint(str(checkpoint), "custom"))
        source = base if lora is None else merged(base, lora, text_only=True)  # what it does to encoders may stay
        paths = [user_path(path) for path in (bundle, against) if path is not None]
        source, model, which = expected_model(source, paths[0], slice)
        subjects = [stack.enter_context(open_subject(path, threads, cache_dir, which)) for path in paths]
        vocab_size = model.model.config.vocab_size
        if tokens is None:
            windows = text_windows(text, source, vocab_size, limit, window)
        else:
            windows = file_windows(tokens, vocab_size, limit, window)
        for subject in subjects:
            subject.check(windows.shape[1], vocab_size)
        stored = readable_weights(model, subjects[0])
        if stored is not None:
            model = StreamingModel(source, as_in_bundle(model.model, source, stored))
        reading = read(source, model, stored, windows, subjects, stage)
        answers = run_tasks(tasks, lambda prompt: subjects[0].reply(prompt, REPLY_TOKENS))
        faults = explain(source, model, stored, reading, stage)
        encoders = _encoder_scores(source, subjects[0])
        prompting = prompting_faults(source, vocab_size, subjects[0].text_model)
        findings = (*faults, *encoder_findings(encoders), *prompting)
    resampling = Resampling.of(len(windows), windows.shape[1], seed)
    scores = [
        BundleScores(name, found.metrics(resampling), tuple(found.kl.tolist()))
        for name, found in zip(_names(subjects), reading.scores, strict=True)
    ]
    values = {name: metric.value for name, metric in scores[0].metrics.items()} | _task_values(answers)
    return VerifyReport(
        checkpoint=source.path.name,
        windows=len(windows),
        window_tokens=windows.shape[1],
        bundle=scores[0],
        against=None if against is None else scores[1],
        differences=None if against is None else differences(reading.scores[0], reading.scores[1], resampling),
        sample_tokens=len(reading.sample.tokens),
        weights_kl=reading.comparison.weights_kl,
        layers=reading.comparison.layers,
        tensors=reading.comparison.tensors,
        worst=reading.worst,
        encoders=encoders,
        findings=findings,
        tasks=answers,
        gates=judge(gates, values),
        not_checked=tuple(dict.fromkeys(line for subject in subjects for line in subject.not_checked)),
        seconds=time.monotonic() - started,
        peak_anon_bytes=memory.peak.anon_bytes,
    )


def open_subject(
    path: Path, threads: int | None, cache_dir: str | None, model: str | None = None
) -> AbstractContextManager[Subject]:
    """What lies there, as it runs here, or, where it does not, as its weights say. model: of a bundle with several."""
    return BundleSubject(path, threads, cache_dir, model) if format_at(path).runs else WeightsSubject(path, threads)


def _encoder_scores(source: Checkpoint, subject: Subject) -> tuple[EncoderScore, ...]:
    if subject.bundle is None:
        return ()
    return tuple(score_encoders(source, subject.bundle, subject.threads, subject.folder))


def _names(subjects: Sequence[Subject]) -> list[str]:
    """Of files, or where two have one name, of their places: a report on both tells them apart by it."""
    names = [subject.name for subject in subjects]
    return names if len({*names}) == len(names) else [str(subject.path) for subject in subjects]


def _task_values(answers: Sequence[TaskResult]) -> dict[str, float]:
    return {"tasks": sum(answer.complaint is None for answer in answers) / len(answers)} if answers else {}
