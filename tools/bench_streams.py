"""Conversations one after another and at once on one engine: how long each way takes, and how many rows it runs.

    python -m tools.bench_streams model.litertlm --streams 4 --tokens 64

One thread runs the model, so at once should take as long as one after another; what is more is the cost of taking
turns. Of a bundle that was converted with --batch it takes less. Processor time with --threads 1 is what other work on
the machine changes least.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.text.sampler import SamplerConfig

WORDS = "It is a truth universally acknowledged, that a single man in possession of a good fortune"


@dataclass(frozen=True, order=True)
class Run:
    """All conversations, one way. cpu_s: processor time. rows: tokens that ran."""

    cpu_s: float
    seconds: float
    rows: int


def talk(conversation: Conversation, index: int, turns: int) -> int:
    """Streams every turn to its end; the rows that ran."""
    rows = 0
    for turn in range(turns):
        for _ in conversation.send_message_async(f"{index}.{turn}. {WORDS}"):
            pass
        usage = conversation.usage
        rows += usage.run - 1 + usage.generated
    return rows


def run(engine: Engine, streams: int, turns: int, tokens: int, workers: int) -> Run:
    """So many conversations, `workers` of them at once."""
    greedy = SamplerConfig(top_k=1)
    conversations = [
        engine.create_conversation(sampler_config=greedy, max_output_tokens=tokens) for _ in range(streams)
    ]
    started, cpu_started = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(workers) as pool:
        rows = sum(pool.map(talk, conversations, range(streams), [turns] * streams))
    return Run(time.process_time() - cpu_started, time.perf_counter() - started, rows)


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--streams", default=4, show_default=True)
@click.option("--turns", default=2, show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Of a reply, at most.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="The fastest of each way counts.")
@click.option("--cache-dir", help="Where packed weights are kept.")
def main(model: Path, streams: int, turns: int, tokens: int, threads: int, rounds: int, cache_dir: str | None) -> None:
    """Print seconds, processor time and rows of both ways, and their ratios."""
    runs: dict[int, list[Run]] = {1: [], streams: []}
    with Engine(str(model), Backend.CPU(thread_count=threads), cache_dir=cache_dir, slots=streams) as engine:
        for _ in range(rounds):
            for workers, found in runs.items():
                found.append(run(engine, streams, turns, tokens, workers))
    alone, at_once = (min(found) for found in runs.values())
    for name, best in (("one after another", alone), ("at once", at_once)):
        click.echo(f"{name:18} {best.seconds:8.2f} s {best.cpu_s:8.2f} s of processors {best.rows:6} rows")
    click.echo(f"{'ratio':18} {at_once.seconds / alone.seconds:8.3f}   {at_once.cpu_s / alone.cpu_s:8.3f}")


if __name__ == "__main__":
    main()
