"""Run a command inside a memory cgroup and report what it used.

    python -m tools.cgroup_run --limit "2 GiB" --cold model.litertlm -- gemma-edge run model.litertlm --prompt Hello

Needs root. Exits with the command's status; 137 when the kernel killed it, or a child of it, for memory.
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.sizes import format_bytes, parse_size
from gemma_edge.runtime.memory.cgroup import MemoryCgroup, evict_from_page_cache
from gemma_edge.runtime.memory.reading import PeakSampler

KILLED_STATUS = 128 + signal.SIGKILL  # also when the command outlives a child that the kernel killed


@dataclass(frozen=True)
class CgroupReport:
    """What the command did to its memory. Peaks of `rss_*` are sampled, `peak_bytes` is the kernel's own."""

    limit_bytes: int
    peak_bytes: int | None  # page cache charged; None where the kernel keeps none
    rss_hard_bytes: int  # RssAnon + RssShmem + swap, all processes together
    rss_anon_bytes: int
    rss_file_bytes: int
    samples: int
    oom_kills: int
    exit_code: int  # as a shell reports it: 128 + signal
    wall_s: float

    @property
    def completed(self) -> bool:
        return self.exit_code == 0 and self.oom_kills == 0

    def lines(self) -> str:
        peak = "not kept by this kernel" if self.peak_bytes is None else format_bytes(self.peak_bytes)
        return "\n".join(
            (
                f"limit            {format_bytes(self.limit_bytes)}",
                f"peak charge      {peak} (page cache included)",
                f"peak anonymous   {format_bytes(self.rss_hard_bytes)} (+ shared and swap, {self.samples} samples)",
                f"peak file-backed {format_bytes(self.rss_file_bytes)}",
                f"killed by kernel {self.oom_kills}",
                f"exit status      {self.exit_code} after {self.wall_s:.1f} s",
            )
        )


def run_in_cgroup(
    command: list[str], limit_bytes: int, cold: tuple[Path, ...] = (), interval_ms: float = 10
) -> CgroupReport:
    """Run `command` to its end with at most `limit_bytes` of memory and no swap.

    The files in `cold` are dropped from the page cache first, so that reading them is charged. Standard streams are
    passed through. Raises CgroupUnavailable without the right to make a cgroup.
    """
    for path in cold:
        evict_from_page_cache(path)
    with MemoryCgroup(limit_bytes) as cgroup:
        started_s = time.monotonic()
        process = subprocess.Popen(cgroup.command(command))
        with PeakSampler(cgroup.pids, interval_ms) as sampler:
            code = process.wait()
        wall_s = time.monotonic() - started_s
        return CgroupReport(
            limit_bytes=limit_bytes,
            peak_bytes=cgroup.peak_bytes(),
            rss_hard_bytes=sampler.peak.hard_bytes,
            rss_anon_bytes=sampler.peak.anon_bytes,
            rss_file_bytes=sampler.peak.file_bytes,
            samples=sampler.peak.samples,
            oom_kills=cgroup.oom_kills(),
            exit_code=code if code >= 0 else 128 - code,
            wall_s=wall_s,
        )


def _size(_context: click.Context, _option: click.Parameter, value: str) -> int:
    try:
        size_bytes = parse_size(value)
    except ValueError:
        size_bytes = 0
    if size_bytes <= 0:
        raise click.BadParameter(f'found {value}; expected a size such as "2 GiB"')
    return size_bytes


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--limit", "limit_bytes", callback=_size, required=True, help='Memory of the cgroup, such as "2 GiB".')
@click.option(
    "--cold",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Drop this file from the page cache first, so that its pages are charged. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(limit_bytes: int, cold: tuple[Path, ...], as_json: bool, command: tuple[str, ...]) -> None:
    """Run COMMAND in a memory cgroup; the report goes to standard error."""
    try:
        report = run_in_cgroup(list(command), limit_bytes, cold)
    except GemmaEdgeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    click.echo(json.dumps(asdict(report)) if as_json else report.lines(), err=True)
    sys.exit(report.exit_code or (KILLED_STATUS if report.oom_kills else 0))


if __name__ == "__main__":
    main()
