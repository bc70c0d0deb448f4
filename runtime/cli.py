"""`gemma-edge run` and `gemma-edge bench`."""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import click

from gemma_edge.profiles.completion import offer_profiles
from gemma_edge.profiles.sizes import MIB
from gemma_edge.profiles.terminal import say

if TYPE_CHECKING:
    from gemma_edge.runtime.chat.conversation import Conversation
    from gemma_edge.runtime.chat.messages import Contents
    from gemma_edge.runtime.executors.litert.partitions import Partitions
    from gemma_edge.runtime.litert_lm_engine import LitertLmConversation
    from gemma_edge.runtime.measure.bench import Benchmark, Measurement
    from gemma_edge.runtime.measure.encoder_bench import EncoderMeasurement

    Chat = Conversation | LitertLmConversation


executor_option = click.option(
    "--executor",
    type=click.Choice(["litert", "litert-lm"]),
    default="litert",
    show_default=True,
    help="What runs the model: ours, or Google's engine.",
)

speculative_option = click.option(
    "--speculative-decoding/--no-speculative-decoding",
    default=None,
    help="Guess from the prompt and the reply, or by the bundle's drafter, and verify several tokens at once: the same "
    "text, faster where guesses are right.  [default: where the bundle was converted with --draft or --drafter]",
)


@click.command("run")
@click.argument("bundle", type=click.Path())
@click.option("--prompt", help="Answer this and exit; without it, chat.")
@click.option("--image", "images", multiple=True, type=click.Path(), help="Show an image first; may be repeated.")
@click.option(
    "--audio", "recordings", multiple=True, type=click.Path(), help="Play a recording after; may be repeated."
)
@click.option("--system", help="A system message.")
@click.option("--greedy", is_flag=True, help="Always take the most likely token.")
@click.option("--seed", type=int, help="Seed of the sampler.  [default: the bundle's]")
@click.option("--max-output-tokens", type=int, help="Longest reply.  [default: what the context holds]")
@click.option("--context", type=int, help="A context shorter than the bundle's.")
@click.option("--threads", type=int, help="Cores to use.  [default: at most 4]")
@click.option("--cache-dir", help="Where packed weights are kept.  [default: ~/.cache/gemma-edge]")
@executor_option
@click.option("--model", "which", help="Which of two models in the bundle: e2b.  [default: the large one]")
@click.option(
    "--profile",
    shell_complete=offer_profiles,
    help="Keep this device's memory budget; refuse a bundle that does not fit.",
)
@speculative_option
@click.option("--draft-model", help="The small one of two models in the bundle, to guess for the large one: e2b.")
@click.option("--stats", is_flag=True, help="Print speed and memory after each reply, to standard error.")
def run_main(
    bundle: str,
    prompt: str | None,
    images: tuple[str, ...],
    recordings: tuple[str, ...],
    system: str | None,
    greedy: bool,
    seed: int | None,
    max_output_tokens: int | None,
    context: int | None,
    threads: int | None,
    cache_dir: str | None,
    executor: str,
    which: str | None,
    profile: str | None,
    speculative_decoding: bool | None,
    draft_model: str | None,
    stats: bool,
) -> None:
    """Chat with a bundle, or answer one prompt. Images and recordings go with the first message.

    Ctrl-C stops the reply; at the prompt, Ctrl-C or Ctrl-D ends the chat. A message that cannot be answered does not,
    but the exit status is then 1.
    """
    from dataclasses import replace

    from gemma_edge.profiles.budget import OverBudget
    from gemma_edge.profiles.errors import GemmaEdgeError
    from gemma_edge.runtime.config import Backend
    from gemma_edge.runtime.engine import Engine
    from gemma_edge.runtime.formats.model import open_model
    from gemma_edge.runtime.litert_lm_engine import LitertLmEngine
    from gemma_edge.runtime.text.sampler import SamplerConfig

    path = Path(bundle)
    model = open_model(path)
    sampler = SamplerConfig(top_k=1) if greedy else SamplerConfig.of_bundle(model.metadata().sampler_params)
    sampler = sampler if seed is None else replace(sampler, seed=seed)
    cpu = Backend.CPU(thread_count=threads)
    if executor == "litert-lm" and profile is not None:
        raise click.UsageError("--profile is kept by our executor; leave out --executor")
    if executor == "litert-lm" and which is not None:
        raise click.UsageError("litert-lm runs the large model alone; leave out --executor")
    if executor == "litert-lm" and (speculative_decoding is not None or draft_model is not None):
        raise click.UsageError("our own executor alone is told how to guess; leave out --executor")
    if prompt is None and sys.stdin is None:
        raise click.UsageError("standard input is closed, so there is nothing to chat with; give --prompt")
    is_answered = True
    with (
        LitertLmEngine(bundle, cpu, max_num_tokens=context, cache_dir=cache_dir)
        if executor == "litert-lm"
        else Engine(
            bundle,
            cpu,
            max_num_tokens=context,
            cache_dir=cache_dir,
            enable_speculative_decoding=speculative_decoding,
            profile=profile,
            model=which,
            draft_model=draft_model,
        ) as engine,
        engine.create_conversation(
            system_message=system, sampler_config=sampler, max_output_tokens=max_output_tokens
        ) as conversation,
    ):
        new_images, new_recordings = images, recordings
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # bytes that are not UTF-8 are no reason to end a chat
        for message in [prompt] if prompt is not None else _typed(sys.stdin):
            try:
                answer(conversation, _with_media(message, new_images, new_recordings))
            except OverBudget:
                raise
            except GemmaEdgeError as error:  # the turn was taken back: the chat goes on
                if prompt is not None:
                    raise
                click.echo(f"error: {error}", err=True)
                is_answered = False
                continue
            new_images = new_recordings = ()
            if stats:
                click.echo(_figures(conversation), err=True)
    if not is_answered:
        sys.exit(1)


def _with_media(text: str, images: Sequence[str], recordings: Sequence[str]) -> "Contents":
    """Images before the text and recordings after it, as Google's model cards advise."""
    from gemma_edge.runtime.chat.messages import AudioFile, Contents, ImageFile

    shown = (ImageFile(str(Path(path).absolute())) for path in images)
    return Contents.of(*shown, text, *(AudioFile(str(Path(path).absolute())) for path in recordings))


def answer(conversation: "Chat", message: "str | Contents") -> None:
    """Prints the reply as it is written. Ctrl-C ends it; our executor then takes the turn back."""
    with _interrupt_cancels(conversation) as cancelled:
        for piece in conversation.send_message_async(message):
            say(str(piece))
    click.echo(" [cancelled]" if cancelled.is_set() else "")


def _typed(keyboard: TextIO) -> Iterator[str]:
    """Lines until the end of input or Ctrl-C; empty ones are left out."""
    while True:
        try:
            click.echo("> ", nl=False, err=True)
            line = keyboard.readline()
        except KeyboardInterrupt:
            line = ""
        if not line:
            click.echo(err=True)
            return
        if line.strip():
            yield line.rstrip("\n")


@contextmanager
def _interrupt_cancels(conversation: "Chat") -> Iterator[Event]:
    """Ctrl-C asks the conversation to stop instead of raising KeyboardInterrupt in the middle of a step.

    Yields whether that happened.
    """
    cancelled = Event()

    def cancel(_signal: int, _frame: FrameType | None) -> None:
        cancelled.set()
        conversation.cancel_process()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield cancelled
    finally:
        signal.signal(signal.SIGINT, before)


def _figures(conversation: "Chat") -> str:
    from gemma_edge.runtime.chat.conversation import Conversation
    from gemma_edge.runtime.memory.reading import read_memory

    media_s = conversation.timing.media_s if isinstance(conversation, Conversation) else 0.0  # Google's does not tell
    info, memory = conversation.get_benchmark_info(), read_memory()
    guessed = ""
    if info.last_verify_count:
        guessed = (
            f"guessed {info.last_drafted_token_count} in {info.last_verify_count} calls, "
            f"{info.last_accepted_token_count} saved a call; "
        )
    if info.last_forced_token_count:
        guessed += f"{info.last_forced_token_count} forced by the response format; "
    return (
        f"[{f'images and audio {media_s:.2f} s; ' if media_s else ''}"
        f"first token {info.time_to_first_token_in_second:.2f} s; "
        f"prefill {info.last_prefill_token_count} tokens, {info.last_prefill_tokens_per_second:.1f}/s; "
        f"decode {info.last_decode_token_count} tokens, {info.last_decode_tokens_per_second:.1f}/s; "
        f"{guessed}"
        f"context {conversation.token_count} tokens; "
        f"memory {memory.hard_bytes / MIB:.0f} MiB anonymous, {memory.file_bytes / MIB:.0f} MiB mapped]"
    )


@click.command("bench")
@click.argument("bundle", type=click.Path())
@click.option("--prefill", default=256, show_default=True, help="Prompt length in tokens.")
@click.option("--decode", default=64, show_default=True, help="Tokens to generate.")
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Processes; medians are shown, with --profile the best speeds.",
)
@click.option("--context", type=int, help="A context shorter than the bundle's.")
@click.option("--threads", type=int, help="Cores to use.  [default: at most 4]")
@click.option("--cache-dir", help="Where packed weights are kept.  [default: ~/.cache/gemma-edge]")
@executor_option
@click.option(
    "--profile",
    shell_complete=offer_profiles,
    help="Measure against this device's budget; exit status 1 where it is crossed.",
)
@click.option(
    "--method",
    type=click.Choice(("auto", "cgroup", "sampling")),
    default="auto",
    show_default=True,
    help="With --profile: how the limit is tested.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="With --profile: draw memory over time (.png, .svg).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the medians and every run.")
def bench_main(
    bundle: str,
    prefill: int,
    decode: int,
    runs: int,
    context: int | None,
    threads: int | None,
    cache_dir: str | None,
    executor: str,
    profile: str | None,
    method: str,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure a bundle: time to first token, prefill and decode speed, peak memory; or whether it keeps a budget."""
    from gemma_edge.runtime.config import Backend
    from gemma_edge.runtime.measure.bench import Benchmark, measure, medians

    benchmark = Benchmark(
        bundle,
        Backend.CPU(thread_count=threads),
        prefill,
        decode,
        max_num_tokens=context,
        cache_dir=cache_dir,
        executor=executor,
    )
    if profile is not None:
        sys.exit(_bench_budget(benchmark, profile, method, runs, plot, as_json))
    if plot is not None:
        raise click.UsageError("--plot shows a budget; add --profile")
    if method != "auto":
        raise click.UsageError("--method is how a budget is tested; add --profile")
    measured = [measure(benchmark) for _ in range(runs)]
    divided, encoders = _partitions(benchmark), _encoders(benchmark)
    if as_json:
        values = {
            "median": asdict(medians(measured)),
            "runs": [asdict(run) for run in measured],
            "partitions": {name: asdict(signature) for name, signature in divided.items()},
            "encoders": {name: asdict(encoder) for name, encoder in encoders.items()},
        }
        click.echo(json.dumps(values, indent=2))
    else:
        click.echo(_table(medians(measured), runs, prefill, decode))
        for name, signature in divided.items():
            click.echo(f"{name}: {_divided(signature)}")
        for name, encoder in encoders.items():
            click.echo(_encoder_line(name, encoder))


def _divided(signature: "Partitions") -> str:
    outside = ", ".join(f"{count} {op}" for op, count in signature.outside.items()) or "nothing"
    return f"{signature.count} XNNPACK partition{'s'[: signature.count != 1]}; outside: {outside}"


def _encoder_line(name: str, encoder: "EncoderMeasurement") -> str:
    what = {"vision": "an image", "audio": "30 s of sound"}[name]
    divided = "" if encoder.partitions is None else f"; {_divided(encoder.partitions)}"
    return (
        f"{name} encoder: load {encoder.load_s:.2f} s, {what} {encoder.encode_s:.2f} s, "
        f"peak {encoder.anon_bytes / MIB:.0f} MiB anonymous, {encoder.file_bytes / MIB:.0f} MiB mapped{divided}"
    )


def _encoders(benchmark: "Benchmark") -> "dict[str, EncoderMeasurement]":
    """Speed and memory of the encoders that the model has, each by itself in our executor."""
    from gemma_edge.runtime.executors.placement import cache_folder
    from gemma_edge.runtime.measure.encoder_bench import measure_encoders
    from gemma_edge.runtime.settings import default_threads

    if benchmark.executor != "litert":
        return {}
    threads = getattr(benchmark.backend, "thread_count", None) or default_threads(None)
    path = Path(benchmark.model_path)
    return measure_encoders(benchmark.model_path, threads, cache_folder(benchmark.cache_dir, path, prefer_disk=False))


def _partitions(benchmark: "Benchmark") -> "dict[str, Partitions]":
    """How XNNPACK divides each signature, once the runs have packed the weights; Google's engine does not tell."""
    from gemma_edge.runtime.executors.open import partitions_of
    from gemma_edge.runtime.executors.placement import cache_folder
    from gemma_edge.runtime.formats.litertlm import ModelType
    from gemma_edge.runtime.formats.model import open_model

    path = Path(benchmark.model_path)
    folder = cache_folder(benchmark.cache_dir, path, prefer_disk=False)
    if benchmark.executor != "litert" or folder is None:
        return {}
    return partitions_of(open_model(path), ModelType.PREFILL_DECODE, 1, folder) or {}


def _bench_budget(
    benchmark: "Benchmark", profile: str, method: str, runs: int, plot: Path | None, as_json: bool
) -> int:
    """Prints plan against measurement. Returns the exit status: 1 where the budget is not kept."""
    from gemma_edge.profiles.device import load_profile
    from gemma_edge.runtime.measure.budget_plot import plot as draw
    from gemma_edge.runtime.measure.budget_run import Method, measure_budget

    report = measure_budget(benchmark, load_profile(profile), Method(method), runs)
    click.echo(json.dumps(report.values(), indent=2) if as_json else report.text())
    if plot is not None:
        draw(report, plot)
    return 0 if report.passed else 1


def _table(median: "Measurement", runs: int, prefill: int, decode: int) -> str:
    rows = [
        ("start", f"{median.init_s:.2f} s"),
        ("first token", f"{median.time_to_first_token_s:.2f} s"),
        (f"prefill {prefill}", f"{median.prefill_tokens_per_s:.1f} tok/s"),
        (f"decode {decode}", f"{median.decode_tokens_per_s:.1f} tok/s"),
        ("peak anonymous", f"{median.anon_bytes / MIB:.0f} MiB"),
        ("peak mapped", f"{median.file_bytes / MIB:.0f} MiB"),
        ("peak total", f"{median.total_bytes / MIB:.0f} MiB"),
    ]
    lines = [f"{name:<16}{value:>14}" for name, value in rows]
    return "\n".join([*lines, f"medians of {runs} runs, each a process of its own"])
