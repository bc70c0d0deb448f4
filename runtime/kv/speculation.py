"""Decode steps of a reply, several at once where they can be guessed.

What is drawn decides: a guess only says which token is run before it is known to be drawn. Each token is still drawn
from the logits that a plain step gives, with penalties, response format, bias and generator as ever, and a guess that
is not drawn is taken back. So the text is that of plain steps, greedy or sampled with the same seed, whatever is asked
for. For a guess that is certain of itself this is speculative sampling (Leviathan et al., 2023): it stands with the
probability that the model gives it, and otherwise what comes instead has the model's distribution without it.
What a response format forces (`Forced`) is run ahead in the same way, and always stands.

Whether guessing pays is kept in an account of decode steps, one for each way of it: guessing and verifying cost what
they take longer than a step, and each guess that stands earns one. It is overdrawn by little, and then guessing rests;
it may try again by and by.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from gemma_edge.runtime.executors.base import ClosedError, KvSlot, Logits
from gemma_edge.runtime.kv.batching import Step
from gemma_edge.runtime.kv.drafter import Drafter, Forced
from gemma_edge.runtime.kv.generate import Guessed
from gemma_edge.runtime.kv.prices import Prices
from gemma_edge.runtime.media.soft_tokens import SoftToken

_START, _MOST = 1.0, 4.0
"""Steps that a reply may lose at its beginning, or what one verification costs if that is more, and at most, once
guessing has earned them."""

_ALLOWANCE = 0.01
"""Of each plain step, what may be lost by trying again."""


@dataclass(frozen=True)
class Speculating:
    """One way to guess the replies of a decoder. drafter: makes one for a reply. prices: of its guesses, verified."""

    drafter: Callable[[], Drafter]
    prices: Prices = field(default_factory=Prices)


class _Way:
    """The same, of one reply, with its account."""

    def __init__(self, how: Speculating) -> None:
        self.prices = how.prices
        self._drafter = how.drafter()
        self._earned = 0.0  # steps, beside what may be lost at the beginning
        self._wanted = 0  # guesses that the next verification shall have; 0: the fewest

    def guesses(self, slot: KvSlot, tokens: Sequence[int], end: int) -> tuple[list[int], int]:
        """What to run after the last token, and the rows of the call that runs it; nothing where it would not pay."""
        costs = {rows: self.prices.of(rows) - 1 for rows in slot.verify_tokens()}
        balance = max(_START, min(costs.values(), default=0)) + self._earned
        affordable = [rows for rows, cost in costs.items() if cost <= min(balance, rows - 1)]
        most = min(max(affordable, default=1), max(min(affordable, default=1), self._wanted + 1)) - 1
        proposed = self._drafter.propose(tokens, min(most, end - len(tokens) - 1), slot) if most > 0 else ()
        guesses: list[int] = []
        for guess in proposed:
            if isinstance(guess, SoftToken):  # of an image or a recording: never drawn
                break
            guesses.append(guess)
        rows = next((rows for rows in affordable if rows > len(guesses)), 0)
        if not guesses or len(guesses) < costs[rows]:  # could not earn what it costs
            return [], 0
        self._wanted = 2 * len(guesses) + 1  # if all of them stand
        return guesses, rows

    @property
    def certain(self) -> int:
        """How many of the last guesses, the first of them, could be no other tokens."""
        return self._drafter.certain if isinstance(self._drafter, Forced) else 0

    def failed(self) -> None:
        """A guess of the last ones did not stand."""
        self._wanted = 0

    def earn(self, steps: float) -> None:
        """So many were saved, or lost."""
        self._earned = min(_MOST - _START, self._earned + steps)

    def rest(self, seconds: float) -> None:
        """A plain step took so long."""
        self.prices.add(1, seconds)
        if self._earned < 0:
            self.earn(_ALLOWANCE)


class Speculation:
    """One reply's decode steps.

    Args:
        ways: of guessing, asked in turn until one guesses; none takes plain steps.
        end: the most tokens there will be; nothing is guessed beyond.
    """

    def __init__(self, ways: Sequence[Speculating], end: int) -> None:
        self._ways = [_Way(how) for how in ways]
        self._end = end
        self._guessed: _Way | None = None  # what made the guesses that are held
        self._goes_well = False  # all guesses of the last step stood, and there were some
        self._slot: KvSlot | None = None  # what holds guesses
        self._pending: deque[tuple[int, Logits, Guessed]] = deque()  # each guess with the logits after it
        self.last = Guessed()

    def is_plain(self, slot: KvSlot, tokens: Sequence[int]) -> bool:
        """Whether `decode` may take a plain step, which then can be taken with other replies' instead.

        Not where the next token is there already, nor while all that is guessed stands. Guesses that do not are taken
        back.
        """
        if not self._ways:
            return True
        if self._stands(slot, tokens):
            return False
        self._give_up(slot, tokens)
        return not self._goes_well

    def decode(self, slot: KvSlot, tokens: Sequence[int], step: Step | None = None) -> Logits:
        """The logits after `tokens`, float32 [V]. slot: holds all of them but the last, and maybe guesses after it.

        step: that of the last token, which may have run with others.
        """
        if step is not None and step.logits is not None and step.lease.slot is slot:
            self.last = Guessed()
            return step.logits
        if not self._ways:
            return slot.decode(tokens[-1])
        if self._guessed is not None and self._stands(slot, tokens):
            self._guessed.earn(1.0)
            _, logits, self.last = self._pending.popleft()
            return logits
        self._give_up(slot, tokens)
        for way in self._ways:
            started = time.perf_counter()
            guesses, rows = way.guesses(slot, tokens, self._end)
            if guesses:
                verified = slot.verify([tokens[-1], *guesses])
                way.prices.add(rows, time.perf_counter() - started)
                way.earn(1.0 - way.prices.of(rows))
                self._guessed, self._slot, self._goes_well = way, slot, True
                for at, guess in enumerate(guesses):
                    is_forced = at < way.certain
                    self._pending.append((guess, verified[at + 1], Guessed(0, not is_forced, is_forced)))
                self.last = Guessed(drafted=len(guesses) - way.certain)
                first: Logits = verified[0]
                return first
        self._goes_well = False
        started = time.perf_counter()
        logits = slot.decode(tokens[-1])
        seconds = time.perf_counter() - started
        for way in self._ways:
            way.rest(seconds)
        self.last = Guessed()
        return logits

    def _stands(self, slot: KvSlot, tokens: Sequence[int]) -> bool:
        """Whether the last token was guessed, and the slot still holds it and the guesses after it."""
        return (
            self._slot is slot
            and bool(self._pending)
            and self._pending[0][0] == tokens[-1]
            and slot.position == len(tokens) - 1 + len(self._pending)
        )

    def _give_up(self, slot: KvSlot, tokens: Sequence[int]) -> None:
        """Guesses that are held, if there are any, did not stand."""
        if self._guessed is not None and self._pending:
            self._guessed.failed()
            self._goes_well = False
        self._take_back(slot, len(tokens) - 1)

    def _take_back(self, slot: KvSlot, position: int) -> None:
        self._pending.clear()
        if self._slot is slot and slot.position > position:
            slot.rewind(position)
        self._slot = None

    def settle(self, length: int) -> None:
        """The reply has ended with so many tokens before the last drawn one: what was only guessed is taken back."""
        if self._slot is not None:
            with suppress(ClosedError):
                self._take_back(self._slot, length)
