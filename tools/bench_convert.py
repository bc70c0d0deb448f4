"""Time a conversion against copying the same checkpoint file by file, and sample its memory.

    python -m tools.bench_convert --target e2b-int4 --checkpoint DIR --out model.litertlm

Both start with a cold page cache and end with an fsync, in one run on one machine: the ratio is what to quote.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.memory.cgroup import evict_from_page_cache
from gemma_edge.runtime.memory.reading import PeakSampler


def copy_seconds(checkpoint: Path, scratch: Path) -> float:
    """Copy every file and make it durable; the copies are removed afterwards, outside the time."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        started = time.monotonic()
        for source in _files(checkpoint):
            copy = Path(shutil.copyfile(source, Path(directory) / source.name))
            with copy.open("rb") as file:
                os.fsync(file.fileno())
        return time.monotonic() - started


@click.command()
@click.option("--target", required=True)
@click.option("--checkpoint", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True)
def main(target: str, checkpoint: Path, out: Path, as_json: bool) -> None:
    """Print seconds, their ratio and the peak memory of the converting process."""
    _make_cold(checkpoint)
    copying = copy_seconds(checkpoint, out.parent)
    _make_cold(checkpoint)
    command = [sys.executable, "-m", "gemma_edge.converter", "convert", "--target", target]
    started = time.monotonic()
    process = subprocess.Popen([*command, "--checkpoint", checkpoint, "--out", out], stdout=subprocess.DEVNULL)
    with PeakSampler(lambda: (process.pid,)) as sampler:
        status = process.wait()
    converting = time.monotonic() - started
    if status:
        sys.exit(status)
    values: dict[str, float] = {
        "checkpoint_bytes": sum(file.stat().st_size for file in _files(checkpoint)),
        "bundle_bytes": out.stat().st_size,
        "copy_seconds": round(copying, 1),
        "convert_seconds": round(converting, 1),
        "ratio": round(converting / copying, 2),
        "peak_anon_bytes": sampler.peak.anon_bytes,
        "peak_total_bytes": sampler.peak.total_bytes,
    }
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
