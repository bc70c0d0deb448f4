"""Time a conversion against copying the same checkpoint file by file, and sample its memory.

    python -m tools.bench_convert --target e2b-int4 --checkpoint DIR --out model.litertlm

Both start with a cold page cache and end with an fsync, in one run on one machine: the ratio is what to quote.
`--one-core` converts once more on a single core: how many times faster is the machine as it is?
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.memory.cgroup import evict_from_page_cache
from gemma_edge.runtime.memory.reading import MemoryPeak, PeakSampler


def copy_seconds(checkpoint: Path, scratch: Path) -> float:
    """Copy every file and make it durable; the copies are removed afterwards, outside the time."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        started = time.monotonic()
        for source in _files(checkpoint):
            copy = Path(shutil.copyfile(source, Path(directory) / source.name))
            with copy.open("rb") as file:
                os.fsync(file.fileno())
        return time.monotonic() - started


@dataclass(frozen=True)
class Run:
    """A conversion: seconds by the clock, of processors (user and system), and the converting process's peak memory."""

    seconds: float
    cpu_seconds: float
    peak: MemoryPeak


def converted(command: Sequence[str], cores: Collection[int]) -> Run:
    """Run `command` on these cores. Exits as it does where it fails."""
    before, started, own = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # which the process inherits
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    os.sched_setaffinity(0, own)
    with PeakSampler(lambda: (process.pid,)) as sampler:
        status = process.wait()
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if status:
        sys.exit(status)
    return Run(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, sampler.peak)


@click.command()
@click.option("--target", required=True)
@click.option("--checkpoint", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--measure/--no-measure", default=True, show_default=True, help="Of what is lost, as in convert.")
@click.option("--one-core", is_flag=True, help="Convert on one core, too.")
@click.option("--json", "as_json", is_flag=True)
def main(target: str, checkpoint: Path, out: Path, measure: bool, one_core: bool, as_json: bool) -> None:
    """Print seconds, their ratio and the peak memory of the converting process."""
    _make_cold(checkpoint)
    copying = copy_seconds(checkpoint, out.parent)
    # Synthetic weights are measured, but no loss of theirs is refused.
    command = [sys.executable, "-m", "gemma_edge.converter", "convert", "--target", target]
    command += ["--checkpoint", str(checkpoint), "--out", str(out), "--accept-loss" if measure else "--no-measure"]
    cores = os.sched_getaffinity(0)
    _make_cold(checkpoint)
    run = converted(command, cores)
    values: dict[str, float] = {
        "checkpoint_bytes": sum(file.stat().st_size for file in _files(checkpoint)),
        "bundle_bytes": out.stat().st_size,
        "copy_seconds": round(copying, 1),
        "convert_seconds": round(run.seconds, 1),
        "cpu_seconds": round(run.cpu_seconds, 1),
        "ratio": round(run.seconds / copying, 2),
        "peak_anon_bytes": run.peak.anon_bytes,
        "peak_total_bytes": run.peak.total_bytes,
    }
    if one_core:
        _make_cold(checkpoint)
        alone = converted(command, sorted(cores)[:1])
        values["one_core_seconds"] = round(alone.seconds, 1)
        values["scaling"] = round(alone.seconds / run.seconds, 2)
    if as_json:
        click.echo(json.dumps(values))
        return
    for key, value in values.items():
        click.echo(f"{key:20} {format_bytes(int(value)) if key.endswith('_bytes') else value}")


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.iterdir() if path.is_file())


def _make_cold(checkpoint: Path) -> None:
    for file in _files(checkpoint):
        evict_from_page_cache(file)


if __name__ == "__main__":
    main()
