"""Guessing from what was said."""

from typing import Any

import pytest

from gemma_edge.runtime.kv.drafter import Forced, PromptLookup

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


def test_what_a_format_forces_comes_first_and_what_the_text_repeats_after_it() -> None:
    forced: list[int] = [9]
    drafter = Forced(lambda: forced)
    history = [1, 2, 9, 8, 7, 1, 2]
    assert list(drafter.propose(history, 3, SLOT)) == [9, 8, 7]
    assert drafter.certain == 1
    assert list(drafter.propose(history, 1, SLOT)) == [9]
    forced = [5, 6, 4, 3]
    assert list(drafter.propose(history, 3, SLOT)) == [5, 6, 4]
    assert drafter.certain == 3
    history += [1, 2]  # other tokens came than were proposed, and fewer
    forced = [1]
    assert list(drafter.propose(history, 2, SLOT))[:1] == [1]
    forced = []
    assert list(drafter.propose(history, 3, SLOT)) == []
    assert drafter.certain == 0


def test_a_lookup_that_has_seen_more_than_there_is_now() -> None:
    lookup = PromptLookup()
    lookup.propose([1, 2, 3, 1, 2, 5, 1, 2, 6, 9], 1, SLOT)
    assert list(lookup.propose([1, 2, 3, 1, 2], 1, SLOT)) == [3]
