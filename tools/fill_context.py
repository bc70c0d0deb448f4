"""Load a bundle in one engine, bring every page of its KV cache and its longest prefill into memory, decode a little.

    python -m tools.fill_context model.litertlm --engine litert --context 4096 --cache-dir DIR

What a full context costs, without the hour that filling 32 k tokens takes: a page of KV counts once it is written, and
the arena of a signature once it ran. Memory is for the parent process to sample.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertExecutor
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory

if TYPE_CHECKING:
    from gemma_edge.runtime.executors.onnx.decoder import OnnxExecutor

DECODE_TOKENS = 8


@dataclass(frozen=True)
class Request:
    """What to load and how much of it to use. context_tokens: no more than the bundle was made for."""

    path: Path
    cache_dir: Path
    context_tokens: int
    prefill_tokens: int
    threads: int


def run_litert(request: Request) -> None:
    """Our executor with the tokenizer, as `Engine` holds them."""
    bundle = Bundle.open(request.path)
    text, sections = TextModel(bundle), DecoderSections.of(bundle)
    _fill(LitertExecutor(sections, request.threads, request.cache_dir, request.context_tokens), text, request)


def run_onnx(request: Request) -> None:
    """The same for ONNX directories, whose context is chosen when they are loaded."""
    from gemma_edge.runtime.executors.onnx.decoder import OnnxExecutor  # imported as late as Engine does

    directory = OnnxDirectory.open(request.path)
    text = TextModel(directory)
    _fill(OnnxExecutor(directory, request.threads, request.cache_dir, request.context_tokens), text, request)


def _fill(executor: "LitertExecutor | OnnxExecutor", text: TextModel, request: Request) -> None:
    for cache in executor._caches.values():
        cache.fill(0)
    token_ids = [*text.start_tokens, *text.tokenizer.encode("fill " * request.prefill_tokens)]
    executor.prefill(token_ids[: request.prefill_tokens])
    for _ in range(DECODE_TOKENS):
        executor.decode(0)
    executor.close()


def run_litert_lm(request: Request) -> None:
    """Google's engine, by its own benchmark; its context is the bundle's."""
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    litert_lm.Benchmark(
        str(request.path),
        litert_lm.Backend.CPU(thread_count=request.threads),
        prefill_tokens=request.prefill_tokens,
        decode_tokens=DECODE_TOKENS,
        cache_dir=str(request.cache_dir),
    ).run()


ENGINES = {"litert": run_litert, "litert_lm": run_litert_lm, "onnx": run_onnx}


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--engine", type=click.Choice(list(ENGINES)), required=True)
@click.option("--cache-dir", type=click.Path(path_type=Path), required=True)
@click.option("--context", required=True, type=int, help="Tokens, as the bundle was converted for; of ONNX any number.")
@click.option("--prefill", default=160, show_default=True, help="Tokens: both default chunks, the larger one whole.")
@click.option("--threads", default=2, show_default=True)
def main(bundle: Path, engine: str, cache_dir: Path, context: int, prefill: int, threads: int) -> None:
    """Run BUNDLE once."""
    ENGINES[engine](Request(bundle, cache_dir, context, prefill, threads))


if __name__ == "__main__":
    main()
