"""Convert many tiny fine-tunes in one budget of memory, kill at random points, and compare with single conversions.

    python -m tools.farm_proof --jobs 200 --kills 50 --memory 1GiB --seed 1
    python -m tools.farm_proof --jobs 200 --kills 50 --memory 1GiB --snakemake

The fine-tunes are the two trained fixtures with some last bits of their weights turned. A kill takes a process that
converts, or the whole farm, which is then started again. What was recorded as done before a kill is never written
again; in the end every output is there, equal to the byte to what `convert` alone makes of it, with nothing beside it;
and one more run does nothing.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click

from gemma_edge.converter.batch.joblist import Job, read_list
from gemma_edge.converter.batch.record import record_path
from gemma_edge.converter.checkpoint.safetensors_file import read_header
from gemma_edge.converter.convert import convert
from gemma_edge.profiles.sizes import format_bytes, parse_size
from gemma_edge.runtime.memory.reading import PeakSampler, process_tree

FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "fixtures"
BASES = ("tiny-gemma3", "tiny-gemma3n")
TURNED_BITS = 200
CORES = 2
LIMIT_S = 3600.0


class WrongError(Exception):
    """What the farm did, and should not have."""


def fine_tune(base: Path, target: Path, seed: int) -> None:
    """A copy whose bfloat16 weights differ in the last bit of some: no value becomes infinite, or a NaN."""
    shutil.copytree(base, target)
    rng = random.Random(seed)
    shard = target / "model.safetensors"
    content = bytearray(shard.read_bytes())
    tensors = list(read_header(shard).values())
    for _ in range(TURNED_BITS):
        tensor = rng.choice(tensors)
        content[tensor.offset + 2 * rng.randrange(tensor.nbytes // 2)] ^= 1
    shard.write_bytes(content)


def write_list(folder: Path, count: int, seed: int) -> Path:
    """The fine-tunes and a list of them, measured like any conversion."""
    lines = ["[defaults]", 'target = "custom-int4"', "context = 256", "prefill = [8, 32]", ""]
    for i in range(count):
        fine_tune(FIXTURES / BASES[i % len(BASES)], folder / "fine-tunes" / f"{i:03}", seed * 1000 + i)
        lines += ["[[job]]", f'checkpoint = "fine-tunes/{i:03}"', f'out = "bundles/{i:03}.litertlm"', ""]
    (folder / "bundles").mkdir()
    (folder / "list.toml").write_text("\n".join(lines))
    return folder / "list.toml"


def single_digests(jobs: tuple[Job, ...], folder: Path) -> dict[str, str]:
    """Of what `convert` makes of each job alone, in another folder."""
    folder.mkdir()
    digests = {}
    for job in jobs:
        out = folder / job.out.name
        convert(out=out, **{**job.request, "checkpoint": str(job.files["checkpoint"])})
        digests[job.name] = hashlib.sha256(out.read_bytes()).hexdigest()
        out.unlink()
    return digests


@dataclass
class Farm:
    """A way to work on a list: a command, and what to do before it is started again.

    end: kills it, given its process and group: alone where those that convert end by themselves then.
    """

    command: list[str]
    folder: Path
    end: Callable[[int, int], None]
    unlock: list[str] = field(default_factory=list)
    hard_bytes: int = 0
    total_bytes: int = 0

    def run(self, pause_s: Callable[[], float], kill: Callable[[int], None]) -> int:
        """Until it ends; its status. kill: called after each pause with its process."""
        if self.unlock:
            subprocess.run(self.unlock, cwd=self.folder, capture_output=True, check=False)
        with (self.folder / "farm.log").open("ab") as log:
            process = subprocess.Popen(
                self.command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        started = time.monotonic()
        with PeakSampler(lambda: process_tree(process.pid), interval_ms=50) as sampler:
            while True:
                try:
                    status = process.wait(pause_s())
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() - started > LIMIT_S:
                        os.killpg(process.pid, signal.SIGKILL)
                        raise WrongError(f"hangs: not done in {LIMIT_S:.0f} s") from None
                    kill(process.pid)
        self.hard_bytes = max(self.hard_bytes, sampler.peak.hard_bytes)
        self.total_bytes = max(self.total_bytes, sampler.peak.total_bytes)
        return status


@dataclass
class Killer:
    """Kills so many times, at random. end: see Farm."""

    rng: random.Random
    left: int
    end: Callable[[int, int], None]
    workers: int = 0
    farms: int = 0

    def pause_s(self, mean_s: float) -> float:
        """Until the next kill."""
        return self.rng.uniform(0, 2 * mean_s) if self.left else 60.0

    def kill(self, pid: int) -> None:
        """One process that converts, or the farm."""
        if not self.left:
            return
        self.left -= 1
        children = [child for child in process_tree(pid) if child != pid and _is_converting(child)]
        if children and self.rng.random() < 0.7:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(children), signal.SIGKILL)
            self.workers += 1
        else:
            self.end(pid, signal.SIGKILL)
            self.farms += 1


def _is_converting(pid: int) -> bool:
    try:
        return b"gemma_edge.converter.batch.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def recorded(jobs: tuple[Job, ...]) -> dict[str, tuple[int, int]]:
    """Of every job that has a record: which file its output is."""
    done = {}
    for job in jobs:
        if record_path(job.out).exists():
            status = job.out.stat()
            done[job.name] = (status.st_ino, status.st_mtime_ns)
    return done


def settle(jobs: tuple[Job, ...], folder: Path) -> None:
    """Processes of a killed farm end by themselves, soon."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        busy = [p for p in Path("/proc").iterdir() if p.name.isdigit() and _is_converting(int(p.name))]
        if not any(str(folder).encode() in _command_line(p) for p in busy):
            return
        time.sleep(0.05)
    raise WrongError(f"a process goes on without its farm of {len(jobs)} jobs")


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def prove(farm: Farm, jobs: tuple[Job, ...], digests: dict[str, str], kills: int, seed: int, mean_s: float) -> str:
    """One line of what was seen. Raises WrongError."""
    killer = Killer(random.Random(seed), kills, farm.end)
    done: dict[str, tuple[int, int]] = {}
    runs, started = 0, time.monotonic()
    while True:
        runs += 1
        status = farm.run(lambda: killer.pause_s(mean_s), killer.kill)
        settle(jobs, farm.folder)
        now = recorded(jobs)
        again = [name for name, file in done.items() if now.get(name) != file]
        if again:
            raise WrongError(f"run {runs} wrote {again[0]} again, and {len(again) - 1} more, which were done")
        done = now
        if status == 0:
            break
        if runs > kills + 2:
            raise WrongError(f"status {status} after {runs} runs; see farm.log")
    wrong = [job.name for job in jobs if hashlib.sha256(job.out.read_bytes()).hexdigest() != digests[job.name]]
    if wrong:
        raise WrongError(f"{wrong[0]} and {len(wrong) - 1} more have other bytes than a single conversion")
    expected = {f"{job.out.name}{suffix}" for job in jobs for suffix in ("", ".json", ".job.json")}
    if found := {path.name for path in jobs[0].out.parent.iterdir()} ^ expected:
        raise WrongError(f"{sorted(found)[:3]} are left, or missing")
    seconds = time.monotonic() - started
    if farm.run(lambda: 60.0, lambda _pid: None) != 0 or recorded(jobs) != done:
        raise WrongError("one more run did something")
    return (
        f"{len(jobs)} jobs, {killer.workers} workers and {killer.farms} farms killed, {runs} runs, {seconds:.0f} s, "
        f"peak of all processes together: {format_bytes(farm.hard_bytes)} anonymous, {format_bytes(farm.total_bytes)} "
        "RSS with shared pages counted for each"
    )


def batch_farm(listed: Path, memory: str) -> Farm:
    """`gemma-edge batch`."""
    command = [sys.executable, "-m", "gemma_edge.converter", "batch", listed.name, "--jobs", str(CORES)]
    return Farm([*command, "--memory", memory, "--json"], listed.parent, os.kill)


def snakemake_farm(listed: Path, memory: str) -> Farm:
    """Its local executor."""
    workflow = [sys.executable, "-m", "gemma_edge.converter", "batch", listed.name, "--print-snakefile"]
    printed = subprocess.run(workflow, cwd=listed.parent, capture_output=True, check=True)
    (listed.parent / "Snakefile").write_bytes(printed.stdout)
    command = [sys.executable, "-m", "snakemake", "--config", f"list={listed.name}", "--cores", str(CORES)]
    resources = ["--resources", f"mem_mb={parse_size(memory) // 10**6}", "--rerun-incomplete", "--keep-going"]
    return Farm([*command, *resources], listed.parent, os.killpg, [*command, "--unlock"])


@click.command(help=__doc__)
@click.option("--jobs", "count", default=200, show_default=True)
@click.option("--kills", default=50, show_default=True)
@click.option("--memory", default="1GiB", show_default=True, help="For everything together.")
@click.option("--mean", "mean_s", default=3.0, show_default=True, help="Seconds between two kills.")
@click.option("--seed", default=1, show_default=True)
@click.option("--snakemake", is_flag=True, help="Through Snakemake instead of `gemma-edge batch`.")
def main(count: int, kills: int, memory: str, mean_s: float, seed: int, snakemake: bool) -> None:
    """Prints one line; exit status 1 where something is wrong."""
    try:
        with tempfile.TemporaryDirectory(prefix="farm-proof-") as work:
            folder = Path(work) / "farm"
            folder.mkdir()
            listed = write_list(folder, count, seed)
            jobs = read_list(listed)
            digests = single_digests(jobs, Path(work) / "single")
            farm = (snakemake_farm if snakemake else batch_farm)(listed, memory)
            print(json.dumps({"single_conversions": len(set(digests.values()))}), flush=True)
            print(prove(farm, jobs, digests, kills, seed, mean_s))
            if farm.hard_bytes > parse_size(memory):
                raise WrongError(f"{format_bytes(farm.hard_bytes)} of memory, expected at most {memory}")
    except WrongError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
