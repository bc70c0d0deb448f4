"""Measuring a bundle: time to the first token, prefill and decode speed, memory.

Each run is a process of its own, so that its memory is its own and its start is a real one. Decoding ignores stop
tokens, so every run does the same work.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.paths import user_path
from gemma_edge.runtime.chat.figures import BenchmarkInfo
from gemma_edge.runtime.config import CPU, Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.engine_memory import EngineMemory
from gemma_edge.runtime.executors.litert.weight_cache import cache_opened
from gemma_edge.runtime.kv.generate import Decoding, StopTokens
from gemma_edge.runtime.litert_lm_engine import check_cpu
from gemma_edge.runtime.memory.reading import PeakSampler, process_tree
from gemma_edge.runtime.packing.child import python_command
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig

EXECUTORS = ("litert", "litert-lm")

_SAMPLED_MS = 50
"""How often memory is read. Every 10 ms slowed a step of Gemma 3 1B by 5 % on two cores: its processes are looked for
each time."""


class BenchmarkError(GemmaEdgeError):
    """The benchmark cannot run as asked, or its process failed."""


@dataclass(frozen=True)
class Benchmark:
    """One run, greedy, in this process. Field names and defaults are litert_lm's.

    prompt: tokenized, then cut or filled up with token 0 to `prefill_tokens`.
    executor: "litert", or "litert-lm" for Google's engine, with its own benchmark.
    """

    model_path: str
    backend: Backend
    prefill_tokens: int = 256
    decode_tokens: int = 256
    max_num_tokens: int | None = None
    cache_dir: str | None = None
    prompt: str = "How are you"
    executor: str = "litert"

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise BenchmarkError(f"executor is {self.executor!r}, expected {' or '.join(EXECUTORS)}; choose one")
        for name in ("prefill_tokens", "decode_tokens"):
            if getattr(self, name) < 1:
                raise BenchmarkError(f"{name} is {getattr(self, name)}, expected at least 1; ask for more")

    def run(self) -> BenchmarkInfo:
        """Loads the bundle and runs once. Raises ContextOverflowError, and what Engine raises."""
        if self.executor == "litert-lm":
            return self._run_litert_lm()
        return self.run_and_look()[0]

    def run_and_look(self) -> tuple[BenchmarkInfo, EngineMemory, Mapping[str, float]]:
        """One run of our own executor: its figures, its memory at the end, and when each phase ended.

        The times are `time.monotonic` seconds of "load", "prefill" and "decode".
        """
        with Engine(
            self.model_path, self.backend, max_num_tokens=self.max_num_tokens, cache_dir=self.cache_dir
        ) as engine:
            ended_s = {"load": time.monotonic()}
            token_ids = [*engine.text_model.start_tokens, *engine.tokenize(self.prompt)][: self.prefill_tokens]
            sequence = engine.new_sequence()
            started = time.perf_counter()
            sequence.append([*token_ids, *[0] * (self.prefill_tokens - len(token_ids))])
            sequence.prefill()
            prefill_s = time.perf_counter() - started
            ended_s["prefill"] = time.monotonic()
            greedy = Decoding(Sampler(SamplerConfig(top_k=1)), StopTokens([]), max_output_tokens=self.decode_tokens)
            turn = sequence.reply([], greedy)
            drawn = sum(1 for _ in turn)
            ended_s["decode"] = time.monotonic()
            info = replace(
                BenchmarkInfo.of(engine.init_s, turn.timing),
                time_to_first_token_in_second=prefill_s + turn.timing.time_to_first_token_s,
                last_prefill_token_count=self.prefill_tokens,
                last_prefill_tokens_per_second=self.prefill_tokens / prefill_s,
                last_decode_token_count=drawn,
            )
            return info, engine.memory(), ended_s

    def _run_litert_lm(self) -> BenchmarkInfo:
        check_cpu()
        import litert_lm

        litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
        settings = {name: value for name, value in asdict(self).items() if name not in ("backend", "executor")}
        cpu = litert_lm.Backend.CPU(thread_count=getattr(self.backend, "thread_count", None))
        try:
            with ExitStack() as stack:
                if self.cache_dir is not None and not self.cache_dir.startswith(":"):
                    folder = stack.enter_context(cache_opened(user_path(self.cache_dir)))
                    settings["cache_dir"] = str(folder.all_own())
                info = litert_lm.Benchmark(backend=cpu, **settings).run()
        except RuntimeError as error:
            raise BenchmarkError(f"litert_lm: {error}; see its log on stderr for the cause") from error
        return BenchmarkInfo(**asdict(info))


@dataclass(frozen=True)
class Measurement:
    """What one run took, or the medians of several. Bytes are peaks of the whole process, Python included."""

    init_s: float
    time_to_first_token_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    anon_bytes: int
    file_bytes: int
    total_bytes: int


def measure(benchmark: Benchmark, python: str | None = None) -> Measurement:
    """One run in a new process. python: an interpreter, such as one that runs another version of this package.

    Raises BenchmarkError with the process's own error; ChildError where there is no Python to start.
    """
    request = {**asdict(benchmark), "backend": {"thread_count": getattr(benchmark.backend, "thread_count", None)}}
    with (
        subprocess.Popen(
            python_command("gemma_edge.runtime.measure.bench", python=python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child,
        PeakSampler(lambda: process_tree(child.pid), interval_ms=_SAMPLED_MS) as sampler,
    ):
        output, errors = child.communicate(json.dumps(request))
    if child.returncode:
        reason = errors.strip().rpartition("\n")[2] or f"exit status {child.returncode}"
        raise BenchmarkError(f"the benchmark's process failed: {reason.removeprefix('error: ')}")
    info = BenchmarkInfo(**json.loads(output))
    return Measurement(
        info.init_time_in_second,
        info.time_to_first_token_in_second,
        info.last_prefill_tokens_per_second,
        info.last_decode_tokens_per_second,
        sampler.peak.anon_bytes,
        sampler.peak.file_bytes,
        sampler.peak.total_bytes,
    )


def medians(runs: Sequence[Measurement]) -> Measurement:
    """The median of each figure on its own."""
    return Measurement(*(statistics.median(getattr(run, field.name) for run in runs) for field in fields(Measurement)))


def _child() -> None:
    """Runs the benchmark on standard input and writes its figures to standard output, both JSON."""
    request = json.load(sys.stdin)
    try:
        info = Benchmark(**{**request, "backend": CPU(**request["backend"])}).run()
    except GemmaEdgeError as error:
        sys.exit(f"error: {error}")
    json.dump(asdict(info), sys.stdout)


if __name__ == "__main__":
    _child()
