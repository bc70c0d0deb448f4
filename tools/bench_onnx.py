"""Decode the same model in LiteRT and in ONNX Runtime, step by step in turns, beside what memory bandwidth allows.

    python -m tools.bench_onnx e2b.litertlm e2b-onnx --cache-dir cache --threads 2

In turns, because a machine's speed changes from minute to minute: both see the same machine. Medians over the steps.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np

from gemma_edge.runtime.executors.base import KvSlot
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.executors.onnx.decoder import OnnxDecoder
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory

CONTEXT_TOKENS = 4096
PROMPT = list(range(5, 133))


@click.command()
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--cache-dir", required=True, type=click.Path(path_type=Path))
@click.option("--threads", default=2, show_default=True)
@click.option("--steps", default=32, show_default=True)
def main(bundle: Path, directory: Path, cache_dir: Path, threads: int, steps: int) -> None:
    """Print tokens per second of both, their ratio, and the bound of each."""
    sections, opened = DecoderSections.of(Bundle.open(bundle)), OnnxDirectory.open(directory)
    read_bytes = {"LiteRT": sections.decoder.nbytes, "ONNX Runtime": opened.decoder_bytes}
    slots: dict[str, KvSlot] = {
        "LiteRT": LitertDecoder(sections, threads, cache_dir).new_slot(),
        "ONNX Runtime": OnnxDecoder(opened, threads, cache_dir).new_slot(CONTEXT_TOKENS),
    }
    for slot in slots.values():
        slot.prefill(PROMPT)
        slot.decode(PROMPT[0])
    seconds: dict[str, list[float]] = {name: [] for name in slots}
    for step in range(steps):
        for name, slot in slots.items():
            started = time.perf_counter()
            slot.decode(PROMPT[step % len(PROMPT)])
            seconds[name].append(time.perf_counter() - started)
    bandwidth = read_bytes_per_s(threads)
    speeds = {name: 1 / statistics.median(times) for name, times in seconds.items()}
    for name, speed in speeds.items():
        bound = bandwidth / read_bytes[name]
        click.echo(
            f"{name:13} {speed:6.2f} tok/s, fastest step {1 / min(seconds[name]):6.2f}; "
            f"bound {bound:6.2f} ({read_bytes[name] / 1e9:.2f} GB a token at {bandwidth / 1e9:.1f} GB/s)"
        )
    click.echo(f"ONNX Runtime / LiteRT {speeds['ONNX Runtime'] / speeds['LiteRT']:.2f}")


def read_bytes_per_s(threads: int) -> float:
    """What this machine reads from memory now: the best of three passes over 256 MB a thread."""
    parts = [np.ones(64 << 20, np.float32) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            started = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
