"""A token sequence and its logits: what sessions and conversations are built on.

A sequence is only its token ids. Asking for something has the scheduler borrow a slot of the pool and bring it to the
sequence, from as long a prefix as there is; between two calls a sequence keeps no slot, only the claim to its own.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from gemma_edge.runtime.executors.base import ContextOverflowError, Logits
from gemma_edge.runtime.kv.generate import Decoding, Drawn, TurnTiming, finite
from gemma_edge.runtime.kv.saved import save_state
from gemma_edge.runtime.kv.scheduler import CancelledError, Scheduler, Steps, Task, Work
from gemma_edge.runtime.kv.slots import Lease, SlotPool
from gemma_edge.runtime.kv.speculation import Speculating
from gemma_edge.runtime.kv.turn import Check, Job, Mark, Outcome, Prompt, Turn, reply_steps
from gemma_edge.runtime.text.sampler import log_probability

Item = TypeVar("Item")


class TokenSequence:
    """Token ids with the logits that follow them. Not for several threads at once, except `cancel`."""

    def __init__(
        self,
        scheduler: Scheduler,
        pool: SlotPool,
        before_call: Check = lambda: None,
        *,
        is_passing: bool = False,
        speculating: Sequence[Speculating] = (),
    ) -> None:
        """before_call: runs before each call into the model, and may raise to prevent it.

        is_passing: nobody will go on with it, as `SlotPool.lend` has it. speculating: how replies are guessed, as of
        `Speculation`.
        """
        self._scheduler = scheduler
        self._pool = pool
        self._before_call = before_call
        self._is_passing = is_passing
        self._speculating = speculating
        self._tokens: list[int] = []
        self._owner: weakref.ref[object] = weakref.ref(self)
        self._work: Callable[[], Work[Any] | None] = lambda: None

    @property
    def token_ids(self) -> Sequence[int]:
        """Every token so far, run through the model or not."""
        return tuple(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def context_tokens(self) -> int:
        """How many tokens the sequence can have."""
        return self._pool.context_tokens

    def append(self, token_ids: Sequence[int]) -> None:
        """Adds tokens; they run with the next `logits`. Raises ContextOverflowError, and then adds none."""
        self.check_room(len(token_ids))
        self._tokens.extend(token_ids)

    def check_room(self, tokens: int) -> None:
        """Raises ContextOverflowError where so many more do not fit."""
        asked = len(self._tokens) + tokens
        if asked > self.context_tokens:
            raise ContextOverflowError(asked, self.context_tokens)

    def truncate(self, length: int) -> None:
        """Forgets the tokens at `length` and after."""
        del self._tokens[length:]

    def prefill(self) -> int:
        """Runs every token but the last, so that the next `logits` is one decode step; how many had to run.

        Raises CancelledError after `cancel`.
        """
        wanted = self._tokens[:-1]
        return self._run(wanted, lambda lease: max(0, len(wanted) - lease.cached))

    def logits(self) -> Logits:
        """The logits of the token after the last one: float32 [V], the caller's own. Raises CancelledError."""
        *wanted, last = self._tokens
        return self._run(wanted, lambda lease: lease.slot.decode(last))

    def mark(self) -> None:
        """Makes it cheap to come back to the present end, however far the sequence goes on (one such place at a time).

        Rings of sliding layers are copied here; without rings nothing needs to be.
        """
        self._run(self._tokens[:-1], lambda lease: lease.mark())  # the last token runs with what follows it

    def save(self, path: Path) -> None:
        """Writes keys and values of every token but the last to a file, for `Engine.load_cache`. Raises OutputError."""
        pool = self._pool
        _ = pool.digest  # the first time takes a while, and other replies are being written meanwhile
        self._run(self._tokens[:-1], lambda lease: save_state(lease.slot.state(), pool.digest, path))

    def score(self, target: Sequence[int]) -> list[float]:
        """The natural log probability of each target token after the sequence and the target tokens before it.

        Leaves the sequence as it was. Raises ContextOverflowError when the target does not fit; CancelledError;
        ExecutorError: the logits are not finite.
        """
        self.check_room(len(target))
        *wanted, last = self._tokens

        def steps(work: Work[float]) -> Steps:
            job = self._job(work)
            lease = yield from job.lend(wanted)
            try:
                yield from job.bring(lease, wanted)
                lease = yield from job.follow(lease, wanted)
                for token_id, before in zip(target, [last, *target], strict=False):
                    job.check()
                    work.put(log_probability(finite(lease.slot.decode(before)), token_id))
                    yield
            finally:
                lease.release()

        return self._read(self._submit(steps))

    def reply(self, prompt: Prompt, how: Decoding, mark: Mark | None = None) -> Turn:
        """Begins to write a reply to what is here and the prompt; both are added as the reply is read.

        It ends after a stop sequence, `max_output_tokens`, or when the context is full. mark: also make it cheap to
        come back there, as `mark` does. `how.sampler` moves on as the reply is read.

        Raises ContextOverflowError: the prompt does not fit, with room for one token of a reply; nothing was begun.
        Reading raises it of a prompt that had to be made first, and all that stops the model.
        """
        if not callable(prompt):
            self.check_room(len(prompt) + 1)
        outcome, held = Outcome(), tuple(self._tokens)
        own = replace(how, sampler=how.sampler.copy())

        def steps(work: Work[Drawn]) -> Steps:
            return reply_steps(self._job(work), held, prompt, own, outcome, mark, self._speculating)

        task = self._submit(steps)
        return Turn(task, outcome, self, how.sampler, TurnTiming())

    def cancel(self) -> None:
        """Ends what is running for this sequence. May be called from any thread; without effect where nothing is."""
        work = self._work()
        if work is not None:
            work.cancel()

    def _job(self, work: Work[Any]) -> Job:
        return Job(work, self._pool, self._owner, self._before_call, self._is_passing)

    def _run(self, wanted: Sequence[int], then: Callable[[Lease], Item]) -> Item:
        """What `then` makes of a slot that holds exactly these tokens. Raises CancelledError."""

        def steps(work: Work[Item]) -> Steps:
            job = self._job(work)
            lease = yield from job.lend(wanted)
            try:
                yield from job.bring(lease, wanted)
                job.check()
                lease = yield from job.follow(lease, wanted)
                work.put(then(lease))
            finally:
                lease.release()

        [result] = self._read(self._submit(steps))
        return result

    def _submit(self, steps: Callable[[Work[Item]], Steps]) -> Task[Item]:
        def begin(work: Work[Item]) -> Steps:
            self._work = weakref.ref(work)  # before it can run, so that no `cancel` misses it
            return steps(work)

        return self._scheduler.submit(begin)

    def _read(self, task: Task[Item]) -> list[Item]:
        results = list(task)
        if task.is_cancelled:
            raise CancelledError
        return results
