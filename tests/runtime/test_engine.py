"""Engines: what they refuse, what they report, and that opening, talking and closing leave nothing behind."""

import gc
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_edge.runtime import engine as module
from gemma_edge.runtime.chat.session import Session
from gemma_edge.runtime.config import Backend, ConfigError
from gemma_edge.runtime.engine import Engine, HealthError
from gemma_edge.runtime.executors.base import ExecutorError
from gemma_edge.runtime.executors.open import open_decoder
from gemma_edge.runtime.executors.placement import NO_CACHE
from gemma_edge.runtime.formats.litertlm import BundleError
from gemma_edge.runtime.memory.reading import read_memory_exact
from gemma_edge.runtime.text.sampler import SamplerConfig

TinyBundle = Callable[[str, str], Path]
GREEDY = SamplerConfig(top_k=1)
KIB = 1024


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def open_engine(tiny_bundle: TinyBundle, cache_dir: Path) -> Callable[..., Engine]:
    def open_it(family: str = "gemma3n", precision: str = "int4", **options: Any) -> Engine:
        return Engine(str(tiny_bundle(family, precision)), cache_dir=str(cache_dir), **options)

    return open_it


def test_an_engine_knows_its_model(open_engine: Callable[..., Engine]) -> None:
    with open_engine() as engine:
        assert (engine.bos_token_id, engine.max_num_tokens) == (2, 512)
        assert [1] in engine.eos_token_ids
        token_ids = engine.tokenize("In the beginning")
        assert engine.detokenize(token_ids) == "In the beginning"
        assert engine.bos_token_id not in token_ids


def test_tokens_are_litert_lms(open_engine: Callable[..., Engine], tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    import litert_lm

    text = "In the\n\nbeginning  é 🙂 <end_of_turn>x"
    with (
        open_engine() as ours,
        litert_lm.Engine(
            str(tiny_bundle("gemma3n", "int4")), litert_lm.Backend.CPU(), cache_dir=str(tmp_path)
        ) as theirs,
    ):
        assert ours.tokenize(text) == theirs.tokenize(text)
        assert ours.bos_token_id == theirs.bos_token_id
        assert ours.eos_token_ids == theirs.eos_token_ids


def test_a_shorter_context(open_engine: Callable[..., Engine]) -> None:
    with open_engine(max_num_tokens=64) as engine:
        assert engine.max_num_tokens == 64
    with pytest.raises(ExecutorError, match=r"max_num_tokens is 513, the KV cache of .* holds 512; ask for 1 to 512"):
        open_engine(max_num_tokens=513)


def test_settings_that_cannot_be_honoured(open_engine: Callable[..., Engine]) -> None:
    for backend in (Backend.GPU(), Backend.NPU()):
        with pytest.raises(ConfigError, match=r"backend is .pu, this executor runs on cpu; use Backend.CPU\(\)"):
            open_engine(backend=backend)
    for threads in (0, 100_000):
        with pytest.raises(ConfigError, match=f"thread_count is {threads}, expected 1 to 1024; leave it out for the"):
            Backend.CPU(thread_count=threads)
    with (
        open_engine() as engine,
        pytest.raises(ConfigError, match="max_output_tokens is 0, expected at least 1; leave"),
    ):
        engine.create_session(max_output_tokens=0)


def test_files_that_are_no_bundle(tmp_path: Path, tiny_bundle: TinyBundle) -> None:
    with pytest.raises(BundleError, match=r"missing\.litertlm: cannot read"):
        Engine(str(tmp_path / "missing.litertlm"))
    junk = tmp_path / "junk.litertlm"
    junk.write_bytes(b"no bundle" * 100)
    with pytest.raises(BundleError, match=r"not a \.litertlm bundle"):
        Engine(str(junk))
    whole = tiny_bundle("gemma3n", "int4").read_bytes()
    cut = tmp_path / "cut.litertlm"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match="truncated"):
        Engine(str(cut))


def test_where_packed_weights_go(tiny_bundle: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = str(tiny_bundle("gemma3", "int4"))
    with Engine(bundle, cache_dir=NO_CACHE) as engine:
        assert "weight_cache" not in engine.memory().mapped_bytes
    assert not list(tmp_path.rglob("*.xnnpack"))
    with Engine(bundle) as engine:
        assert engine.memory().mapped_bytes["weight_cache"] > 0
    assert len(list((tmp_path / "gemma-edge").glob("*.xnnpack"))) == 1


def test_packed_weights_are_read_ahead_until_it_closes(
    open_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    class Recorded:
        def __init__(self, *args: object) -> None:
            calls.append(args)

        def close(self) -> None:
            calls.append("closed")

    monkeypatch.setattr(module, "ReadAhead", Recorded)
    with open_engine() as engine:
        packed = engine._decoder.mapped_ranges().named["weight_cache"]
        assert packed[0].path.suffix == ".xnnpack"
        assert calls == [(packed, None)]
    assert calls[1:] == ["closed"]


def test_default_threads(open_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def record(*arguments: Any, **options: Any) -> Any:
        threads.append(arguments[1])
        return open_decoder(*arguments, **options)

    monkeypatch.setattr(module, "open_decoder", record)
    for cores in ({0}, {0, 1, 2}, set(range(64))):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        open_engine().close()
    open_engine(backend=Backend.CPU(thread_count=7)).close()
    assert threads == [1, 3, 4, 7]


def test_memory_by_part(open_engine: Callable[..., Engine]) -> None:
    with open_engine("gemma3n", "fp32") as engine:
        session = engine.create_session()
        session.run_prefill(["In the beginning"])
        _ = session.logits
        memory = engine.memory()
    assert memory.process.anon_bytes > 0
    assert memory.process.peak_rss_bytes >= memory.process.anon_bytes
    # 5 layers own a cache of 2 heads x 32: 4 sliding with 96 slots, 1 full with 512; keys and values; float32.
    assert memory.kv_cache_bytes == 2 * (4 * 96 + 512) * 2 * 32 * 4
    mapped = memory.mapped_bytes
    for part in ("tf_lite_prefill_decode", "weight_cache"):
        assert mapped[part] > 0, part
    assert mapped["tf_lite_embedder"] == mapped["tf_lite_per_layer_embedder"] == 0  # rows are read
    assert sum(mapped.values()) <= memory.process.file_bytes * 1.1


def test_health(tiny_bundle: TinyBundle, cache_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"
    shutil.copy(tiny_bundle("gemma3n", "int4"), path)
    engine = Engine(str(path), cache_dir=str(cache_dir))
    session = engine.create_session(sampler_config=GREEDY, max_output_tokens=5)
    session.run_prefill(["In the beginning"])
    engine.health()
    assert session.run_decode().texts[0]
    os.utime(path, ns=(1, 1))
    with pytest.raises(HealthError, match=r"model\.litertlm was changed or removed since it was opened; create a new"):
        engine.health()
    path.unlink()
    with pytest.raises(HealthError, match="was changed or removed"):
        engine.health()
    engine.close()


def test_health_of_a_model_that_computes_nonsense(
    open_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engine() as engine:
        nonsense = np.full(2080, np.nan, np.float32)
        monkeypatch.setattr(engine._pool, "probe", lambda _: nonsense)
        with pytest.raises(HealthError, match="the logits are not finite; convert the checkpoint again"):
            engine.health()


def test_health_after_closing(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    engine.close()
    with pytest.raises(ExecutorError, match="the executor is closed; create a new engine"):
        engine.health()


def slope_bytes(step: Callable[[], None], warm_up: int, steps: int, every: int) -> float:
    """Anonymous memory gained per step: the median slope between any two readings, one after `every` steps.

    A leak adds to every step and moves the median by its size; an allocator that takes one more arena in one step
    does not (Theil and Sen's estimator, where least squares would follow the jump).
    """
    for _ in range(warm_up):
        step()
    at, used = [], []
    for index in range(steps):
        step()
        if index % every == 0:
            gc.collect()
            at.append(index)
            used.append(read_memory_exact().anon_bytes)
    early, late = np.triu_indices(len(at), k=1)
    return float(np.median((np.array(used)[late] - np.array(used)[early]) / (np.array(at)[late] - np.array(at)[early])))


def cycle_bytes(model_path: str, cache_dir: str) -> float:
    """What a cycle of opening, talking and closing leaves behind in this process."""

    def cycle() -> None:
        with Engine(model_path, cache_dir=cache_dir) as engine:
            session = engine.create_session(sampler_config=GREEDY, max_output_tokens=3)
            session.run_prefill(["In the beginning"])
            session.run_decode()

    return slope_bytes(cycle, warm_up=5, steps=60, every=1)  # memory swings by 1 MiB: 20 are too few to see 64 KiB


def turn_bytes(model_path: str, cache_dir: str) -> float:
    """What a turn leaves behind in this process, where every tenth begins a new session."""
    with Engine(model_path, cache_dir=cache_dir) as engine:
        turns = count()
        session: Session | None = None

        def turn() -> None:
            nonlocal session
            number = next(turns)
            if session is None or number % 10 == 0:
                session = engine.create_session(sampler_config=GREEDY, max_output_tokens=10)
            session.run_prefill([f"In the beginning {number}"])
            session.run_decode()

        return slope_bytes(turn, warm_up=20, steps=200, every=10)


def alone(measure: Callable[[str, str], float], *arguments: str) -> float:
    """`measure` in a process of its own with one heap: in that of many tests, steps fill what others left free."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        patch.setenv("MALLOC_ARENA_MAX", "1")
        return process.submit(measure, *arguments).result()


def test_opening_and_closing_leaves_memory_flat(tiny_bundle: TinyBundle, cache_dir: Path) -> None:
    # One engine holds some 3 MiB: a leak of any of its buffers would show.
    assert alone(cycle_bytes, str(tiny_bundle("gemma3n", "int4")), str(cache_dir)) < 64 * KIB


def test_200_turns_leave_memory_flat(tiny_bundle: TinyBundle, cache_dir: Path) -> None:
    # A turn's logits are 8 KiB a token, its keys and values 4 KiB.
    assert alone(turn_bytes, str(tiny_bundle("gemma3n", "int4")), str(cache_dir)) < 2 * KIB


def test_open_files_stay_few(open_engine: Callable[..., Engine]) -> None:
    open_engine().close()
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        open_engine().close()
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
