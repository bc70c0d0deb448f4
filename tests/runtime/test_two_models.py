"""A bundle of two models: which one runs, and what a switch costs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gemma_edge.converter.convert import convert
from gemma_edge.profiles.budget import OverBudget
from gemma_edge.runtime import Engine
from gemma_edge.runtime.cli import run_main
from gemma_edge.runtime.config import ConfigError
from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.kv.generate import Decoding, StopTokens
from gemma_edge.runtime.kv.saved import SavedCacheError
from gemma_edge.runtime.kv.scheduler import Scheduler
from gemma_edge.runtime.kv.sequence import TokenSequence
from gemma_edge.runtime.kv.slots import SlotPool
from gemma_edge.runtime.memory import watch
from gemma_edge.runtime.memory.reading import read_memory_exact
from gemma_edge.runtime.memory.watch import BudgetWarning
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig
from tests.runtime.budget_files import write_profile
from tools.tiny import write_tiny

MIB = 1 << 20
CUT = "ffn = [256, 256, 256, 512, 256, 256, 256, 512]\nskipped = [6, 7]\n"
GREEDY = SamplerConfig(top_k=1)
IDS = np.random.default_rng(3).integers(110, 2048, 60).tolist()  # longer than the window


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pair.litertlm, and small.litertlm alone."""
    folder = tmp_path_factory.mktemp("two")
    write_tiny("gemma3n-pattern", folder / "checkpoint")
    (folder / "small.toml").write_text(CUT)
    for name, option in (("pair", "with_slice"), ("small", "slice")):
        options: dict[str, Any] = {"context": 256, "prefill": (8, 32), "measure": False, option: folder / "small.toml"}
        convert("custom-fp32", folder / "checkpoint", folder / f"{name}.litertlm", **options)
    return folder


@pytest.fixture
def open_engine(bundles: Path) -> Callable[..., Engine]:
    def opened(name: str = "pair", **options: Any) -> Engine:
        return Engine(str(bundles / f"{name}.litertlm"), cache_dir=str(bundles / "cache"), **options)

    return opened


def test_either_model_runs(open_engine: Callable[..., Engine]) -> None:
    logits = []
    runs: tuple[tuple[str, dict[str, str]], ...] = (
        ("small", {}), ("pair", {"model": "small"}), ("pair", {"model": "custom"}), ("pair", {}),
    )  # fmt: skip
    for name, options in runs:
        with open_engine(name, **options) as engine:
            assert engine.models == (("custom", "small") if name == "pair" else ())
            assert engine.model == (None if name == "small" else options.get("model", "custom"))
            sequence = engine.new_sequence()
            sequence.append(IDS)
            logits.append(sequence.logits())
    assert np.array_equal(logits[0], logits[1])
    assert np.array_equal(logits[2], logits[3])
    assert np.abs(logits[1] - logits[2]).max() > 0.1


def test_a_switch_runs_what_the_model_has_not_run(open_engine: Callable[..., Engine]) -> None:
    with open_engine("small") as engine:
        alone = engine.new_sequence()
        alone.append(IDS)
        expected = alone.logits()
    with open_engine(slots=2) as engine:
        sequence = engine.new_sequence()
        sequence.append(IDS)
        assert sequence.prefill() == len(IDS) - 1
        of_large = sequence.logits()
        engine.use_model("small")
        assert sequence.prefill() == len(IDS) - 1
        assert np.array_equal(sequence.logits(), expected)
        assert engine.memory().kv_cache_bytes_by_model["custom"] == engine.memory().kv_cache_bytes_by_model["small"] > 0
        engine.use_model("custom")  # whose slot is still there
        assert sequence.prefill() == 0
        assert np.array_equal(sequence.logits(), of_large)
        sequence.append(IDS[:5])
        engine.use_model("small")
        assert sequence.prefill() == 4  # the last runs with `logits`
    with open_engine(slots=1) as engine:  # one memory for both
        sequence = engine.new_sequence()
        sequence.append(IDS)
        for model, logits in (("custom", of_large), ("small", expected), ("custom", of_large)):
            engine.use_model(model)
            assert sequence.prefill() == len(IDS) - 1
            assert np.array_equal(sequence.logits(), logits)
        assert engine.memory().kv_cache_bytes_by_model["small"] == 0


def test_a_conversation_goes_on_in_the_other_model(open_engine: Callable[..., Engine]) -> None:
    with open_engine(slots=2) as engine, engine.create_conversation(sampler_config=GREEDY) as conversation:
        conversation.send_message("And God said", max_output_tokens=4)
        said = conversation.history
        engine.use_model("small")
        conversation.send_message("Let there be light", max_output_tokens=4)
        assert conversation.history[: len(said)] == said
        assert conversation.usage.cached == 0
        conversation.send_message("And there was", max_output_tokens=4)
        assert conversation.usage.cached > 0
        engine.use_model("custom")
        conversation.send_message("And there was", max_output_tokens=4)
        assert conversation.usage.cached > 0
        assert len(conversation.history) == 8


def test_a_reply_goes_on_in_the_other_model(bundles: Path) -> None:
    """Each token is the likeliest of the model that ran when it was drawn, after all that stood before."""
    decoder = LitertDecoder(DecoderSections.of(Bundle.open(bundles / "pair.litertlm")), 2, bundles / "cache")
    scheduler, pool = Scheduler(), SlotPool(decoder, None, 1, several=decoder)
    calls = 0

    def switch() -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            pool.use("small", is_short=True)

    sequence = TokenSequence(scheduler, pool, switch)
    how = Decoding(Sampler(GREEDY), StopTokens([]), max_output_tokens=6)
    written = list(sequence.reply(IDS[:30], how))
    assert pool.model == "small"
    drawn: dict[str, list[int]] = {}
    for model in ("custom", "small"):
        pool.use(model)
        other = TokenSequence(scheduler, pool)
        other.append(IDS[:30])
        for token in written:
            drawn.setdefault(model, []).append(int(np.argmax(other.logits())))
            other.append([token])
    switched = next(i for i in range(7) if [*drawn["custom"][:i], *drawn["small"][i:]] == written)
    assert 0 < switched < 6
    assert drawn["custom"] != drawn["small"]
    scheduler.close()
    pool.close()
    decoder.close()


def test_saved_keys_and_values_are_one_models(open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    with open_engine(slots=2) as engine:
        engine.keep_chats(tmp_path / "chats")
        sequence = engine.new_sequence()
        sequence.append(IDS)
        sequence.save(tmp_path / "large.kv")
        engine.use_model("small")
        with pytest.raises(SavedCacheError, match=r"large\.kv: was saved with the model"):
            engine.load_cache(tmp_path / "large.kv")
        sequence.save(tmp_path / "small.kv")
        assert len(engine.load_cache(tmp_path / "small.kv")) == len(IDS) - 1
        engine.save_chats()
    assert len([*(tmp_path / "chats").iterdir()]) == 2


def test_when_memory_is_short_the_smaller_model_goes_on(
    open_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_SWITCH_GRACE_S", 0.5)
    profile = write_profile(tmp_path, read_memory_exact().hard_bytes + 128 * MIB)
    with open_engine(profile=profile, over_budget="switch", slots=2) as engine:
        sequence = engine.new_sequence()
        sequence.append(IDS)
        sequence.logits()
        ballast = [bytearray(b"x") * (160 * MIB)]
        with pytest.warns(BudgetWarning, match=r"pair\.litertlm on small, measured: .*; goes on with a smaller model"):
            sequence.logits()
        assert engine.model == "small"
        time.sleep(0.6)
        with pytest.raises(OverBudget, match=r"pair\.litertlm on small, measured"):
            sequence.logits()
        ballast.clear()
        sequence.logits()
        assert sequence.token_ids == tuple(IDS)
        assert engine.memory().kv_cache_bytes_by_model["custom"] == 0


def test_a_model_with_caches_of_its_own_is_refused(bundles: Path) -> None:
    sections = DecoderSections.of(Bundle.open(bundles / "pair.litertlm"))
    decoder = LitertDecoder(sections, 2, bundles / "cache")
    assert decoder._model is not None
    decoder._caches.popitem()
    with pytest.raises(BundleMismatchError, match=r"model small keeps keys and values that the large one does not"):
        decoder._other(decoder._model, sections.models[1])
    decoder.close()


def test_litert_lm_is_not_asked_for_the_small_one(bundles: Path) -> None:
    asked = CliRunner().invoke(
        run_main, [str(bundles / "pair.litertlm"), "--executor", "litert-lm", "--model", "small", "--prompt", "Hello"]
    )
    assert asked.exit_code == 2
    assert "litert-lm runs the large model alone; leave out --executor" in asked.stderr


def test_a_model_that_is_not_there_is_refused(open_engine: Callable[..., Engine]) -> None:
    with pytest.raises(ConfigError, match=r"model is 'e2b', pair\.litertlm holds custom and small; leave it out"):
        open_engine(model="e2b")
    with pytest.raises(ConfigError, match=r"model is 'e2b', small\.litertlm holds one model; leave it out, or convert"):
        open_engine("small", model="e2b")
    with pytest.raises(ConfigError, match=r'over_budget is "switch", small\.litertlm holds one model; leave it out'):
        open_engine("small", over_budget="switch")
