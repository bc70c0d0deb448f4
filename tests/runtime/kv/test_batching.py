"""Steps of several replies in one call: the text of each is what it is alone, whatever else is being written."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import ExecutorError, KvSlot
from gemma_edge.runtime.kv.batching import Step, run_together
from gemma_edge.runtime.kv.generate import Decoding, StopTokens
from gemma_edge.runtime.kv.turn import Turn
from gemma_edge.runtime.litert_lm_engine import LitertLmEngine
from gemma_edge.runtime.tasks.batch import generate_batch
from gemma_edge.runtime.text.constraints import ConstraintError, ResponseFormat
from gemma_edge.runtime.text.penalties import (
    NoRepeatNgramConfig,
    Penalties,
    RepetitionPenaltyConfig,
    SuppressTokensConfig,
)
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig, SamplerError

GREEDY = SamplerConfig(top_k=1)
SAMPLED = SamplerConfig(top_k=20, top_p=0.98, temperature=1.0, seed=7)
CPU = Backend.CPU(thread_count=1)


@pytest.fixture(scope="module")
def bundle(batching_bundle: Callable[[str], Path]) -> Path:
    return batching_bundle("gemma3n")


@pytest.fixture(scope="module")
def engine(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    cache_dir = str(tmp_path_factory.mktemp("cache"))
    with Engine(str(bundle), CPU, cache_dir=cache_dir, enable_speculative_decoding=False) as made:
        assert made.batch_rows == [2, 4]
        yield made


@dataclass(frozen=True)
class Ask:
    """A reply to ask for. first: where the prompt begins in the text, so that no two begin alike."""

    first: int
    prompt: int
    tokens: int
    sampler: SamplerConfig = GREEDY
    penalties: Penalties = field(default_factory=Penalties)
    stop: tuple[int, ...] = ()

    def begin(self, engine: Engine, text: Sequence[int], **how: Any) -> Turn:
        stop = StopTokens([self.stop])
        decoding = Decoding(
            Sampler(self.sampler), stop, penalties=self.penalties, max_output_tokens=self.tokens, best=2, **how
        )
        return engine.new_sequence().reply([10 + self.first, *text[self.first : self.first + self.prompt]], decoding)


PENALTIES = Penalties(RepetitionPenaltyConfig(1.2, 0.1, 0.1, 30), NoRepeatNgramConfig(4))
ASKS = (
    Ask(0, 4, 150),  # within the first span, past it and past the end of a ring
    Ask(100, 300, 90),  # from the last span on
    Ask(1, 50, 30, SAMPLED),
    Ask(2, 170, 60, SAMPLED, PENALTIES),
    Ask(3, 9, 80, GREEDY, PENALTIES),
    Ask(4, 60, 12),
    Ask(5, 20, 100, SAMPLED),
)


@pytest.fixture(scope="module")
def text(val_bin: Path) -> list[int]:
    tokens: list[int] = np.fromfile(val_bin, np.uint16)[:600].tolist()
    return tokens


@pytest.fixture(scope="module")
def alone(engine: Engine, text: list[int]) -> list[list[int]]:
    turns = []
    for ask in ASKS:
        turn = ask.begin(engine, text)
        turns.append(list(turn))
        assert turn.timing.batched_tokens == 0
    return turns


def test_each_text_is_what_it_is_alone(engine: Engine, text: list[int], alone: list[list[int]]) -> None:
    """More replies than slots: they join and leave, at positions far from each other."""
    turns = [ask.begin(engine, text) for ask in ASKS]
    assert [list(turn) for turn in turns] == alone
    batched = [turn.timing.batched_tokens for turn in turns]
    assert sum(batched) > sum(map(len, alone)) / 2
    assert all(count <= turn.timing.decode_tokens for count, turn in zip(batched, turns, strict=True))


def test_the_likeliest_tokens_are_told_as_alone(engine: Engine, text: list[int]) -> None:
    scores = []
    for at_once in (False, True):
        turns = [ask.begin(engine, text) for ask in ASKS[2:4]] if at_once else None
        for index, ask in enumerate(ASKS[2:4]):
            turn = turns[index] if turns else ask.begin(engine, text)
            scores.append([turn.drawn.scores for _ in turn if turn.drawn is not None])
    assert scores[:2] == scores[2:]


def test_one_that_is_cancelled_leaves_the_others_alone(engine: Engine, text: list[int], alone: list[list[int]]) -> None:
    which = (0, 2, 6)
    turns = [ASKS[at].begin(engine, text) for at in which]
    first = [next(turns[0]) for _ in range(20)]
    turns[0].cancel()
    assert [list(turn) for turn in turns] == [[], alone[2], alone[6]]
    assert first == alone[0][:20]


def test_a_stop_token_ends_one_of_them(engine: Engine, text: list[int], alone: list[list[int]]) -> None:
    stop = tuple(alone[0][30:32])
    end = next(n for n in range(2, 150) if tuple(alone[0][n - 2 : n]) == stop)
    turns = [Ask(0, 4, 150, stop=stop).begin(engine, text), ASKS[6].begin(engine, text)]
    assert [list(turn) for turn in turns] == [alone[0][:end], alone[6]]
    assert [turn.reason for turn in turns] == ["stop", "length"]


def test_with_a_response_format(engine: Engine, text: list[int], alone: list[list[int]]) -> None:
    wanted = ResponseFormat.json({"type": "array", "items": {"enum": ["once", "upon"]}, "minItems": 6, "maxItems": 6})
    replies = []
    for beside in (False, True):
        turn = ASKS[0].begin(engine, text) if beside else None
        with engine.create_conversation(sampler_config=SAMPLED, max_output_tokens=200) as conversation:
            replies.append(str(conversation.send_message('Say ["once", "upon", "once"].', response_format=wanted)))
            assert (conversation.get_benchmark_info().last_batched_token_count > 0) == beside
        if turn is not None:
            assert list(turn) == alone[0]
    assert replies[0] == replies[1]


def test_penalties_that_leave_no_token_end_only_their_own_reply(
    engine: Engine, text: list[int], alone: list[list[int]]
) -> None:
    allowed = {7, 8, 9}
    bans = Penalties(
        no_repeat_ngram=NoRepeatNgramConfig(1), suppress=SuppressTokensConfig(set(range(5000)).difference(allowed))
    )
    turns = [ASKS[6].begin(engine, text), Ask(7, 4, 150, SAMPLED, bans).begin(engine, text)]
    assert {next(turns[1]) for _ in allowed} == allowed
    with pytest.raises(SamplerError) as caught:
        next(turns[1])
    assert re.fullmatch(
        r"no_repeat_ngram_config and suppress_tokens_config forbid all \d+ tokens; allow some of them",
        str(caught.value),
    )
    assert turns[1].timing.batched_tokens > 0
    assert list(turns[0]) == alone[6]


def test_guessing_goes_on_beside(bundle: Path, text: list[int], alone: list[list[int]], tmp_path: Path) -> None:
    with Engine(str(bundle), CPU, cache_dir=str(tmp_path), enable_speculative_decoding=True) as engine:
        turns = [ask.begin(engine, text) for ask in ASKS]
        assert [list(turn) for turn in turns] == alone
        assert sum(turn.timing.batched_tokens for turn in turns) > 0
        turn = ASKS[0].begin(engine, text)
        assert list(turn) == alone[0]
        assert turn.timing.verify_calls > 0


def test_litert_lm_runs_the_bundle_as_any_other(bundle: Path, tmp_path: Path) -> None:
    replies = []
    for made in (Engine(str(bundle), CPU, cache_dir=str(tmp_path)), LitertLmEngine(str(bundle), CPU)):
        with made, made.create_conversation(sampler_config=GREEDY, max_output_tokens=60) as conversation:
            replies.append(str(conversation.send_message("And the LORD said unto")))
    assert replies[0] == replies[1]
    assert len(replies[0]) > 20


# ---------------------------------------------------------------- generate_batch

PROMPTS = ("And God said", "In the beginning", "The king went", "A certain man", "Then came the", "Behold,")


def test_many_prompts_are_answered_as_each_alone(engine: Engine) -> None:
    options: dict[str, Any] = {
        "sampler_config": SAMPLED,
        "max_output_tokens": 30,
        "system_message": "Tell a story of the old days.",
    }
    expected = [str(*generate_batch(engine, [prompt], **options)) for prompt in PROMPTS]
    assert [str(reply) for reply in generate_batch(engine, iter(PROMPTS), **options)] == expected
    assert list(generate_batch(engine, [])) == []


def test_leaving_early_ends_what_is_being_written(engine: Engine) -> None:
    replies = generate_batch(engine, PROMPTS, sampler_config=GREEDY, max_output_tokens=400)
    assert all(next(replies) for _ in range(2))
    del replies
    sequence = engine.new_sequence()
    assert list(sequence.reply([5, 6], Decoding(Sampler(GREEDY), StopTokens([]), max_output_tokens=2)))


def test_an_error_is_raised_in_its_place(engine: Engine) -> None:
    long = "word " * 600
    replies = generate_batch(engine, ["And God said", long, "Behold,"], sampler_config=GREEDY, max_output_tokens=5)
    assert str(next(replies))
    with pytest.raises(ExecutorError, match="context overflow"):
        next(replies)


# ---------------------------------------------------------------- which steps run together


@dataclass
class Batching:
    """A decoder that takes all slots together. ran: how many each time."""

    error: Exception | None = None
    ran: list[int] = field(default_factory=list)

    def batches(self, slots: Sequence[KvSlot]) -> Sequence[Sequence[KvSlot]]:
        return [slots] if len(slots) > 1 else []

    def decode_batch(self, slots: Sequence[KvSlot], token_ids: Sequence[int]) -> NDArray[np.float32]:
        if self.error is not None:
            raise self.error
        self.ran.append(len(slots))
        return np.asarray(token_ids, np.float32)[:, None]


@dataclass
class Lent:
    """As a Lease."""

    slot: object = field(default_factory=object)
    is_current: bool = True


def steps_of(decoder: Batching, *checks: Callable[[], None], lease: Callable[[], Lent] = Lent) -> list[Step]:
    leases: list[Any] = [lease() for _ in checks]
    return [Step(decoder, each, at, check) for at, (each, check) in enumerate(zip(leases, checks, strict=True))]  # type: ignore[arg-type]


def fine() -> None:
    pass


def fails() -> None:
    raise ConstraintError("over")


def test_a_step_alone_is_left_to_its_reply() -> None:
    decoder, calls = Batching(), []
    [step] = steps_of(decoder, lambda: calls.append(1))
    run_together([step, None])
    assert (decoder.ran, step.logits, calls) == ([], None, [])
    step.resume()
    assert calls == [1]


def test_what_stops_one_reply_is_raised_there() -> None:
    decoder = Batching()
    steps = steps_of(decoder, fine, fails, fine)
    run_together(steps)
    assert decoder.ran == [2]
    assert [None if step.logits is None else int(step.logits[0]) for step in steps] == [0, None, 2]
    assert [step.rows for step in steps] == [2, 1, 2]
    steps[0].resume()
    with pytest.raises(ConstraintError, match="over"):
        steps[1].resume()


def test_a_call_that_fails_fails_for_all_of_them() -> None:
    steps = steps_of(Batching(ExecutorError("broken")), fine, fine)
    run_together(steps)
    for step in steps:
        with pytest.raises(ExecutorError, match="broken"):
            step.resume()


def test_what_another_model_wrote_is_left_alone() -> None:
    """Checking may run out of memory, and switch the model."""
    decoder = Batching()
    steps = steps_of(decoder, fine, fine, lease=lambda: Lent(is_current=False))
    run_together(steps)
    assert (decoder.ran, [step.logits for step in steps]) == ([], [None, None])
