"""Guessing from what was said."""

from typing import Any

import pytest

from gemma_edge.runtime.kv.drafter import PromptLookup

SLOT: Any = None  # looking a text up asks nothing of the model


@pytest.mark.parametrize(
    ("history", "n", "guesses"),
    [
        ([], 3, []),
        ([7], 3, []),
        ([1, 2, 3], 3, []),
        ([1, 2, 9, 1, 2], 1, [9]),
        ([1, 2, 9, 8, 7, 1, 2], 3, [9, 8, 7]),
        ([1, 2, 9, 1, 2], 5, [9, 1, 2, 9, 1]),  # what repeats is expected to go on
        ([5, 1, 2, 9, 6, 1, 2, 8, 5, 1, 2], 1, [9]),  # the longer match, not the later one
        ([5, 1, 2, 9, 5, 1, 2, 8, 5, 1, 2], 1, [8]),  # of equals the later one
        ([1, 2, 9, 1, 2], 0, []),
    ],
)
def test_what_followed_the_longest_match(history: list[int], n: int, guesses: list[int]) -> None:
    assert list(PromptLookup().propose(history, n, SLOT)) == guesses


def test_a_growing_history_gives_what_a_new_look_at_it_would() -> None:
    history = [i * i % 23 for i in range(200)]
    grown = PromptLookup()
    for length in range(len(history)):
        if length % 3 != 1:  # what was not asked for in between counts as well
            assert grown.propose(history[:length], 4, SLOT) == PromptLookup().propose(history[:length], 4, SLOT)


def test_a_match_has_to_be_as_long_as_asked_for() -> None:
    history = [5, 1, 2, 9, 6, 5, 1, 2]
    assert list(PromptLookup(3).propose(history, 1, SLOT)) == [9]
    assert not PromptLookup(4).propose(history, 1, SLOT)
