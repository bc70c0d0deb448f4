"""The slots of one decoder: as many as memory is meant for, each lent to one token sequence at a time.

A slot remembers whose tokens it holds for as long as that sequence lives. Who comes back gets its own; who is new gets
a slot that nobody lives in, then a new one while there may be more, then the one that has most of what is wanted, and
of several the one used longest ago. What another slot already holds of the wanted tokens is copied, not run again.

Where slots are kept (a server's are, whose sequences end with each request), a chat is known by its tokens: whoever
wants all that stood before a slot's last reply goes on with it. Who is new gets a slot that holds no chat, then the
chat used longest ago, which is saved first where there is a place for it. What only passes through, a title for a chat
for instance, has one slot that no chat takes.

Where the decoder holds several models, a slot's keys and values are of one of them, and nothing to the others: whoever
comes back after a switch gets a slot of the model that runs, with what that has run of the tokens before.
"""

import hashlib
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.executors.base import Decoder, KvSlot, Logits, SeveralModels, Snapshot
from gemma_edge.runtime.kv.prefix import reach, reuse_prefix
from gemma_edge.runtime.kv.prices import Prices
from gemma_edge.runtime.kv.store import FolderStore

_log = logging.getLogger(__name__)

# A copy of E2B's caches takes 20 ms at most, a row of prefill 12 ms.
COPY_ROWS = 8


@dataclass(eq=False)
class _Held:
    slot: KvSlot
    owner: "weakref.ref[object] | None" = None
    snapshot: Snapshot | None = None
    last_used: int = 0
    is_lent: bool = False
    is_chat: bool = False
    marked: int = 0  # tokens that stood before the last reply
    is_saved: bool = False
    model: str = ""  # whose keys and values it holds, where there are several
    is_current: bool = True  # whether that is the one that runs

    def continues(self, wanted: Sequence[int]) -> bool:
        """Whether `wanted` goes on with what it holds, or asks the same again."""
        shared = self.reach(wanted)
        return self.slot.position - shared < COPY_ROWS or 0 < self.marked <= shared

    @property
    def snapshots(self) -> Sequence[Snapshot]:
        return () if self.snapshot is None else (self.snapshot,)

    @property
    def has_owner(self) -> bool:
        return self.owner is not None and self.owner() is not None

    def reach(self, wanted: Sequence[int]) -> int:
        return reach(self.slot, wanted, self.snapshots) if self.is_current else 0


class Lease:
    """A slot lent to one sequence. cached: how many of the wanted tokens it held when it was lent."""

    def __init__(self, pool: "SlotPool", held: _Held, cached: int) -> None:
        self._pool = pool
        self._held = held
        self.slot = held.slot
        self.cached = cached
        self._is_released = False

    @property
    def is_current(self) -> bool:
        """Whether its slot's model is still the one that runs; what it holds is of no other."""
        return self._held.is_current

    def bring(self, wanted: Sequence[int]) -> int:
        """As `reuse_prefix`, with the pool's snapshot of this slot."""
        return reuse_prefix(self.slot, wanted, self._held.snapshots)

    def mark(self) -> None:
        """Make it cheap to come back to the present position, if the pool's limit allows (one such place a slot)."""
        self._pool.take_snapshot(self._held)

    def release(self) -> None:
        """Give it back; what it holds stays. Twice is fine."""
        if not self._is_released:
            self._held.is_lent = False
        self._is_released = True


class SlotPool:
    """See above. For one thread at a time.

    Args:
        decoder: whose slots they are.
        context_tokens: of each slot; None for the longest.
        count: at most, at least 1. Each is made when it is first needed.
        snapshot_bytes: what snapshots of rings may take together; by default one for each slot.
        keep: rather make a new slot than overwrite one whose sequence is gone but whose tokens may be wanted again.
        several: where the decoder is of several models; the large one is the first that runs.
    """

    def __init__(
        self,
        decoder: Decoder,
        context_tokens: int | None,
        count: int,
        snapshot_bytes: int | None = None,
        *,
        keep: bool = False,
        several: SeveralModels | None = None,
    ) -> None:
        self.decoder = self._decoder = decoder
        self.prices = Prices()  # of calls that verify, where nothing has to be guessed
        self._several = several
        self._large = self.model = several.models[0] if several is not None else ""
        self._context_tokens = context_tokens
        self.count = count
        one = decoder.snapshot_bytes(context_tokens)
        self._snapshot_limit_bytes = count * one if snapshot_bytes is None else snapshot_bytes
        self._keep = keep
        self._is_short = False  # of memory
        self._store: FolderStore | None = None
        self._held = [_Held(decoder.new_slot(context_tokens), model=self.model)]
        self._drafts: tuple[str, KvSlot] | None = None  # the model that guesses, and its slot
        self._clock = 0
        self._has_passing = False

    @property
    def can_draft(self) -> bool:
        """Whether the decoder has a drafter."""
        return self._decoder.can_draft

    @property
    def context_tokens(self) -> int:
        """Positions of each slot."""
        return self._held[0].slot.context_tokens

    @property
    def nbytes(self) -> int:
        """Memory set aside for keys and values of all slots made so far; pages count once they are written."""
        return sum(self.bytes_by_model.values())

    @property
    def bytes_by_model(self) -> dict[str, int]:
        """`nbytes` by the model whose keys and values they are; of one model, all under its name ""."""
        found = dict.fromkeys([""] if self._several is None else self._several.models, 0)
        for held in tuple(self._held):
            found[held.model] += held.slot.nbytes
        if self._drafts is not None:
            model, slot = self._drafts
            found[model] += slot.nbytes
        return found

    def draft_slot(self, model: str) -> KvSlot:
        """One more, of that model, that no sequence gets: what it holds are guesses. Closed where memory is short."""
        assert self._several is not None
        assert self._drafts is None, "one guesses"
        slot = self._several.switched(self._decoder.new_slot(self._context_tokens), model)
        self._drafts = model, slot
        return slot

    def use(self, model: str, *, is_short: bool = False) -> None:
        """Run this model from now on. Slots that hold another one's keys and values keep them until they are needed.

        is_short: memory is; what other models have written is forgotten, and slots that nobody has are released.
        """
        self.save()
        self.model, self._is_short = model, is_short
        self._store = None if self._store is None else self._store.of(self.digest)
        for held in self._held:
            held.is_current = held.model == model
        if is_short:
            self._close_drafts()
            old = [held for held in self._held if not held.is_current]
            idle = [held for held in old if not held.is_lent]
            for held in idle[1:] if len(idle) == len(self._held) else idle:  # one stays
                held.slot.close()
                self._held.remove(held)
            for held in old:
                held.snapshot, held.marked = None, 0

    def _switch(self, held: _Held) -> None:
        """To the model that runs; it is empty then."""
        assert self._several is not None
        held.slot = self._several.switched(held.slot, self.model)
        held.model, held.is_current = self.model, True
        held.snapshot, held.marked, held.is_chat, held.is_saved = None, 0, False, False

    @property
    def snapshot_bytes(self) -> int:
        """What snapshots take now."""
        snapshots = {id(snapshot): snapshot for held in tuple(self._held) for snapshot in held.snapshots}
        return sum(snapshot.nbytes for snapshot in snapshots.values())

    @property
    def digest(self) -> str:
        """Of the decoder, and of the model that runs: what saved keys and values belong to."""
        own = self._decoder.digest
        return own if self.model == self._large else hashlib.sha256(f"{own} {self.model}".encode()).hexdigest()

    def keep(self, store: FolderStore | None) -> None:
        """From now on, as with `keep`. store: where chats are saved that lose their slot, and found again."""
        self._keep, self._store = True, store

    def lend(self, owner: "weakref.ref[object]", wanted: Sequence[int], *, is_passing: bool = False) -> Lease | None:
        """A slot for a sequence, the owner, that wants these tokens run; None while all are lent.

        It holds the longest prefix of them that can be had without running the model. is_passing: nobody will go on
        with it, so no chat shall lose its slot for it.

        Raises ExecutorError: no memory for a first slot, or the decoder is closed.
        """
        self._has_passing |= is_passing
        found = self._choose(owner, wanted, is_passing)
        if found is None:
            return None
        for held in self._held:
            if held.owner is owner:
                held.owner = None
        if not found.is_current:
            self._switch(found)
        self._clock += 1
        found.owner, found.last_used = owner, self._clock
        if self._keep:
            goes_on = found.slot.position >= COPY_ROWS and found.continues(wanted)
            if not goes_on:
                self._save(found)
                self._load(found, wanted)
            is_answered = 0 < found.marked < found.reach(wanted)  # its last reply is part of what is wanted
            found.is_chat = not is_passing or (goes_on and (found.is_chat or is_answered))
            found.is_saved = False
        held_rows = found.reach(wanted)
        if len(wanted) - held_rows >= COPY_ROWS:
            source = max(self._held, key=lambda held: held.reach(wanted))
            if source.reach(wanted) - held_rows >= COPY_ROWS:
                found.slot.set_state(source.slot.state())
                found.snapshot = source.snapshot
                found.marked = 0
        cached = reuse_prefix(found.slot, wanted, found.snapshots)
        if found.snapshot is not None and found.snapshot.token_ids != tuple(wanted[: len(found.snapshot.token_ids)]):
            found.snapshot = None  # of tokens that are gone
        if found.marked > cached:
            found.marked = 0
        found.is_lent = True
        return Lease(self, found, cached)

    def _choose(self, owner: "weakref.ref[object]", wanted: Sequence[int], is_passing: bool) -> _Held | None:
        idle = [held for held in self._held if not held.is_lent]
        own = next((held for held in idle if held.owner is owner), None)
        if own is not None and (own.is_current or self._is_short):
            return own

        def best(among: list[_Held]) -> _Held:
            return max(among, key=lambda held: (held.reach(wanted), -held.last_used))

        free = [held for held in idle if not held.has_owner]
        goes_on = [held for held in free if (held.continues(wanted) if self._keep else held.is_current)]
        if goes_on:
            return best(goes_on)
        if len(self._held) < self.count:
            slot = self._decoder.new_slot(self._context_tokens)
            self._held.append(_Held(slot, model=self._large, is_current=self.model == self._large))
            return self._held[-1]
        if own is not None:  # what another model wrote there goes
            return own
        if free:
            return self._given_up(free, is_passing)
        return best(idle) if idle else None

    def _given_up(self, free: Sequence[_Held], is_passing: bool) -> _Held:
        """The slot whose tokens are worth least."""
        chats = [held for held in free if held.is_chat]
        is_full = self._has_passing and 1 < self.count <= 1 + sum(held.is_chat for held in self._held)
        among = chats if is_full and chats and not is_passing else free
        return min(among, key=lambda held: (held.is_chat, held.last_used))

    def save(self) -> None:
        """Save every chat that is not."""
        for held in self._held:
            if not held.is_lent:
                self._save(held)

    def _save(self, held: _Held) -> None:
        if self._store is not None and held.is_chat and held.is_current and not held.is_saved:
            state, mark = held.slot.state(), held.snapshot
            is_before = mark is not None and mark.token_ids == state.token_ids[: len(mark.token_ids)]
            state = replace(state, mark=mark if is_before else None)
            held.is_saved = self._store.put(state, held.slot.earliest_rewind)

    def _load(self, held: _Held, wanted: Sequence[int]) -> None:
        """What the store has more of these tokens than any slot."""
        here = max(other.reach(wanted) for other in self._held)
        if self._store is None or (saved := self._store.best(wanted, here + COPY_ROWS)) is None:
            return
        try:
            with self._store.opened(saved) as state:
                mark = state.mark
                held.snapshot = None if mark is None else replace(mark, rings=dict(mark.rings))
                held.slot.set_state(state)
                held.marked = 0 if mark is None else len(mark.token_ids)
        except GemmaEdgeError as error:
            _log.warning("%s; it is removed", error)
            self._store.drop(saved)
            held.slot.reset()  # some of it may have been filled
            held.snapshot, held.marked = None, 0

    def take_snapshot(self, held: _Held) -> None:
        """Of a slot's rings, instead of the one it had; others make room, the one used longest ago first."""
        held.snapshot, held.marked = None, held.slot.position
        needed = self._decoder.snapshot_bytes(self._context_tokens)
        if not needed:
            return
        for other in sorted(self._held, key=lambda other: other.last_used):
            if self.snapshot_bytes + needed <= self._snapshot_limit_bytes:
                break
            other.snapshot = None
        if self.snapshot_bytes + needed <= self._snapshot_limit_bytes:
            held.snapshot = held.slot.snapshot()

    def probe(self, token_id: int) -> Logits:
        """The logits after one more token in a slot that has room for it, which is then as it was, lent or not.

        Where none has room it runs in a new slot, which is gone afterwards.
        """
        idle_first = sorted(self._held, key=lambda held: held.is_lent)
        held = next((held for held in idle_first if held.slot.position < held.slot.context_tokens), None)
        if held is None:
            slot = self._decoder.new_slot(self._context_tokens)
            try:
                return slot.decode(token_id)
            finally:
                slot.close()
        before = held.slot.snapshot()
        try:
            return held.slot.decode(token_id)
        finally:
            held.slot.restore(before)

    def _close_drafts(self) -> None:
        if self._drafts is not None:
            self._drafts[1].close()
            self._drafts = None

    def close(self) -> None:
        """Release the memory of all slots."""
        self._close_drafts()
        for held in self._held:
            held.slot.close()
            held.snapshot = None
