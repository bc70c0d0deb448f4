"""One model in every engine on this machine, run by run in turns: the speeds, starts and memory that README may quote.

    python -m tools.bench_peers --litertlm e2b.litertlm --onnx e2b-onnx --gguf e2b-q4_0.gguf --rounds 5

Bundles run in our executor and in litert_lm, ONNX directories in ours and, where it knows the family, in
onnxruntime-genai, GGUF files in llama.cpp (`pip install llama-cpp-python`). --litert-torch takes the bundle that
Google's converter makes of the same checkpoint, in an environment of its own, and runs it in litert_lm:

    litert-torch export_hf CHECKPOINT OUT --prefill_lengths='[256]' --cache_length=4096 --externalize_embedder=True \\
        --quantization_recipe=dynamic_wi4_afp32

Each run is a process of its own whose memory its parent samples. The engines take turns, so that a busy machine slows
all of them; a first round packs the weights and is shown only as the first start. Medians, and ratios to our executor
with the first file given.

Bytes a token are those of the decoder in the file, and the bound is what this machine reads in a second, measured
between the rounds.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.formats.model import open_model
from gemma_edge.runtime.measure.bench import Benchmark
from gemma_edge.runtime.memory.reading import PeakSampler, process_tree
from tools.bench_litert_lm import TEXT
from tools.bench_onnx import read_bytes_per_s

MIB: Final = 1 << 20


@dataclass(frozen=True)
class Work:
    """What one run does. context_tokens: room for both, where an engine chooses it."""

    path: str
    prefill_tokens: int
    decode_tokens: int
    threads: int

    @property
    def context_tokens(self) -> int:
        return self.prefill_tokens + self.decode_tokens + 8


@dataclass(frozen=True)
class Speeds:
    """What an engine says of itself."""

    start_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Run(Speeds):
    """With the peaks of its process, Python included."""

    anon_bytes: int
    file_bytes: int


def ours(work: Work, executor: str = "litert") -> Speeds:
    """Our executor of either format."""
    benchmark = Benchmark(
        work.path,
        Backend.CPU(thread_count=work.threads),
        work.prefill_tokens,
        work.decode_tokens,
        prompt=TEXT * work.prefill_tokens,  # cut to so many tokens
        executor=executor,
    )
    info = benchmark.run()
    if info.last_decode_token_count < work.decode_tokens:
        raise click.ClickException(
            f"decoded {info.last_decode_token_count} tokens of {work.decode_tokens}; see its log for why it ended"
        )
    return Speeds(info.init_time_in_second, info.last_prefill_tokens_per_second, info.last_decode_tokens_per_second)


def litert_lm(work: Work) -> Speeds:
    """Google's engine, by its own benchmark."""
    return ours(work, "litert-lm")


def llama_cpp(work: Work) -> Speeds:
    """llama.cpp, with float16 keys and values as it comes."""
    import llama_cpp  # type: ignore[import-not-found]  # built by whoever runs this

    started = time.perf_counter()
    llama = llama_cpp.Llama(
        work.path, n_ctx=work.context_tokens, n_batch=512, n_threads=work.threads,
        n_threads_batch=work.threads, verbose=False,
    )  # fmt: skip
    start_s = time.perf_counter() - started
    ids = llama.tokenize((TEXT * work.prefill_tokens).encode())[: work.prefill_tokens]

    def step() -> None:
        llama.eval([int(llama.sample(temp=0.0))])

    return _timed(work, start_s, lambda: llama.eval(ids), step)


def genai(work: Work) -> Speeds:
    """onnxruntime-genai, on our directory."""
    import onnxruntime_genai

    started = time.perf_counter()
    config = onnxruntime_genai.Config(work.path)
    model = onnxruntime_genai.Model(config)
    start_s = time.perf_counter() - started
    ids = onnxruntime_genai.Tokenizer(model).encode(TEXT * work.prefill_tokens)[: work.prefill_tokens]
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=work.context_tokens, min_length=work.context_tokens, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    return _timed(work, start_s, lambda: generator.append_tokens(ids), generator.generate_next_token)


def _timed(work: Work, start_s: float, prefill: Callable[[], None], step: Callable[[], None]) -> Speeds:
    started = time.perf_counter()
    prefill()
    filled = time.perf_counter()
    for _ in range(work.decode_tokens):
        step()
    ended = time.perf_counter()
    return Speeds(start_s, work.prefill_tokens / (filled - started), work.decode_tokens / (ended - filled))


ENGINES: Final[Mapping[str, tuple[str, Callable[[Work], Speeds]]]] = {
    "ours, LiteRT": ("litertlm", ours),
    "litert_lm": ("litertlm", litert_lm),
    "litert_lm with litert-torch's bundle": ("litert_torch", litert_lm),
    "ours, ONNX": ("onnx", ours),
    "onnxruntime-genai": ("onnx", genai),
    "llama.cpp": ("gguf", llama_cpp),
}
"""By name: what it runs, and how."""


def run(engine: str, work: Work) -> Run | str:
    """In a process of its own; the last line of its complaint where it cannot."""
    # Memory is read ten times a second: more often would take time from what is measured.
    command = [sys.executable, "-m", "tools.bench_peers", "--engine", engine, "--work", json.dumps(asdict(work))]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child,
        PeakSampler(lambda: process_tree(child.pid), interval_ms=100) as sampler,
    ):
        output, errors = child.communicate()
    if child.returncode:
        return (errors.strip() or f"exit status {child.returncode}").splitlines()[-1]
    return Run(
        **json.loads(output.splitlines()[-1]), anon_bytes=sampler.peak.anon_bytes, file_bytes=sampler.peak.file_bytes
    )


def table(first: Mapping[str, Run], runs: Mapping[str, list[Run]], bound: Mapping[str, float]) -> Iterator[str]:
    """Markdown lines. first: of the round that packs. bound: tokens per second of each that memory allows, or none."""
    titles = (
        "engine", "prefill tok/s", "decode tok/s", "prefill, ratio", "decode, ratio", "of bound", "start s",
        "first start s", "anonymous MiB", "mapped MiB",
    )  # fmt: skip
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    medians = {engine: median(found) for engine, found in runs.items()}
    base = next(iter(medians.values()))
    for engine, found in medians.items():
        cells = (
            engine,
            f"{found.prefill_tokens_per_s:.1f}",
            f"{found.decode_tokens_per_s:.1f}",
            f"{base.prefill_tokens_per_s / found.prefill_tokens_per_s:.2f}",
            f"{base.decode_tokens_per_s / found.decode_tokens_per_s:.2f}",
            f"{found.decode_tokens_per_s / bound[engine]:.0%}" if engine in bound else "",
            f"{found.start_s:.1f}",
            f"{first[engine].start_s:.1f}",
            f"{found.anon_bytes / MIB:.0f}",
            f"{found.file_bytes / MIB:.0f}",
        )
        yield f"| {' | '.join(cells)} |"


def processor(cpuinfo: str) -> str:
    """ "AMD EPYC (AVX-512 VNNI)", from /proc/cpuinfo: the name and the widest instructions for int8 products."""
    values = dict(re.findall(r"^(model name|flags|Features)\s*: (.+)$", cpuinfo, re.M))
    flags = (values.get("flags") or values.get("Features") or "").split()
    kinds = {"avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "avx512bw": "AVX-512", "avx2": "AVX2"}
    kinds |= {"i8mm": "i8mm", "asimddp": "dot product"}
    best = next((name for flag, name in kinds.items() if flag in flags), "no int8 instructions known here")
    return f"{values.get('model name', 'unnamed processor')} ({best})"


def median(runs: list[Run]) -> Run:
    """Of each figure on its own."""
    return Run(*(statistics.median(values) for values in zip(*map(astuple, runs), strict=True)))


@click.command()
@click.option("--litertlm", type=click.Path(exists=True, path_type=Path))
@click.option("--litert-torch", type=click.Path(exists=True, path_type=Path))
@click.option("--onnx", type=click.Path(exists=True, path_type=Path))
@click.option("--gguf", type=click.Path(exists=True, path_type=Path))
@click.option("--prefill", default=256, show_default=True, help="Tokens; decoding begins behind them.")
@click.option("--decode", default=64, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--engine", hidden=True, type=click.Choice([*ENGINES]))
@click.option("--work", hidden=True)
def main(
    prefill: int, decode: int, threads: int, rounds: int, engine: str | None, work: str | None, **files: Path | None
) -> None:
    """Print a table in Markdown: medians of all engines that run one of the files, and what the others said."""
    if engine is not None:
        click.echo(json.dumps(asdict(ENGINES[engine][1](Work(**json.loads(work or ""))))))
        return
    works = {
        name: Work(str(files[kind]), prefill, decode, threads) for name, (kind, _) in ENGINES.items() if files[kind]
    }
    if not works:
        raise click.UsageError("no file given; give at least one of --litertlm, --onnx and --gguf")
    first: dict[str, Run] = {}
    for name, one in works.items():
        found = run(name, one)
        if isinstance(found, Run):
            first[name] = found
        else:
            click.echo(f"{name}: {found}")
    runs: dict[str, list[Run]] = {name: [] for name in first}
    bandwidths = []
    for _ in range(rounds):
        bandwidths.append(read_bytes_per_s(threads))
        for name in runs:
            found = run(name, works[name])
            if isinstance(found, str):
                raise click.ClickException(f"{name}: ran once, and then said: {found}")
            runs[name].append(found)
    bandwidth = statistics.median(bandwidths)
    bound = {
        name: bandwidth / open_model(Path(works[name].path)).decoder_bytes
        for name in runs
        if ENGINES[name][0] != "gguf"
    }
    click.echo(
        f"{processor(Path('/proc/cpuinfo').read_text())}, {threads} threads, {datetime.now(UTC):%Y-%m-%d}; reads "
        f"{bandwidth / 1e9:.1f} GB/s; position {prefill}, {decode} tokens decoded, medians of {rounds} rounds\n"
    )
    click.echo("\n".join(table(first, runs, bound)))


if __name__ == "__main__":
    main()
