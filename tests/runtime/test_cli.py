"""`gemma-edge run` and `bench` as a user meets them."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.measure.bench import Benchmark, BenchmarkError, Measurement, measure, medians
from gemma_edge.runtime.text.sampler import SamplerConfig

PROGRAM = """
import sys
import click
from gemma_edge.runtime.cli import bench_main, run_main
group = click.Group("gemma-edge", commands={"run": run_main, "bench": bench_main})
group()
"""


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Callable[[str, str], Path]) -> Path:
    return tiny_bundle("gemma3n", "int4")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def gemma_edge(*arguments: object, keyboard: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, input=keyboard, capture_output=True, text=True, timeout=120, check=False)


def expected_replies(bundle: Path, cache: str, messages: list[str], count: int) -> list[str]:
    with Engine(str(bundle), cache_dir=cache) as engine:
        conversation = engine.create_conversation(system_message="Be brief.", sampler_config=SamplerConfig(top_k=1))
        return [str(conversation.send_message(message, max_output_tokens=count)) for message in messages]


def test_one_prompt(bundle: Path, cache: str) -> None:
    result = gemma_edge(
        "run", bundle, "--prompt", "And the LORD", "--system", "Be brief.", "--greedy",
        "--max-output-tokens", 12, "--cache-dir", cache, "--stats",
    )  # fmt: skip
    assert result.returncode == 0
    assert result.stdout == expected_replies(bundle, cache, ["And the LORD"], 12)[0] + "\n"
    assert re.search(
        r"\[first token \d+\.\d\d s; prefill \d+ tokens, [\d.]+/s; decode 12 tokens, [\d.]+/s; context \d+ tokens; "
        r"memory \d+ MiB anonymous, \d+ MiB mapped\]",
        result.stderr,
    )


def test_a_chat_keeps_its_history_and_ends_with_the_input(bundle: Path, cache: str) -> None:
    result = gemma_edge(
        "run", bundle, "--system", "Be brief.", "--greedy", "--max-output-tokens", 12, "--cache-dir", cache,
        keyboard="And the LORD\n\n  \nx\n",
    )  # fmt: skip
    assert result.returncode == 0
    assert result.stdout == "".join(r + "\n" for r in expected_replies(bundle, cache, ["And the LORD", "x"], 12))


def test_bytes_that_are_not_utf_8(bundle: Path, cache: str) -> None:
    command = [sys.executable, "-c", PROGRAM, "run", str(bundle), "--greedy", "--max-output-tokens", "3"]
    result = subprocess.run(
        [*command, "--cache-dir", cache],
        input=b"caf\xe9\n", capture_output=True, timeout=120, check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 1)


def test_googles_engine_says_the_same(tiny_bundle: Callable[[str, str], Path], cache: str) -> None:
    bundle = tiny_bundle("gemma3n", "fp32")  # int4 has near ties, which two engines may take either way
    options = ("--prompt", "And the LORD", "--system", "Be brief.", "--greedy", "--max-output-tokens", 12, "--stats")
    result = gemma_edge("run", bundle, *options, "--executor", "litert-lm", "--cache-dir", cache)
    assert result.returncode == 0
    assert result.stdout == expected_replies(bundle, cache, ["And the LORD"], 12)[0] + "\n"
    assert "decode 12 tokens" in result.stderr


def test_a_seed(bundle: Path, cache: str) -> None:
    def say(seed: int) -> str:
        return gemma_edge(
            "run", bundle, "--prompt", "x", "--seed", seed, "--max-output-tokens", 20, "--cache-dir", cache
        ).stdout

    assert say(1) == say(1) != say(2)


def test_an_onnx_directory_is_run_as_a_bundle_is(tiny_gemma3: Path, tmp_path: Path, cache: str) -> None:
    """With its own sampler settings, which are read before the engine is there."""
    convert("custom-fp32", tiny_gemma3, tmp_path / "onnx", context=512, format="onnx")
    with Engine(str(tmp_path / "onnx"), cache_dir=cache) as engine:
        expected = str(engine.create_conversation().send_message("And the LORD", max_output_tokens=12))
    result = gemma_edge(
        "run", tmp_path / "onnx", "--prompt", "And the LORD", "--max-output-tokens", 12, "--cache-dir", cache
    )
    assert (result.returncode, result.stdout) == (0, expected + "\n")


def test_ctrl_c_cancels_the_reply_and_the_chat_goes_on(bundle: Path, cache: str) -> None:
    """Greedy, the tiny model repeats itself until the context is full: half a second to interrupt it in."""
    master, slave = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, "run", str(bundle), "--cache-dir", cache, "--threads", "1", "--greedy"]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as child:
        os.close(slave)
        try:
            read_until(master, r"> \Z")
            os.write(master, b"And the LORD\n")
            read_until(master, r"And the LORD\r\n\S")  # the reply has begun
            child.send_signal(signal.SIGINT)
            assert " [cancelled]\r\n" in read_until(master, r"> \Z")
            os.write(master, b"And the LORD\n")  # the turn was taken back: the same reply begins again
            read_until(master, r"And the LORD\r\n\S")
            child.send_signal(signal.SIGINT)
            read_until(master, r"> \Z")
            os.write(master, b"\x04")  # Ctrl-D
            assert child.wait(timeout=20) == 0
        finally:
            child.kill()
            os.close(master)


def read_until(master: int, pattern: str) -> str:
    seen = ""
    deadline = time.monotonic() + 60
    while not re.search(pattern, seen):
        assert time.monotonic() < deadline, seen
        seen += os.read(master, 4096).decode(errors="replace")
    return seen


def test_bench_prints_a_table_and_json(bundle: Path, cache: str) -> None:
    options = ("--prefill", 40, "--decode", 8, "--runs", 2, "--cache-dir", cache)
    table = gemma_edge("bench", bundle, *options)
    assert table.returncode == 0
    for row in ("start", "first token", "prefill 40", "decode 8", "peak anonymous", "peak mapped", "peak total"):
        assert re.search(rf"^{row} +[\d.]+ (s|tok/s|MiB)$", table.stdout, re.MULTILINE), row
    assert "medians of 2 runs, each a process of its own\n" in table.stdout
    assert re.search(r"^decode: 1 XNNPACK partition; outside: .*DYNAMIC_UPDATE_SLICE", table.stdout, re.MULTILINE)
    values = json.loads(gemma_edge("bench", bundle, *options, "--json").stdout)
    assert len(values["runs"]) == 2
    assert values["median"].keys() == values["runs"][0].keys()
    assert values["median"]["anon_bytes"] > 10 << 20
    assert values["partitions"]["decode"]["count"] == 1


def test_what_a_run_does(bundle: Path, cache: str) -> None:
    info = Benchmark(str(bundle), Backend.CPU(thread_count=1), 50, 7, cache_dir=cache).run()
    assert (info.last_prefill_token_count, info.last_decode_token_count) == (50, 7)
    measured = measure(Benchmark(str(bundle), Backend.CPU(thread_count=1), 50, 7, cache_dir=cache))
    assert measured.total_bytes >= measured.anon_bytes > 0
    assert measured.time_to_first_token_s > 0


def test_googles_engine_in_the_benchmark(bundle: Path, cache: str) -> None:
    measured = measure(Benchmark(str(bundle), Backend.CPU(), 40, 8, cache_dir=cache, executor="litert-lm"))
    assert measured.decode_tokens_per_s > 0
    with pytest.raises(BenchmarkError) as caught:
        Benchmark("none.litertlm", Backend.CPU(), executor="litert-lm").run()
    assert str(caught.value).startswith("litert_lm: Failed to create engine for benchmark")
    with pytest.raises(BenchmarkError) as caught:
        Benchmark(str(bundle), Backend.CPU(), executor="onnx")
    assert str(caught.value) == "executor is 'onnx', expected litert or litert-lm; choose one"


def test_medians() -> None:
    runs = [Measurement(1, 5, 1, 1, 30, 1, 1), Measurement(2, 4, 1, 1, 10, 1, 1), Measurement(9, 3, 1, 1, 20, 1, 1)]
    assert medians(runs) == Measurement(2, 4, 1, 1, 20, 1, 1)


def test_bench_refuses(bundle: Path, cache: str) -> None:
    with pytest.raises(BenchmarkError) as caught:
        Benchmark(str(bundle), Backend.CPU(), decode_tokens=0)
    assert str(caught.value) == "decode_tokens is 0, expected at least 1; ask for more"
    with pytest.raises(BenchmarkError) as caught:
        measure(Benchmark(str(bundle), Backend.CPU(), 600, cache_dir=cache))
    assert str(caught.value) == (
        "the benchmark's process failed: context overflow: 600 tokens asked, 512 allowed; "
        "shorten the input, start a new conversation or convert with a longer context"
    )
