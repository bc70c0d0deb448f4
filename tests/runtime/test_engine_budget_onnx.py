"""Engines of ONNX directories with a profile: planned, refused and watched as those of bundles are."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.profiles.budget import OverBudget
from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.engine import Engine, HealthError
from gemma_edge.runtime.executors.onnx.decoder import OnnxDecoder
from gemma_edge.runtime.executors.onnx.footprint import OnnxPlan
from gemma_edge.runtime.executors.placement import NO_CACHE
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from gemma_edge.runtime.memory.reading import read_memory
from gemma_edge.runtime.memory.watch import BudgetWarning, BudgetWatch
from tests.runtime.budget_files import leak, write_profile

ROOMY_BYTES = 512 * MIB


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def directory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path, tiny_gemma3n: Path
) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "model"
    convert("custom-int4", {"gemma3": tiny_gemma3, "gemma3n": tiny_gemma3n}[request.param], out, format="onnx")
    return out


@pytest.fixture
def open_engine(directory: Path, cache_dir: Path) -> Callable[..., Engine]:
    return lambda **options: Engine(str(directory), **({"cache_dir": str(cache_dir)} | options))


def test_a_directory_that_does_not_fit_is_refused_before_it_is_loaded(
    open_engine: Callable[..., Engine], directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxDecoder, "__init__", lambda *_: pytest.fail("it was loaded"))
    profile = write_profile(tmp_path, 64 * MIB)
    with pytest.raises(OverBudget, match=r"model at 2048 tokens on small: needs .*, the budget is 64 MiB") as caught:
        open_engine(profile=profile)
    plan = OnnxPlan.of(OnnxDirectory.open(directory))
    assert caught.value.footprint == plan.footprint()
    with pytest.raises(OverBudget) as caught:
        open_engine(profile=profile, cache_dir=NO_CACHE)
    assert caught.value.footprint == plan.footprint(anonymous_weights=True)


def test_the_context_is_the_longest_that_fits(
    open_engine: Callable[..., Engine], directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BudgetWatch, "check", lambda _: None)  # this process holds the whole test suite
    plan = OnnxPlan.of(OnnxDirectory.open(directory))
    profile = write_profile(tmp_path, plan.footprint().total_bytes - 1)
    with (
        pytest.warns(BudgetWarning, match="its context of 2048 tokens does not fit small; runs with 1792, or convert"),
        open_engine(profile=profile) as engine,
    ):
        assert engine.max_num_tokens == 1792


def test_a_leak_raises_with_the_breakdown(directory: Path, cache_dir: Path, tmp_path: Path) -> None:
    profile = write_profile(tmp_path, ROOMY_BYTES)
    (message, parts, steps), _ = leak(directory, cache_dir, profile, "raise")
    assert message.startswith("model on small, measured: needs 5")
    shown = parts.replace("tokenizer, ", "")  # which has no part where reading graphs left as much free
    assert shown == "process before the engine, libraries and graphs, decoder, since loading"
    assert 20 < int(steps) < ROOMY_BYTES // (8 * MIB)


def test_pages_are_given_back(open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    profile = write_profile(tmp_path, max(64 * MIB, read_memory().hard_bytes // 2))
    with pytest.warns(BudgetWarning):
        engine = open_engine(profile=profile, over_budget="warn")
    with engine:
        # The check at the end of loading found the process over its budget.
        assert set(engine.memory().mapped_bytes.values()) == {0}
        engine.health()
        assert engine.memory().mapped_bytes["weight_cache"] > 0


def test_a_weight_file_that_was_changed_is_seen(directory: Path, cache_dir: Path, tmp_path: Path) -> None:
    path = shutil.copytree(directory, tmp_path / "model")
    with Engine(str(path), cache_dir=str(cache_dir)) as engine:
        (path / "notes.txt").write_text("not of the model")
        engine.health()
        os.utime(next(path.glob("onnx/*.onnx_data")), ns=(1, 1))
        with pytest.raises(HealthError, match="model was changed or removed since it was opened; create a new engine"):
            engine.health()
