"""The slots of one decoder: as many as memory is meant for, each lent to one token sequence at a time.

A slot remembers whose tokens it holds for as long as that sequence lives. Who comes back gets its own; who is new gets
a slot that nobody lives in, then a new one while there may be more, then the one that has most of what is wanted, and
of several the one used longest ago. What another slot already holds of the wanted tokens is copied, not run again.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from gemma_edge.runtime.executors.base import Decoder, KvSlot, Logits, Snapshot
from gemma_edge.runtime.kv.prefix import reach, reuse_prefix

# A copy of E2B's caches takes 20 ms at most, a row of prefill 12 ms.
COPY_ROWS = 8


@dataclass(eq=False)
class _Held:
    slot: KvSlot
    owner: "weakref.ref[object] | None" = None
    snapshot: Snapshot | None = None
    last_used: int = 0
    is_lent: bool = False

    @property
    def snapshots(self) -> Sequence[Snapshot]:
        return () if self.snapshot is None else (self.snapshot,)

    @property
    def has_owner(self) -> bool:
        return self.owner is not None and self.owner() is not None

    def reach(self, wanted: Sequence[int]) -> int:
        return reach(self.slot, wanted, self.snapshots)


class Lease:
    """A slot lent to one sequence. cached: how many of the wanted tokens it held when it was lent."""

    def __init__(self, pool: "SlotPool", held: _Held, cached: int) -> None:
        self._pool = pool
        self._held = held
        self.slot = held.slot
        self.cached = cached

    def bring(self, wanted: Sequence[int]) -> int:
        """As `reuse_prefix`, with the pool's snapshot of this slot."""
        return reuse_prefix(self.slot, wanted, self._held.snapshots)

    def mark(self) -> None:
        """Make it cheap to come back to the present position, if the pool's limit allows (one such place a slot)."""
        self._pool.take_snapshot(self._held)

    def release(self) -> None:
        """Give it back; what it holds stays. Twice is fine."""
        self._held.is_lent = False


class SlotPool:
    """See above. For one thread at a time.

    Args:
        decoder: whose slots they are.
        context_tokens: of each slot; None for the longest.
        count: at most, at least 1. Each is made when it is first needed.
        snapshot_bytes: what snapshots of rings may take together; by default one for each slot.
        keep: rather make a new slot than overwrite one whose sequence is gone but whose tokens may be wanted again.
    """

    def __init__(
        self,
        decoder: Decoder,
        context_tokens: int | None,
        count: int,
        snapshot_bytes: int | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self._decoder = decoder
        self._context_tokens = context_tokens
        self.count = count
        one = decoder.snapshot_bytes(context_tokens)
        self._snapshot_limit_bytes = count * one if snapshot_bytes is None else snapshot_bytes
        self._keep = keep
        self._held = [_Held(decoder.new_slot(context_tokens))]
        self._clock = 0

    @property
    def context_tokens(self) -> int:
        """Positions of each slot."""
        return self._held[0].slot.context_tokens

    @property
    def nbytes(self) -> int:
        """Memory set aside for keys and values of all slots made so far; pages count once they are written."""
        return sum(held.slot.nbytes for held in tuple(self._held))

    @property
    def snapshot_bytes(self) -> int:
        """What snapshots take now."""
        snapshots = {id(snapshot): snapshot for held in tuple(self._held) for snapshot in held.snapshots}
        return sum(snapshot.nbytes for snapshot in snapshots.values())

    @property
    def digest(self) -> str:
        """Of the decoder: what saved keys and values belong to."""
        return self._decoder.digest

    def lend(self, owner: "weakref.ref[object]", wanted: Sequence[int]) -> Lease | None:
        """A slot for a sequence, the owner, that wants these tokens run; None while all are lent.

        It holds the longest prefix of them that can be had without running the model.

        Raises ExecutorError: no memory for a first slot, or the decoder is closed.
        """
        found = self._choose(owner, wanted)
        if found is None:
            return None
        for held in self._held:
            if held.owner is owner:
                held.owner = None
        self._clock += 1
        found.owner, found.last_used = owner, self._clock
        held_rows = found.reach(wanted)
        if len(wanted) - held_rows >= COPY_ROWS:
            source = max(self._held, key=lambda held: held.reach(wanted))
            if source.reach(wanted) - held_rows >= COPY_ROWS:
                found.slot.set_state(source.slot.state())
                found.snapshot = source.snapshot
        cached = reuse_prefix(found.slot, wanted, found.snapshots)
        if found.snapshot is not None and found.snapshot.token_ids != tuple(wanted[: len(found.snapshot.token_ids)]):
            found.snapshot = None  # of tokens that are gone
        found.is_lent = True
        return Lease(self, found, cached)

    def _choose(self, owner: "weakref.ref[object]", wanted: Sequence[int]) -> _Held | None:
        idle = [held for held in self._held if not held.is_lent]
        own = next((held for held in idle if held.owner is owner), None)
        if own is not None:
            return own

        def best(among: list[_Held]) -> _Held:
            return max(among, key=lambda held: (held.reach(wanted), -held.last_used))

        free = [held for held in idle if not held.has_owner]
        if self._keep and len(self._held) < self.count:
            free = [held for held in free if held.slot.position - held.reach(wanted) < COPY_ROWS]
        if free:
            return best(free)
        if len(self._held) < self.count:
            self._held.append(_Held(self._decoder.new_slot(self._context_tokens)))
            return self._held[-1]
        return best(idle) if idle else None

    def take_snapshot(self, held: _Held) -> None:
        """Of a slot's rings, instead of the one it had; others make room, the one used longest ago first."""
        held.snapshot = None
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

    def close(self) -> None:
        """Release the memory of all slots."""
        for held in self._held:
            held.slot.close()
            held.snapshot = None
