"""Penalties by hand. The same settings in litert_lm: test_litert_lm_parity."""

from collections.abc import Callable

import numpy as np
import pytest

from gemma_edge.runtime.text.penalties import (
    NoRepeatNgramConfig,
    Penalties,
    RepetitionPenaltyConfig,
    SuppressTokensConfig,
    penalize_repetition,
    repeating_tokens,
)
from gemma_edge.runtime.text.sampler import SamplerError

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
    logits = LOGITS.copy()
    penalize_repetition(logits, generated, config)
    np.testing.assert_allclose(logits, expected)


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
    assert repeating_tokens(generated, config) == expected


def test_all_of_them_together() -> None:
    penalties = Penalties(
        RepetitionPenaltyConfig(repetition_penalty=2.0), NoRepeatNgramConfig(1), SuppressTokensConfig([2, 77])
    )
    logits = LOGITS.copy()
    penalties.apply(logits, [0])
    np.testing.assert_array_equal(logits, [-np.inf, -2, -np.inf, 4])
    Penalties().apply(logits, [1, 3])
    np.testing.assert_array_equal(logits, [-np.inf, -2, -np.inf, 4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RepetitionPenaltyConfig(repetition_penalty=0.5),
            "repetition_penalty is 0.5, expected at least 1.0; 1.0 switches it off",
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
    Penalties(bias={0: -100, 2: 1.5, 9: 4}).apply(logits, [])
    assert logits.tolist() == [-99, 2, 4.5]
