"""Run a bundle in Google's engine: load, prefill, decode; print speeds and this process's memory.

    python -m tools.bench_litert_lm model.litertlm
    python -m tools.cgroup_run --limit "2 GiB" --cold model.litertlm -- python -m tools.bench_litert_lm model.litertlm

The weight cache is kept beside the bundle. Run it twice: the first start builds the cache, later ones map it.
"""

import json
from dataclasses import asdict
from pathlib import Path

import click
import litert_lm

from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.memory.reading import PeakSampler

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune "
"""Text, not the padding of a short prompt: after a run of zeros, random weights may put a stop token first."""


@click.command()
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--prefill", default=256, show_default=True)
@click.option("--decode", default=64, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(bundle: Path, prefill: int, decode: int, threads: int, as_json: bool) -> None:
    """Print what LiteRT-LM's own benchmark measures, and peak RSS, anonymous and file-backed apart."""
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    benchmark = litert_lm.Benchmark(
        str(bundle),
        litert_lm.Backend.CPU(thread_count=threads),
        prefill_tokens=prefill,
        decode_tokens=decode,
        cache_dir=str(bundle.parent),
        prompt=TEXT * prefill,  # cut to `prefill` tokens
    )
    with PeakSampler() as sampler:
        info = benchmark.run()
    values = asdict(info) | {
        "peak_anon_bytes": sampler.peak.anon_bytes,
        "peak_file_bytes": sampler.peak.file_bytes,
    }
    if as_json:
        click.echo(json.dumps(values))
        return
    for key, value in values.items():
        click.echo(f"{key:34} {format_bytes(value) if key.endswith('_bytes') else round(value, 2)}")


if __name__ == "__main__":
    main()
