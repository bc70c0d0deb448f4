"""A token sequence and its logits: what sessions and conversations are built on.

Many sequences may share one slot, which holds the keys and values of one of them at a time. A sequence is only its
token ids; asking for logits brings the slot to it, from as long a common prefix as its cache still has.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from gemma_edge.runtime.executors.base import ContextOverflowError, KvSlot, Logits, Snapshot
from gemma_edge.runtime.kv.prefix import reuse_prefix


class CancelledError(Exception):
    """The caller asked to stop. Never leaves this package: a cancelled reply simply ends."""


class TokenSequence:
    """Token ids with the logits that follow them. Not for several threads at once, except `cancel`."""

    def __init__(
        self, slot: KvSlot, lock: AbstractContextManager[object], before_call: Callable[[], None] = lambda: None
    ) -> None:
        """lock: held while the slot is in use; shared by all sequences of a slot.

        before_call: runs before each call into the model, under the lock, and may raise to prevent it.
        """
        self._slot = slot
        self._lock = lock
        self._before_call = before_call
        self._tokens: list[int] = []
        self._snapshot: Snapshot | None = None
        self._cancel = threading.Event()

    @property
    def token_ids(self) -> Sequence[int]:
        """Every token so far, run through the model or not."""
        return tuple(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def context_tokens(self) -> int:
        """How many tokens the sequence can have."""
        return self._slot.context_tokens

    def append(self, token_ids: Sequence[int]) -> None:
        """Adds tokens; they run with the next `logits`. Raises ContextOverflowError, and then adds none."""
        asked = len(self._tokens) + len(token_ids)
        if asked > self.context_tokens:
            raise ContextOverflowError(asked, self.context_tokens)
        self._tokens.extend(token_ids)

    def truncate(self, length: int) -> None:
        """Forgets the tokens at `length` and after."""
        del self._tokens[length:]

    def prefill(self) -> None:
        """Runs every token but the last, so that the next `logits` is one decode step. Raises CancelledError."""
        with self._lock:
            self._bring(self._tokens[:-1])

    def logits(self) -> Logits:
        """The logits of the token after the last one: float32 [V], read-only, valid until the slot runs again.

        Raises CancelledError after `cancel`, at the latest before the next call into the model.
        """
        with self._lock:
            self._bring(self._tokens[:-1])
            self.check()
            return self._slot.decode(self._tokens[-1])

    def mark(self) -> None:
        """Makes it cheap to come back to the present end, however far the sequence goes on (one such place at a time).

        Rings of sliding layers are copied here; without rings nothing needs to be.
        """
        with self._lock:
            self._bring(self._tokens[:-1])  # the last token runs with what follows it
            self._snapshot = self._slot.snapshot()

    def cancel(self) -> None:
        """Makes the present or next `logits` raise CancelledError. May be called from any thread."""
        self._cancel.set()

    def begin(self) -> None:
        """Forgets an earlier `cancel`."""
        self._cancel.clear()

    def _bring(self, wanted: Sequence[int]) -> None:
        position = reuse_prefix(self._slot, wanted, [self._snapshot] if self._snapshot else [])
        if position < len(wanted):
            for _ in self._slot.chunks(wanted[position:]):
                self.check()

    def check(self) -> None:
        """Whether to go on: raises CancelledError after `cancel`, and whatever `before_call` raises."""
        if self._cancel.is_set():
            raise CancelledError
        self._before_call()
