"""One model of a bundle guesses for the other: the text is what the large one says alone."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from gemma_edge.runtime.executors.base import KvSlot
from gemma_edge.runtime.kv.generate import Decoding, StopTokens
from gemma_edge.runtime.kv.scheduler import Work
from gemma_edge.runtime.kv.speculation import Speculating
from gemma_edge.runtime.kv.turn import Job, Outcome, reply_steps
from gemma_edge.runtime.settings import choose_settings
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig
from tests.runtime.budget_files import write_profile
from tools.tiny import write_tiny

# Close enough to the whole that many guesses stand.
CUT = "ffn = [512, 512, 512, 512, 512, 512, 512, 512]\nskipped = [6, 7]\n"
GREEDY = SamplerConfig(top_k=1)
IDS = np.random.default_rng(3).integers(110, 2048, (4, 60)).tolist()  # longer than the window


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draft")
    write_tiny("gemma3n-pattern", folder / "checkpoint")
    (folder / "small.toml").write_text(CUT)
    options: dict[str, Any] = {"context": 256, "prefill": (8, 32), "measure": False, "draft": (2, 4), "batch": (2, 4)}
    options |= {"with_slice": folder / "small.toml"}
    convert("custom-fp32", folder / "checkpoint", folder / "pair.litertlm", **options)
    return folder / "pair.litertlm"


@pytest.fixture
def opened(pair: Path) -> Callable[..., Engine]:
    def opened(**options: Any) -> Engine:
        return Engine(str(pair), cache_dir=str(pair.parent / "cache"), **options)

    return opened


@dataclass
class Known:
    """A drafter that has read the text."""

    text: Sequence[int]

    def propose(self, history: Sequence[int], n: int, _slot: KvSlot) -> Sequence[int]:
        return self.text[len(history) : len(history) + n]


def written(engine: Engine, ids: list[int], sampler: SamplerConfig = GREEDY) -> tuple[list[int], int, int]:
    """A reply of 100 tokens, past the rings' ends; guesses that ran, and that stood."""
    turn = engine.new_sequence().reply(ids, Decoding(Sampler(sampler), StopTokens([]), max_output_tokens=100))
    return [*turn], turn.timing.drafted_tokens, turn.timing.accepted_tokens


@pytest.mark.parametrize("sampler", [GREEDY, SamplerConfig(top_k=40, temperature=0.8, seed=5)])
def test_the_text_is_the_large_models(opened: Callable[..., Engine], sampler: SamplerConfig) -> None:
    with opened(enable_speculative_decoding=False) as engine:
        expected = [written(engine, ids, sampler) for ids in IDS]
        assert not any(drafted for _, drafted, _ in expected)
    with opened(draft_model="small") as engine:
        found = [written(engine, ids, sampler) for ids in IDS]
    assert [tokens for tokens, _, _ in found] == [tokens for tokens, _, _ in expected]
    assert sum(drafted for _, drafted, _ in found) > sum(accepted for _, _, accepted in found) > 0


def test_replies_at_once_share_the_model_that_guesses(opened: Callable[..., Engine]) -> None:
    how = Decoding(Sampler(GREEDY), StopTokens([]), max_output_tokens=20)
    with opened(draft_model="small") as engine:
        alone = [written(engine, ids)[0][:20] for ids in IDS]
        turns = [engine.new_sequence().reply(ids, how) for ids in IDS]
        found = [list(tokens) for tokens in zip(*zip(*turns, strict=True), strict=True)]
    assert found == alone


def test_nothing_is_guessed_while_the_small_one_runs(opened: Callable[..., Engine]) -> None:
    with opened(draft_model="small", slots=1) as engine:
        assert engine.memory().kv_cache_bytes_by_model["small"] > 0  # what it guesses from
        engine.use_model("small")
        tokens, drafted, accepted = written(engine, IDS[0])
        assert accepted <= drafted < len(tokens)
    with opened(model="small", enable_speculative_decoding=False) as engine:
        assert written(engine, IDS[0])[0] == tokens


def test_guesses_are_taken_back_while_the_slot_is_the_replys(opened: Callable[..., Engine]) -> None:
    """The model is switched there and back, another reply gets the slot meanwhile, and the first one is cancelled."""
    how = Decoding(Sampler(GREEDY), StopTokens([]), max_output_tokens=20)
    with opened(draft_model="small", slots=2) as engine:
        text = [*IDS[0], *written(engine, IDS[0])[0]]
    with opened(slots=2) as engine:
        pool = engine._pool
        job = Job(Work[Any](), pool, weakref.ref(how), lambda: None)
        ways = [Speculating(lambda: Known(text))]
        steps = reply_steps(job, (), IDS[0], how, Outcome(), None, ways)
        while job.work.output.empty():
            next(steps)
        [first] = (held.slot for held in pool._held)
        assert len(first.token_ids) > len(IDS[0])  # and a guess, which stands
        pool.use("small")
        next(steps)  # it begins to run its tokens in another slot
        pool.use("custom")
        lease = pool.lend(weakref.ref(engine), [])
        assert lease is not None
        assert lease.slot is first
        first.prefill([*IDS[1], *IDS[2]])
        steps.close()
        assert list(first.token_ids) == [*IDS[1], *IDS[2]]


def test_where_memory_is_short_nothing_is_guessed(opened: Callable[..., Engine]) -> None:
    with opened(draft_model="small") as engine:
        expected = written(engine, IDS[0])[0]
        engine._do(lambda: engine._pool.use("custom", is_short=True))
        tokens, drafted, _ = written(engine, IDS[0])
        assert (tokens, drafted) == (expected, 0)
        assert engine.memory().kv_cache_bytes_by_model["small"] == 0


def test_its_slot_is_part_of_the_plan(opened: Callable[..., Engine], tmp_path: Path) -> None:
    profile = write_profile(tmp_path, 8 << 30)
    with opened(draft_model="small", slots=1) as engine:
        spare, less = (
            choose_settings(engine.bundle, engine.backend, None, None, profile, "raise", 1, drafts).spare_bytes
            for drafts in (0, 1)
        )
        assert spare is not None
        assert less is not None
        assert spare - less >= engine.memory().kv_cache_bytes_by_model["small"]
    with pytest.raises(OverBudget, match=r"pair\.litertlm at 256 tokens on small"):
        opened(draft_model="small", profile=write_profile(tmp_path, 64 << 20))


def test_what_cannot_draft_is_refused(opened: Callable[..., Engine], pair: Path, tiny_gemma3: Path) -> None:
    with pytest.raises(ConfigError, match=r"draft_model is 'custom', pair\.litertlm drafts with small; leave it out"):
        opened(draft_model="custom")
    with pytest.raises(ConfigError, match=r"draft_model is 'small', enable_speculative_decoding False; leave one of"):
        opened(draft_model="small", enable_speculative_decoding=False)
    single = pair.with_name("single.litertlm")
    convert("custom-int4", tiny_gemma3, single, context=128, measure=False)
    with pytest.raises(ConfigError, match=r"draft_model is 'small', single\.litertlm holds one model; leave it out"):
        Engine(str(single), draft_model="small")


def test_a_chat_drafts(pair: Path) -> None:
    command = [str(pair), "--prompt", "And God said", "--greedy", "--max-output-tokens", "12", "--cache-dir"]
    command.append(str(pair.parent / "cache"))
    plain = CliRunner().invoke(run_main, [*command, "--no-speculative-decoding"])
    drafted = CliRunner().invoke(run_main, [*command, "--draft-model", "small"])
    assert (plain.exit_code, drafted.exit_code) == (0, 0)
    assert drafted.stdout == plain.stdout
    asked = CliRunner().invoke(run_main, [str(pair), "--executor", "litert-lm", "--draft-model", "small"])
    assert asked.exit_code == 2
    assert "our own executor alone is told how to guess; leave out --executor" in asked.stderr
