"""Guessing how a reply goes on, so that several tokens can be verified at the price of little more than one.

A guess costs time where it is wrong, and never changes the text.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from gemma_edge.runtime.executors.base import KvSlot

_SHORTEST, _LONGEST = 2, 32
"""Tokens that have to agree before what followed them is proposed, and how many are compared."""

_CANDIDATES = 16
"""Places that are compared, the latest of them."""


class Drafter(Protocol):
    """What guesses. One for each reply, so it may keep what it has seen."""

    def propose(self, history: Sequence[int], n: int, slot: KvSlot, /) -> Sequence[int]:
        """Up to n tokens that may come next; none where there is no guess.

        history: prompt and reply so far; of one reply, each call's begins with that of the call before. slot: holds all
        of it but the last token, and is left as it is.
        """


class PromptLookup:
    """Proposes what followed the last time that the text was as it is now: copying, of a prompt or of the reply.

    Needs no weights (Saxena, "Prompt Lookup Decoding", 2023). Of all places where the last two tokens occurred before,
    the one counts whose tokens before agree furthest, the latest among equals.

    shortest: nothing is proposed where fewer tokens agree.
    """

    def __init__(self, shortest: int = _SHORTEST) -> None:
        self._shortest = shortest
        self._ends: dict[tuple[int, ...], list[int]] = {}  # where each two tokens ended, rising
        self._indexed = 0  # tokens of the history whose ends are there

    def propose(self, history: Sequence[int], n: int, _slot: KvSlot) -> Sequence[int]:
        """See Drafter."""
        for end in range(max(self._indexed, _SHORTEST), len(history)):  # not the last two: they are what is looked up
            self._ends.setdefault(tuple(history[end - _SHORTEST : end]), []).append(end)
        self._indexed = max(self._indexed, len(history))
        known = self._ends.get(tuple(history[len(history) - _SHORTEST :]), ())[-_CANDIDATES:]
        ends = [end for end in known if end < len(history)]
        best = max(ends, key=lambda end: (_agreeing(history, end), end), default=None)
        if best is None or _agreeing(history, best) < self._shortest:
            return ()
        guesses: list[int] = []
        for at in range(best, best + n):  # what repeats goes on with what is guessed
            guesses.append(history[at] if at < len(history) else guesses[at - len(history)])
        return guesses


class Forced:
    """Proposes what a response format leaves no choice about, and then what the text repeats, if it does.

    forced: the tokens that come next whatever the logits are. certain: how many of the last proposal's were such.
    """

    def __init__(self, forced: Callable[[], Sequence[int]]) -> None:
        self._forced = forced
        self._lookup = PromptLookup()
        self.certain = 0

    def propose(self, history: Sequence[int], n: int, slot: KvSlot) -> Sequence[int]:
        """See Drafter."""
        forced = self._forced()[:n]
        self.certain = len(forced)
        more = self._lookup.propose([*history, *forced], n - len(forced), slot) if forced else ()
        return [*forced, *more]


class BundledDrafter:
    """Proposes what the bundle's own drafter finds likeliest, from the model's hidden state and keys and values."""

    def propose(self, history: Sequence[int], n: int, slot: KvSlot) -> Sequence[int]:
        """See Drafter."""
        return slot.draft(history[-1], n)


def _agreeing(history: Sequence[int], end: int) -> int:
    """How many tokens before `end` are the last ones of the history, up to _LONGEST."""
    longest = min(_LONGEST, end)
    back = 0
    while back < longest and history[end - 1 - back] == history[len(history) - 1 - back]:
        back += 1
    return back
