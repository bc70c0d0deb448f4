"""One reply, from the prompt to its last token: what the worker does for it, and the handle of whoever reads it."""

import time
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
from typing import Protocol, Self, TypeAlias

from gemma_edge.profiles.budget import OverBudget
from gemma_edge.runtime.executors.base import ContextOverflowError, Logits
from gemma_edge.runtime.kv.batching import Step
from gemma_edge.runtime.kv.drafter import Forced
from gemma_edge.runtime.kv.generate import Decoding, Drawn, Reason, TurnTiming, draw
from gemma_edge.runtime.kv.scheduler import Steps, Task, Work
from gemma_edge.runtime.kv.slots import Lease, SlotPool
from gemma_edge.runtime.kv.speculation import Speculating, Speculation
from gemma_edge.runtime.text.sampler import Sampler

Check: TypeAlias = Callable[[], None]
"""Called before each call into the model; may raise to prevent it."""

Prompt: TypeAlias = Sequence[int] | Callable[[Check], Sequence[int]]
"""Tokens, or what makes them: images and recordings are encoded by the thread that has the model."""


@dataclass(frozen=True)
class Usage:
    """Tokens of a reply.

    prompt: all that stood before it, earlier turns included. cached: of those, what a slot still held. run: what had to
    run, the last one with the first token. generated: drawn, a stop token included.
    """

    prompt: int = 0
    cached: int = 0
    run: int = 0
    generated: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.run + other.run,
            self.generated + other.generated,
        )


@dataclass
class Outcome:
    """What the worker tells of a reply beside its tokens."""

    prompt: Sequence[int] = ()  # the tokens added for it, once they are known
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reason: Reason | None = None
    media_s: float = 0.0


@dataclass(frozen=True)
class Job:
    """What a task does on the worker for one token sequence, which may be gone meanwhile."""

    work: Work[object]
    pool: SlotPool
    owner: "weakref.ref[object]"
    before_call: Check
    is_passing: bool = False

    def check(self) -> None:
        """Whether to go on: raises CancelledError where nobody waits, and what `before_call` raises."""
        self.work.check()
        self.before_call()

    def step(self, lease: Lease, token_id: int) -> Step:
        """What a reply takes next, with others where that can be."""
        return Step(self.pool.decoder, lease, token_id, self.check)

    def lend(self, wanted: Sequence[int]) -> Generator[None, None, Lease]:
        """A slot with the longest prefix of `wanted`; waits while every slot is lent. Whoever gets it releases it."""
        while (lease := self.pool.lend(self.owner, wanted, is_passing=self.is_passing)) is None:
            self.work.ahead = 0  # it holds up nobody
            yield
        return lease

    def bring(self, lease: Lease, wanted: Sequence[int]) -> Steps:
        """Run what the slot does not hold of these tokens, one call into the model at a time."""
        held = lease.bring(wanted)
        for position in lease.slot.chunks(wanted[held:]):
            self.check()
            if not lease.is_current:
                return
            self.work.ahead = len(wanted) - position + 1
            yield

    def follow(self, lease: Lease, wanted: Sequence[int]) -> Generator[None, None, Lease]:
        """The same lease while its model is the one that runs, else one of that model which holds exactly `wanted`."""
        while not lease.is_current:
            lease.release()
            lease = yield from self.lend(wanted)
            try:
                yield from self.bring(lease, wanted)
            except BaseException:
                lease.release()
                raise
        return lease


class Mark(Enum):
    """Where it shall be cheap to come back to: before the prompt, or at its end, before the reply."""

    BEFORE_PROMPT = auto()
    BEFORE_REPLY = auto()


def reply_steps(
    job: Job,
    held: Sequence[int],
    prompt: Prompt,
    how: Decoding,
    outcome: Outcome,
    mark: Mark | None,
    speculating: Sequence[Speculating],
) -> Steps:
    """Puts out each `Drawn` of the reply to `held` and `prompt`. mark: see `TokenSequence.reply`."""
    try:
        if callable(prompt):
            started = time.perf_counter()
            prompt = prompt(job.check)
            outcome.media_s = time.perf_counter() - started
        tokens = [*held, *prompt]
        room = job.pool.context_tokens - len(tokens)
        if room < 1:
            raise ContextOverflowError(len(tokens) + 1, job.pool.context_tokens)
        outcome.prompt, outcome.prompt_tokens = prompt, len(tokens)
        lease = yield from job.lend(tokens[:-1])
        ways = list(speculating)
        if ways and how.constraint is not None:
            ways.insert(0, Speculating(partial(Forced, how.constraint.forced), job.pool.prices))
        steps = Speculation(ways, len(tokens) + min(room, how.max_output_tokens or room))
        try:
            outcome.cached_tokens = lease.cached
            started = time.perf_counter()
            if mark is Mark.BEFORE_PROMPT and held and lease.slot.position <= len(held):
                if lease.slot.position < len(held):
                    yield from job.bring(lease, held[:-1])  # the last token runs with what follows it
                lease.mark()
            yield from job.bring(lease, tokens[:-1])
            lease = yield from job.follow(lease, tokens[:-1])
            if mark is Mark.BEFORE_REPLY:
                lease.mark()
            job.work.ahead = 0
            step: Step | None = None

            def decode(_token_id: int) -> Logits:
                return steps.decode(lease.slot, tokens, step)  # of the lease there is then

            drawing = draw(decode, tokens[-1], room, how)
            is_first = True
            while outcome.reason is None:
                job.work.next = step = job.step(lease, tokens[-1]) if steps.is_plain(lease.slot, tokens) else None
                if not is_first or job.pool.decoder.batch_rows:  # else nobody's step would be run with the first
                    yield
                job.check() if step is None else step.resume()
                if not lease.is_current:
                    steps.settle(len(tokens) - 1)  # while the slot is this reply's: another may have it soon
                    lease = yield from job.follow(lease, tokens[:-1])
                waited_s = time.perf_counter() - started if is_first else 0.0 if step is None else step.seconds
                drawn = next(drawing)
                together = 1 if step is None else step.rows
                seconds, is_first = drawn.seconds + waited_s, False
                job.work.put(replace(drawn, seconds=seconds, guessed=steps.last, together=together))
                tokens.append(drawn.token_id)
                outcome.reason = drawn.reason
        finally:
            steps.settle(len(tokens) - 1)
            lease.release()
    except OverBudget:
        outcome.reason = Reason.BUDGET
        raise


class Grows(Protocol):
    """What a reply is added to as it is read."""

    def append(self, token_ids: Sequence[int]) -> None:
        """Adds tokens."""


class Turn:
    """A reply that is being written: its token ids, to be read by `for` or, without a thread, by `async for`.

    It is written whether it is read or not, but only what is read counts: the sequence has the tokens that were read,
    and the sampler goes on from there. Cancelling, or losing the turn, stops it and drops the rest.

    timing: of what was read. media_s is known with the first token. drawn: what was read last.
    """

    def __init__(
        self, task: Task[Drawn], outcome: Outcome, sequence: Grows, sampler: Sampler, timing: TurnTiming
    ) -> None:
        self._task = task
        self._outcome = outcome
        self._sequence = sequence
        self._sampler = sampler
        self.timing = timing
        self.drawn: Drawn | None = None
        self._read = 0

    @property
    def reason(self) -> Reason | None:
        """Why it ended; None until then."""
        return Reason.CANCELLED if self._task.is_cancelled else self._outcome.reason

    @property
    def usage(self) -> Usage:
        """Of what was read so far."""
        outcome = self._outcome
        run = outcome.prompt_tokens - outcome.cached_tokens
        return Usage(outcome.prompt_tokens, outcome.cached_tokens, run, self._read)

    def cancel(self) -> None:
        """End it before the next call into the model; unread tokens are dropped. May be called from any thread."""
        self._task.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> int:
        return self._take(next(self._task))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        return self._take(await anext(self._task))

    def _take(self, drawn: Drawn) -> int:
        self._sampler.state, self.drawn = drawn.sampler_state, drawn
        timing, outcome = self.timing, self._outcome
        if self._read:
            self._sequence.append([drawn.token_id])
            timing.token_s.append(drawn.seconds)
        else:
            self._sequence.append([*outcome.prompt, drawn.token_id])
            timing.media_s = outcome.media_s
            timing.prefill_tokens = len(outcome.prompt)
            timing.run_tokens = outcome.prompt_tokens - outcome.cached_tokens
            timing.time_to_first_token_s = drawn.seconds
        timing.add_call(drawn.guessed, drawn.together)
        self._read += 1
        return drawn.token_id
