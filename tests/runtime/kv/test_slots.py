"""Which slot a sequence gets, on slots that only do the bookkeeping of tokens."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_edge.runtime.executors.base import SlotState, Snapshot
from gemma_edge.runtime.kv.slots import Lease, SlotPool
from gemma_edge.runtime.kv.store import FolderStore

RING_BYTES = 100
RING = np.zeros(RING_BYTES, np.uint8)


@dataclass(eq=False)
class Tokens:
    """The part of a slot that the pool talks to: tokens, all of them within reach unless `earliest_rewind` says so."""

    context_tokens: int = 1000
    token_ids: list[int] = field(default_factory=list)
    earliest_rewind: int = 0
    nbytes: int = 1000

    @property
    def position(self) -> int:
        return len(self.token_ids)

    def rewind(self, position: int) -> None:
        del self.token_ids[position:]

    def reset(self) -> None:
        self.token_ids, self.earliest_rewind = [], 0

    def snapshot(self) -> Snapshot:
        return Snapshot(tuple(self.token_ids), {"ring": RING}, self.earliest_rewind)

    def restore(self, snapshot: Snapshot) -> None:
        self.token_ids = list(snapshot.token_ids)

    def state(self) -> SlotState:
        return SlotState(tuple(self.token_ids), self.earliest_rewind, {})

    def set_state(self, state: SlotState) -> None:
        self.token_ids, self.earliest_rewind = list(state.token_ids), state.high_water

    def close(self) -> None:
        self.nbytes = 0


class Decoder:
    """Makes them."""

    digest = ""

    def new_slot(self, context_tokens: int | None = None) -> Any:
        assert context_tokens is None
        return Tokens()

    def snapshot_bytes(self, context_tokens: int | None = None) -> int:
        assert context_tokens is None
        return RING_BYTES


class Owner:
    """Stands for a sequence."""


def pool_of(count: int, **options: Any) -> SlotPool:
    return SlotPool(Decoder(), None, count, **options)  # type: ignore[arg-type]


def run(pool: SlotPool, owner: Owner, token_ids: Sequence[int]) -> Lease:
    """A turn: all of it is run, and the slot given back."""
    lease = pool.lend(weakref.ref(owner), token_ids)
    assert lease is not None
    lease.slot.token_ids = list(token_ids)  # type: ignore[misc]
    lease.release()
    return lease


def long(first: int) -> list[int]:
    return list(range(first, first + 50))


def test_whoever_comes_back_gets_its_own() -> None:
    pool, one, two = pool_of(2), Owner(), Owner()
    slots = [run(pool, one, long(0)).slot, run(pool, two, long(100)).slot]
    assert slots[0] is not slots[1]
    assert run(pool, one, [*long(0), 7]).cached == 50
    again = run(pool, two, [*long(100), 7])
    assert (again.slot, again.cached) == (slots[1], 50)


def test_slots_are_made_when_they_are_needed() -> None:
    pool, one, two = pool_of(3), Owner(), Owner()
    assert pool.nbytes == 1000
    run(pool, one, long(0))
    run(pool, one, long(100))
    assert pool.nbytes == 1000
    run(pool, two, long(200))
    assert pool.nbytes == 2000
    pool.close()
    assert pool.nbytes == 0


def test_a_slot_whose_owner_is_gone_is_taken_before_a_new_one_is_made() -> None:
    pool, one = pool_of(2), Owner()
    slot = run(pool, one, long(0)).slot
    del one
    two = Owner()
    assert run(pool, two, long(100)).slot is slot
    assert pool.nbytes == 1000


def test_where_slots_are_to_be_kept_a_new_one_is_made_first() -> None:
    pool, one = pool_of(2, keep=True), Owner()
    slot = run(pool, one, long(0)).slot
    del one
    two, three = Owner(), Owner()
    assert run(pool, two, long(100)).slot is not slot
    del two
    again = run(pool, three, [*long(0), 3])  # a prompt that begins like what was closed
    assert (again.slot, again.cached) == (slot, 50)


def test_the_longest_common_prefix_is_taken_first_then_what_was_used_longest_ago() -> None:
    pool, owners = pool_of(3), [Owner() for _ in range(3)]
    slots = [run(pool, owner, long(100 * n)).slot for n, owner in enumerate(owners)]
    run(pool, owners[0], long(0))
    assert run(pool, other := Owner(), long(900)).slot is slots[1]
    run(pool, owners[2], long(200))
    taken = run(pool, last := Owner(), [*long(0)[:30], 7])
    assert (taken.slot, taken.cached) == (slots[0], 30)
    assert other is not last


def test_what_another_slot_holds_is_copied() -> None:
    pool, one, two = pool_of(2), Owner(), Owner()
    first = run(pool, one, long(0))
    second = run(pool, two, [*long(0)[:40], 7])
    assert second.slot is not first.slot
    assert second.cached == 40
    assert list(first.slot.token_ids) == long(0)
    third = run(pool, two, [*long(0)[:5], 9])  # a few rows are not worth a copy
    assert third.cached == 5


def test_none_is_lent_twice() -> None:
    pool, one, two = pool_of(1), Owner(), Owner()
    lease = pool.lend(weakref.ref(one), long(0))
    assert lease is not None
    assert pool.lend(weakref.ref(two), long(0)) is None
    lease.release()
    lease.release()
    assert pool.lend(weakref.ref(two), long(0)) is not None


def marked(pool: SlotPool, owner: Owner, token_ids: Sequence[int]) -> None:
    lease = run(pool, owner, token_ids)
    lease.mark()


def test_a_snapshot_reaches_back_where_rings_do_not() -> None:
    pool, one = pool_of(1), Owner()
    marked(pool, one, long(0))
    lease = run(pool, one, [*long(0), *long(100)])
    lease.slot.earliest_rewind = 90  # type: ignore[misc]
    assert run(pool, one, [*long(0), 7]).cached == 50
    lease.slot.earliest_rewind = 51  # type: ignore[misc]
    assert run(pool, one, [*long(0)[:20], 7]).cached == 0  # before the snapshot


def test_snapshots_have_a_limit_and_the_one_used_longest_ago_goes() -> None:
    pool, owners = pool_of(3, snapshot_bytes=2 * RING_BYTES), [Owner() for _ in range(3)]
    for n, owner in enumerate(owners):
        marked(pool, owner, long(100 * n))
    assert pool.snapshot_bytes == 2 * RING_BYTES
    assert [held.snapshot is None for held in pool._held] == [True, False, False]
    marked(pool, owners[1], long(100))
    assert pool.snapshot_bytes == 2 * RING_BYTES  # its own is replaced
    none = pool_of(2, snapshot_bytes=RING_BYTES - 1)
    marked(none, owners[0], long(0))
    assert none.snapshot_bytes == 0


def test_by_default_there_is_room_for_a_snapshot_of_each_slot() -> None:
    pool, owners = pool_of(2), [Owner() for _ in range(2)]
    for n, owner in enumerate(owners):
        marked(pool, owner, long(100 * n))
    assert pool.snapshot_bytes == 2 * RING_BYTES


@pytest.mark.parametrize("lent", [True, False])
def test_a_snapshot_of_tokens_that_are_gone_is_dropped(lent: bool) -> None:
    pool, one = pool_of(1), Owner()
    marked(pool, one, long(0))
    lease = pool.lend(weakref.ref(one), long(100))
    assert lease is not None
    if not lent:
        lease.release()
    assert pool.snapshot_bytes == 0


def chat(pool: SlotPool, prompt: Sequence[int], reply: Sequence[int], *, is_passing: bool = False) -> Any:
    """A request of a server: its sequence is gone when it ends. Returns the slot and how much of it was there."""
    owner = Owner()
    lease = pool.lend(weakref.ref(owner), prompt, is_passing=is_passing)
    assert lease is not None
    lease.slot.token_ids = list(prompt)  # type: ignore[misc]
    lease.mark()
    lease.slot.token_ids = [*prompt, *reply]  # type: ignore[misc]
    lease.release()
    return lease.slot, lease.cached


def test_a_chat_is_known_by_its_tokens() -> None:
    """Another one that begins alike is not taken for it, however long the beginning is."""
    pool = pool_of(2, keep=True)
    one, two = [*long(0), *range(100, 120)], [*long(0), *range(200, 220)]
    first, _ = chat(pool, one, [1])
    second, cached = chat(pool, two, [1])
    assert second is not first
    assert cached == 50
    assert chat(pool, [*one, 1, 2], [3]) == (first, 71)
    assert chat(pool, [*one, 1, 2, 999], [4])[0] is first  # its reply in other tokens
    assert chat(pool, two, [5])[0] is second  # asked once more


def test_what_passes_through_takes_no_chats_slot() -> None:
    pool = pool_of(3, keep=True)
    one, _ = chat(pool, long(0), [1])
    two, _ = chat(pool, long(100), [1])
    for title in range(5):
        assert chat(pool, long(1000 * (title + 1)), [1], is_passing=True)[0] not in (one, two)
    assert chat(pool, [*long(0), 1, 2], [3]) == (one, 51)
    assert chat(pool, [*long(100), 1, 2], [3]) == (two, 51)
    three, _ = chat(pool, long(200), [1])  # one slot is left to titles, so the oldest chat goes
    assert three is one
    assert chat(pool, [*long(100), 1, 2, 3, 4], [5]) == (two, 53)


def test_a_chat_that_is_not_streamed_is_one_when_it_goes_on() -> None:
    pool = pool_of(2, keep=True)
    slot, _ = chat(pool, long(0), [1], is_passing=True)
    assert chat(pool, [*long(0), 1, 2], [3], is_passing=True) == (slot, 51)
    assert chat(pool, long(500), [1], is_passing=True)[0] is not slot
    assert chat(pool, long(700), [1], is_passing=True)[0] is not slot


def test_a_chat_that_loses_its_slot_is_saved_and_found(tmp_path: Path) -> None:
    pool = pool_of(1)
    pool.keep(FolderStore(tmp_path, "d" * 64, 1 << 20))
    chat(pool, long(0), [1])
    chat(pool, long(100), [1])
    assert chat(pool, [*long(0), 1, 2], [3])[1] == 51
    assert chat(pool, [*long(100), 1, 2], [3])[1] == 51
    assert chat(pool, long(300), [1], is_passing=True)[1] == 0
    pool.save()
    assert len(FolderStore(tmp_path, "d" * 64, 1 << 20)) == 2  # not what only passed through
