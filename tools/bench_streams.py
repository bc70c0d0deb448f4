"""Conversations one after another and at once on one engine: how long each way takes, and how many rows it runs.

    python -m tools.bench_streams model.litertlm --streams 4 --tokens 64

One thread runs the model, so at once should take as long as one after another; what is more is the cost of taking
turns.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.text.sampler import SamplerConfig

WORDS = "It is a truth universally acknowledged, that a single man in possession of a good fortune"


def talk(conversation: Conversation, index: int, turns: int) -> int:
    """Streams every turn to its end; the rows that ran."""
    rows = 0
    for turn in range(turns):
        for _ in conversation.send_message_async(f"{index}.{turn}. {WORDS}"):
            pass
        usage = conversation.usage
        rows += usage.run - 1 + usage.generated
    return rows


def run(engine: Engine, streams: int, turns: int, tokens: int, workers: int) -> tuple[float, int]:
    """(seconds, rows) of so many conversations, `workers` of them at once."""
    greedy = SamplerConfig(top_k=1)
    conversations = [
        engine.create_conversation(sampler_config=greedy, max_output_tokens=tokens) for _ in range(streams)
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        rows = sum(pool.map(talk, conversations, range(streams), [turns] * streams))
    return time.perf_counter() - started, rows


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--streams", default=4, show_default=True)
@click.option("--turns", default=2, show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Of a reply, at most.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="The fastest of each way counts.")
@click.option("--cache-dir", help="Where packed weights are kept.")
def main(model: Path, streams: int, turns: int, tokens: int, threads: int, rounds: int, cache_dir: str | None) -> None:
    """Print seconds and rows of both ways, and their ratio."""
    best: dict[int, tuple[float, int]] = {}
    with Engine(str(model), Backend.CPU(thread_count=threads), cache_dir=cache_dir, slots=streams) as engine:
        for _ in range(rounds):
            for workers in (1, streams):
                measured = run(engine, streams, turns, tokens, workers)
                best[workers] = min(measured, best.get(workers, measured))
    for workers, name in ((1, "one after another"), (streams, "at once")):
        seconds, rows = best[workers]
        click.echo(f"{name:18} {seconds:8.2f} s {rows:6} rows")
    click.echo(f"{'ratio':18} {best[streams][0] / best[1][0]:8.3f}")


if __name__ == "__main__":
    main()
