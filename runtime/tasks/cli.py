"""`gemma-edge transcribe`."""

from pathlib import Path

import click

from gemma_edge.profiles.completion import offer_profiles
from gemma_edge.profiles.terminal import say
from gemma_edge.runtime.cli import executor_option


@click.command("transcribe")
@click.argument("bundle", type=click.Path())
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--language", help="What is spoken, in English: German.  [default: not known]")
@click.option("--translate", "target_language", help="Also translate into this language.")
@click.option("--threads", type=int, help="Cores to use.  [default: at most 4]")
@click.option("--cache-dir", help="Where packed weights are kept.  [default: ~/.cache/gemma-edge]")
@executor_option
@click.option(
    "--profile",
    shell_complete=offer_profiles,
    help="Keep this device's memory budget; refuse a bundle that does not fit.",
)
def transcribe_main(
    bundle: str,
    file: Path,
    language: str | None,
    target_language: str | None,
    threads: int | None,
    cache_dir: str | None,
    executor: str,
    profile: str | None,
) -> None:
    """Write down what is said in a recording of any length, as it is heard."""
    from gemma_edge.runtime.config import Backend
    from gemma_edge.runtime.engine import Engine
    from gemma_edge.runtime.litert_lm_engine import LitertLmEngine
    from gemma_edge.runtime.tasks.media import transcribe, transcribe_and_translate

    cpu = Backend.CPU(thread_count=threads)
    if executor == "litert-lm" and profile is not None:
        raise click.UsageError("--profile is kept by our executor; leave out --executor")
    with (
        LitertLmEngine(bundle, cpu, cache_dir=cache_dir, audio_backend=cpu)
        if executor == "litert-lm"
        else Engine(bundle, cpu, cache_dir=cache_dir, profile=profile) as engine
    ):
        pieces = (
            transcribe_and_translate(engine, file, target_language, language)
            if target_language
            else transcribe(engine, file, language)
        )
        for piece in pieces:
            say(piece)
    click.echo()
