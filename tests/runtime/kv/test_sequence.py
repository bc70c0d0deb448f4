"""Token sequences on a real executor with rings: what runs again after going back, and that it is exact."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from gemma_edge.runtime.executors.base import ContextOverflowError
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.kv.generate import Decoding, StopTokens
from gemma_edge.runtime.kv.scheduler import CancelledError, Scheduler
from gemma_edge.runtime.kv.sequence import TokenSequence
from gemma_edge.runtime.kv.slots import SlotPool
from gemma_edge.runtime.kv.turn import Mark
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig

TOLERANCE = 1e-4  # logits span about 20; prefill and decode add up in another order


class CountingSlot(LitertSlot):
    """The real one, and a count of the tokens it runs."""

    tokens_run = 0

    def chunks(self, token_ids: Sequence[int]) -> Iterator[int]:
        self.tokens_run += len(token_ids)
        return super().chunks(token_ids)


class Model(NamedTuple):
    """A scheduler and a pool of one slot, which is the real one with a count."""

    scheduler: Scheduler
    pool: SlotPool
    slot: CountingSlot


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def model(request: pytest.FixtureRequest, tiny_bundle: Callable[[str, str], Path]) -> Model:
    bundle = Bundle.open(tiny_bundle(request.param, "fp32"))  # rings of 96 slots, window 64
    pool = SlotPool(LitertDecoder(DecoderSections.of(bundle), threads=2, cache_dir=None), None, 1)
    [held] = pool._held
    held.slot.__class__ = CountingSlot
    assert isinstance(held.slot, CountingSlot)
    return Model(Scheduler(), pool, held.slot)


@pytest.fixture
def executor(model: Model) -> CountingSlot:
    model.slot.reset()
    model.slot.tokens_run = 0
    return model.slot


@pytest.fixture
def sequence(model: Model, executor: CountingSlot) -> TokenSequence:
    assert executor is model.slot
    return TokenSequence(model.scheduler, model.pool)


@pytest.fixture(scope="module")
def text(val_bin: Path) -> list[int]:
    return [int(token_id) for token_id in np.fromfile(val_bin, np.uint16)[:600]]


def step_by_step(executor: CountingSlot, token_ids: Sequence[int]) -> np.ndarray:
    executor.reset()
    for token_id in token_ids:
        logits = executor.decode(token_id)
    return logits.copy()


def test_going_back_to_a_mark_runs_only_what_is_new(
    executor: CountingSlot, sequence: TokenSequence, text: list[int]
) -> None:
    sequence.append(text[:150])
    sequence.logits()
    sequence.mark()
    sequence.append(text[150:400])  # the rings turn more than twice
    sequence.logits()
    sequence.truncate(150)
    sequence.append(text[500:520])
    executor.tokens_run = 0
    logits = sequence.logits().copy()
    assert executor.tokens_run == 20  # the last token before the mark, and the new ones but the last
    expected = step_by_step(executor, text[:150] + text[500:520])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


def test_where_a_reply_began_after_going_back_is_marked_too(
    executor: CountingSlot, sequence: TokenSequence, text: list[int]
) -> None:
    sequence.append(text[:150])
    sequence.logits()
    sequence.truncate(140)
    greedy = Decoding(Sampler(SamplerConfig(top_k=1)), StopTokens([]), max_output_tokens=2)
    assert len(list(sequence.reply(text[200:400], greedy, Mark.BEFORE_PROMPT))) == 2
    sequence.truncate(140)
    sequence.append(text[500:520])
    executor.tokens_run = 0
    logits = sequence.logits().copy()
    assert executor.tokens_run == 19  # the new ones but the last
    expected = step_by_step(executor, text[:140] + text[500:520])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


def test_going_back_without_a_mark_is_exact_too(
    executor: CountingSlot, sequence: TokenSequence, text: list[int]
) -> None:
    for length, back in ((300, 290), (300, 100), (80, 1), (512, 3), (120, 119)):
        sequence.truncate(0)
        sequence.append(text[:length])
        sequence.logits()
        sequence.truncate(back)
        sequence.append(text[550:557])
        logits = sequence.logits().copy()
        expected = step_by_step(executor, text[:back] + text[550:557])
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


def test_sequences_that_share_a_slot(model: Model, executor: CountingSlot, text: list[int]) -> None:
    one, two = (TokenSequence(model.scheduler, model.pool) for _ in range(2))
    common = text[:60]
    one.append(common)
    two.append(common)
    first = one.logits().copy()
    executor.tokens_run = 0
    np.testing.assert_array_equal(two.logits(), first)
    assert executor.tokens_run == 0  # the prefix was there already
    one.append(text[100:110])
    two.append(text[200:230])
    for sequence, tail in ((one, text[100:110]), (two, text[200:230]), (one, text[100:110])):
        logits = sequence.logits().copy()
        np.testing.assert_allclose(logits, step_by_step(executor, common + tail), rtol=0, atol=TOLERANCE)


def test_logits_can_be_asked_for_again(sequence: TokenSequence, text: list[int]) -> None:
    sequence.append(text[:30])
    first = sequence.logits().copy()
    np.testing.assert_array_equal(sequence.logits(), first)


def test_scores_add_up_and_leave_the_sequence(sequence: TokenSequence, text: list[int]) -> None:
    sequence.append(text[:40])
    scores = sequence.score(text[40:50])
    assert sequence.token_ids == tuple(text[:40])
    assert all(value < 0 for value in scores)
    sequence.append(text[40:44])
    assert sequence.score(text[44:50]) == pytest.approx(scores[4:], abs=TOLERANCE)


def test_the_context_ends(sequence: TokenSequence, text: list[int]) -> None:
    sequence.append(text[:512])
    assert len(sequence) == sequence.context_tokens == 512
    sequence.logits()
    with pytest.raises(ContextOverflowError) as caught:
        sequence.append(text[:3])
    assert (caught.value.asked_tokens, caught.value.allowed_tokens) == (515, 512)
    assert len(sequence) == 512


def test_cancel_stops_before_the_next_call_and_only_what_runs(
    model: Model, executor: CountingSlot, text: list[int]
) -> None:
    stopped: list[TokenSequence] = []

    def stop() -> None:
        stopped[0].cancel()

    sequence = TokenSequence(model.scheduler, model.pool, stop)
    stopped.append(sequence)
    sequence.append(text[:100])
    for call in (sequence.logits, sequence.prefill, sequence.mark, lambda: sequence.score(text[100:103])):
        with pytest.raises(CancelledError):
            call()
    assert executor.position == 0
    sequence = TokenSequence(model.scheduler, model.pool)
    sequence.append(text[:100])
    sequence.cancel()  # nothing runs
    logits = sequence.logits().copy()
    np.testing.assert_allclose(logits, step_by_step(executor, text[:100]), rtol=0, atol=TOLERANCE)
