"""Load a bundle in one engine, bring every page of its KV cache and every signature into memory, decode a little.

    python -m tools.fill_context model.litertlm --engine litert --context 4096 --cache-dir DIR

What a full context costs, without the hour that filling 32 k tokens takes: a page of KV counts once it is written, and
the arena of a signature once it ran. Memory is for the parent process to sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from gemma_edge.converter.plan.lengths import SHORTEST_SPAN_TOKENS
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.executors.base import KvSlot
from gemma_edge.runtime.executors.open import open_decoder
from gemma_edge.runtime.formats.model import open_model

DECODE_TOKENS = 8


@dataclass(frozen=True)
class Request:
    """What to load and how much of it to use. context_tokens: no more than the bundle was made for."""

    path: Path
    cache_dir: Path
    context_tokens: int
    prefill_tokens: int
    threads: int


def run_ours(request: Request) -> None:
    """Our executor with the tokenizer, as `Engine` holds them, and as many slots as a batch takes."""
    model = open_model(request.path)
    text = TextModel(model)
    decoder = open_decoder(model, request.threads, request.cache_dir)
    slots = [decoder.new_slot(request.context_tokens) for _ in range(max(decoder.batch_rows, default=1))]
    for each in slots:
        for cache in vars(each)["_caches"].values():
            cache.fill(0)
    slot = slots[0]
    token_ids = [*text.start_tokens, *text.tokenizer.encode("fill " * request.prefill_tokens)]
    last = request.context_tokens - request.prefill_tokens - DECODE_TOKENS
    has_spans = "_position" in vars(slot)  # of LiteRT, where each span has signatures of its own
    for position in sorted({0, min(SHORTEST_SPAN_TOKENS + 1, last), last} if has_spans else {0}):
        if has_spans:
            _move(slots, position)
        slot.prefill(token_ids[: request.prefill_tokens])
        for _ in range(DECODE_TOKENS):
            slot.decode(0)
        for rows in decoder.batch_rows:
            _move(slots, position)
            for _ in range(DECODE_TOKENS):
                decoder.decode_batch(slots[:rows], [0] * rows)
        if has_spans:
            _move(slots, position)
        for rows in slot.verify_tokens():
            slot.verify([0] * rows)
            _move(slots, position)


def _move(slots: Sequence[KvSlot], position: int) -> None:
    """Where each has so many tokens; the caches hold zeros."""
    for slot in slots:
        vars(slot).update(_tokens=[0] * position, _position=position)


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


ENGINES = {"litert": run_ours, "litert_lm": run_litert_lm, "onnx": run_ours}


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
