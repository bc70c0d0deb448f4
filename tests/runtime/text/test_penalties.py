"""Penalties by hand. The same settings in litert_lm: test_litert_lm_parity."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gemma_edge.runtime.text.logits import Logits
from gemma_edge.runtime.text.penalties import (
    NoRepeatNgramConfig,
    Penalties,
    RepetitionPenaltyConfig,
    SuppressTokensConfig,
)
from gemma_edge.runtime.text.sampler import SamplerError


def penalized(penalties: Penalties, generated: Sequence[int], logits: Logits) -> Logits:
    """Logits [V] after these tokens of a reply."""
    reply = penalties.start()
    for token_id in generated:
        reply.apply(logits.copy())  # as while it is written
        reply.add(token_id)
    found = logits.copy()
    reply.apply(found)
    return found


LOGITS = np.array([2.0, -2.0, 0.0, 4.0], np.float32)  # [V], V = 4


@pytest.mark.parametrize(
    ("config", "generated", "expected"),
    [
        (RepetitionPenaltyConfig(), [0, 1, 3], [2, -2, 0, 4]),
        (RepetitionPenaltyConfig(repetition_penalty=2.0), [], [2, -2, 0, 4]),
        (RepetitionPenaltyConfig(repetition_penalty=2.0), [0, 1], [1, -4, 0, 4]),
        (RepetitionPenaltyConfig(presence_penalty=0.5), [3, 3, 3], [2, -2, 0, 3.5]),
        (RepetitionPenaltyConfig(frequency_penalty=0.5), [3, 3, 1], [2, -2.5, 0, 3]),
        (RepetitionPenaltyConfig(2.0, 1.0, 0.25), [3, 3], [2, -2, 0, 0.5]),  # 4 / 2 - 1 - 2 * 0.25
        (RepetitionPenaltyConfig(presence_penalty=1.0, window_size=2), [0, 1, 3], [2, -3, 0, 3]),
        (RepetitionPenaltyConfig(presence_penalty=1.0, window_size=0), [0, 1, 3], [1, -3, 0, 3]),
    ],
)
def test_repetition(config: RepetitionPenaltyConfig, generated: list[int], expected: list[float]) -> None:
    np.testing.assert_allclose(penalized(Penalties(config), generated, LOGITS), expected)


@pytest.mark.parametrize(
    ("config", "generated", "expected"),
    [
        (NoRepeatNgramConfig(), [1, 2, 1, 2], set()),
        (NoRepeatNgramConfig(0), [1, 2, 1, 2], set()),
        (NoRepeatNgramConfig(1), [1, 2, 1], {1, 2}),
        (NoRepeatNgramConfig(2), [1, 2, 1], {2}),
        (NoRepeatNgramConfig(2), [1, 2, 1, 3, 1], {2, 3}),
        (NoRepeatNgramConfig(3), [1, 2], set()),
        (NoRepeatNgramConfig(3), [1, 2, 3, 4, 1, 2], {3}),
        (NoRepeatNgramConfig(2, window_size=3), [1, 2, 1, 3, 1], {3}),  # the first 1 2 is out of sight
        (NoRepeatNgramConfig(3, window_size=1), [1, 2, 3], set()),  # a window holds at least one n-gram
    ],
)
def test_tokens_that_would_repeat_an_ngram(
    config: NoRepeatNgramConfig, generated: list[int], expected: set[int]
) -> None:
    logits = penalized(Penalties(no_repeat_ngram=config), generated, np.zeros(6, np.float32))
    assert set(np.flatnonzero(logits == -np.inf)) == expected


@pytest.mark.parametrize("window", [None, 1, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_long_replies_as_when_everything_is_counted_anew(window: int | None, size: int) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=500).astype(np.float32)
    generated = random.zipf(1.5, 400).clip(0, 499).tolist()
    recent = generated[-window:] if window else generated
    expected = logits.copy()
    for token_id, count in Counter(recent).items():
        value = expected[token_id]
        expected[token_id] = (value / np.float32(1.3) if value > 0 else value * np.float32(1.3)) - (
            np.float32(0.2) + np.float32(count) * np.float32(0.1)
        )
    within = generated[-max(window, size) :] if window else generated
    ends = [within[at : at + size] for at in range(len(within) - size + 1)]
    banned = [ngram[-1] for ngram in ends if ngram[:-1] == generated[len(generated) - size + 1 :]]
    expected[banned] = -np.inf
    penalties = Penalties(RepetitionPenaltyConfig(1.3, 0.2, 0.1, window), NoRepeatNgramConfig(size, window))
    assert np.array_equal(penalized(penalties, generated, logits), expected)


def test_all_of_them_together() -> None:
    penalties = Penalties(
        RepetitionPenaltyConfig(repetition_penalty=2.0), NoRepeatNgramConfig(1), SuppressTokensConfig([2, 77])
    )
    np.testing.assert_array_equal(penalized(penalties, [0], LOGITS), [-np.inf, -2, -np.inf, 4])
    np.testing.assert_array_equal(penalized(Penalties(), [1, 3], LOGITS), LOGITS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RepetitionPenaltyConfig(repetition_penalty=0.5),
            "repetition_penalty is 0.5, expected at least 1.0; 1.0 switches it off",
        ),
        (
            lambda: RepetitionPenaltyConfig(repetition_penalty=float("inf")),
            "repetition_penalty is inf, expected a number within float32; leave it out to switch it off",
        ),
        (
            lambda: RepetitionPenaltyConfig(presence_penalty=float("nan")),
            "presence_penalty is nan, expected a number within float32; leave it out to switch it off",
        ),
        (
            lambda: RepetitionPenaltyConfig(frequency_penalty=-1e39),
            "frequency_penalty is -1e+39, expected a number within float32; leave it out to switch it off",
        ),
        (
            lambda: RepetitionPenaltyConfig(window_size=-1),
            "window_size is -1, expected 0 or more; 0 takes everything into account",
        ),
        (
            lambda: NoRepeatNgramConfig(-2),
            "no_repeat_ngram_size is -2, expected 0 or more; 0 switches it off",
        ),
        (
            lambda: SuppressTokensConfig([3, -4]),
            "suppress_tokens has -4, expected token ids of 0 or more; leave it out",
        ),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SamplerError) as caught:
        make()
    assert str(caught.value) == message


def test_a_bias_is_added_and_ids_outside_are_passed_over() -> None:
    logits = np.array([1, 2, 3], np.float32)
    assert penalized(Penalties(bias={0: -100, 2: 1.5, 9: 4}), [], logits).tolist() == [-99, 2, 4.5]
