"""Measuring a bundle against a budget: the definition of profiles/FORMAT.md, carried out.

A run in a process of its own, then the same inside a memory cgroup of the budget's size with the model's files dropped
from the page cache, so that every page it reads is charged. Where cgroups are not permitted only the first part of the
definition can be tested, by sampling, and the report says so.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from gemma_edge.profiles.device import DeviceProfile
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.config import CPU
from gemma_edge.runtime.executors.open import files_of, plan_of
from gemma_edge.runtime.executors.placement import cache_folder, is_memory
from gemma_edge.runtime.formats.model import open_model
from gemma_edge.runtime.measure.bench import Benchmark, BenchmarkError
from gemma_edge.runtime.measure.budget_report import LEAST_SPEED, BudgetReport, Sample, Trace
from gemma_edge.runtime.memory.cgroup import CgroupUnavailable, MemoryCgroup, evict_from_page_cache
from gemma_edge.runtime.memory.reading import MemoryReading, PeakSampler, process_tree
from gemma_edge.runtime.packing.child import python_command
from gemma_edge.runtime.settings import default_threads


class Method(StrEnum):
    """How a budget is tested. AUTO: in a cgroup where that is permitted, otherwise by sampling."""

    AUTO = "auto"
    CGROUP = "cgroup"
    SAMPLING = "sampling"


def measure_budget(
    benchmark: Benchmark,
    profile: DeviceProfile,
    method: Method = Method.AUTO,
    runs: int = 1,
    least_speed: float = LEAST_SPEED,
) -> BudgetReport:
    """Plan and measure. Weights are packed before, which is done once for a device and not at every start.

    least_speed: of decode inside the cgroup, against decode without it; 0 leaves out the runs without.
    Raises CgroupUnavailable with Method.CGROUP, and BenchmarkError where the bundle does not even run without a limit.
    """
    if benchmark.executor != "litert":
        raise BenchmarkError(
            f"a budget is measured with our executor, found {benchmark.executor}; leave out --executor, or measure "
            "that program with tools/cgroup_run.py"
        )
    model = open_model(Path(benchmark.model_path))
    threads = getattr(benchmark.backend, "thread_count", None) or default_threads(profile)
    folder = cache_folder(benchmark.cache_dir, model.path, prefer_disk=True)
    is_anonymous = folder is None or is_memory(folder)
    plan = plan_of(model).footprint(benchmark.max_num_tokens, anonymous_weights=is_anonymous)
    files = files_of(model, threads, folder)
    request = replace(
        benchmark, backend=CPU(thread_count=threads), cache_dir=str(folder) if folder else benchmark.cache_dir
    )
    method, reason = permitted(method)
    free, limited = [], []
    for _ in range(runs):
        if method is Method.SAMPLING or least_speed:
            free.append(trace(request))
            if free[-1].error is not None:
                raise BenchmarkError(f"the benchmark's process failed: {free[-1].error}")
        if method is Method.CGROUP:
            for path in files:
                evict_from_page_cache(path)
            with MemoryCgroup(profile.budget_bytes) as cgroup:
                limited.append(trace(request, cgroup))
    return BudgetReport(model.path.name, profile, plan, reason, _typical(free), _typical(limited), least_speed)


def permitted(method: Method) -> tuple[Method, str]:
    """The method to use, and why it is not a cgroup ("" where it is one)."""
    if method is Method.SAMPLING:
        return method, "asked for"
    try:
        with MemoryCgroup(1 << 30):
            return Method.CGROUP, ""
    except CgroupUnavailable as error:
        if method is Method.CGROUP:
            raise
        return Method.SAMPLING, str(error)


def _typical(traces: Sequence[Trace]) -> Trace | None:
    """The trace that failed or had the highest peak, with the best speed of all; None without traces.

    The best, because what disturbs a run from outside can only slow it down.
    """
    if not traces:
        return None
    worst = max(traces, key=lambda item: (item.error is not None, item.hard_bytes))
    return replace(worst, decode_tokens_per_s=max(item.decode_tokens_per_s for item in traces))


def trace(benchmark: Benchmark, cgroup: MemoryCgroup | None = None) -> Trace:
    """Run in a new process, inside `cgroup` if given, and watch its memory from here."""
    command = python_command("gemma_edge.runtime.measure.budget_run")
    samples: list[Sample] = []
    started_s = time.monotonic()

    def note(reading: MemoryReading) -> None:
        samples.append(Sample(time.monotonic() - started_s, reading.hard_bytes, reading.file_bytes))

    with (
        subprocess.Popen(
            cgroup.command(command) if cgroup else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child,
        PeakSampler(cgroup.pids if cgroup else lambda: process_tree(child.pid), on_sample=note) as sampler,
    ):
        output, errors = child.communicate(json.dumps(_request(benchmark)))
    error = _failure(child.returncode, errors, cgroup)
    answer: dict[str, Any] = json.loads(output) if error is None else {}
    return Trace(
        decode_tokens_per_s=answer.get("decode_tokens_per_s", 0.0),
        hard_bytes=sampler.peak.hard_bytes,
        file_bytes=sampler.peak.file_bytes,
        charge_bytes=cgroup.peak_bytes() if cgroup else None,
        reread_bytes=cgroup.reread_bytes() if cgroup else None,
        error=error,
        parts=answer.get("parts", {}),
        samples=tuple(samples),
        phase_s={name: ended_s - started_s for name, ended_s in answer.get("ended_s", {}).items()},
    )


def _request(benchmark: Benchmark) -> Mapping[str, object]:
    return {**asdict(benchmark), "backend": {"thread_count": getattr(benchmark.backend, "thread_count", None)}}


def _failure(status: int, errors: str, cgroup: MemoryCgroup | None) -> str | None:
    """Why the process did not complete; None where it did."""
    if cgroup is not None and cgroup.oom_kills():
        return "the kernel killed it for memory"
    if status == 0:
        return None
    return (errors.strip().rpartition("\n")[2] or f"exit status {status}").removeprefix("error: ")


def _child() -> None:
    """Runs the benchmark on standard input and writes what it saw of itself to standard output, both JSON."""
    request = json.load(sys.stdin)
    try:
        info, memory, ended_s = Benchmark(**{**request, "backend": CPU(**request["backend"])}).run_and_look()
    except (GemmaEdgeError, MemoryError) as error:
        sys.exit(f"error: {error or 'out of memory'}")
    anonymous = {part.name: part.anon_bytes for part in memory.anonymous.parts}
    answer = {
        "decode_tokens_per_s": info.last_decode_tokens_per_second,
        "parts": {**anonymous, **memory.mapped_bytes},
        "ended_s": dict(ended_s),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _child()
