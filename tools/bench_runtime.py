"""Our executor against Google's engine on one bundle: start, prefill, decode and memory, run by run in turns.

    python -m tools.bench_runtime model.litertlm --rounds 5
    python -m tools.bench_runtime model --rounds 5 --beside ../before/.venv/bin/python

The second form compares with our executor in another checkout, such as one from before a change; it takes ONNX
directories as well. `--beside-bundle` gives the other one a bundle of its own, such as its own converter wrote.

Each run is a process of its own; the two take turns, so that a busy machine slows both. A first round that is not
counted packs the weights of both. The ratio is what to quote.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.measure.bench import Benchmark, measure
from tools.bench_litert_lm import TEXT

MIB = 1 << 20
FIGURES = ("init s", "prefill tok/s", "decode tok/s", "anon MiB", "mapped MiB")


def ours(bundle: Path, prefill: int, decode: int, threads: int, python: str = sys.executable) -> tuple[float, ...]:
    """One run of our executor; the figures are FIGURES."""
    benchmark = Benchmark(str(bundle), Backend.CPU(thread_count=threads), prefill, decode, prompt=TEXT * prefill)
    run = measure(benchmark, python)
    speeds = (run.init_s, run.prefill_tokens_per_s, run.decode_tokens_per_s)
    return (*speeds, run.anon_bytes / MIB, run.file_bytes / MIB)


def litert_lm(bundle: Path, prefill: int, decode: int, threads: int) -> tuple[float, ...]:
    """One run of litert_lm's own benchmark."""
    command = [sys.executable, "-m", "tools.bench_litert_lm", str(bundle), "--json"]
    options = ["--prefill", str(prefill), "--decode", str(decode), "--threads", str(threads)]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    run = json.loads(done.stdout)
    speeds = ("init_time_in_second", "last_prefill_tokens_per_second", "last_decode_tokens_per_second")
    return (*(run[name] for name in speeds), run["peak_anon_bytes"] / MIB, run["peak_file_bytes"] / MIB)


def table(our_runs: Sequence[Sequence[float]], their_runs: Sequence[Sequence[float]], theirs: str) -> str:
    """Medians of each figure, and ours over theirs."""
    lines = [f"{'':16}{'ours':>10}{theirs:>12}{'ratio':>8}"]
    for index, name in enumerate(FIGURES):
        our, their = (statistics.median(run[index] for run in runs) for runs in (our_runs, their_runs))
        lines.append(f"{name:16}{our:10.2f}{their:12.2f}{our / their:8.3f}")
    return "\n".join(lines)


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--prefill", default=256, show_default=True)
@click.option("--decode", default=64, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--beside", help="The interpreter of another checkout, instead of litert_lm.")
@click.option("--beside-bundle", type=click.Path(exists=True, path_type=Path), help="What the other runs.  [BUNDLE]")
def main(
    bundle: Path, prefill: int, decode: int, threads: int, rounds: int, beside: str | None, beside_bundle: Path | None
) -> None:
    """Print the medians of both and their ratio."""
    request = (prefill, decode, threads)
    other = litert_lm if beside is None else partial(ours, python=beside)
    theirs = beside_bundle or bundle
    runs = [(ours(bundle, *request), other(theirs, *request)) for _ in range(rounds + 1)]
    our_runs, their_runs = zip(*runs[1:], strict=True)
    click.echo(table(our_runs, their_runs, "litert_lm" if beside is None else "beside"))


if __name__ == "__main__":
    main()
