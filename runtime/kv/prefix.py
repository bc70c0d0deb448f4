"""Keeping what a KV cache already holds: how far a token sequence agrees with it, and how to get back there."""

from collections.abc import Sequence

from gemma_edge.runtime.executors.base import KvSlot, Snapshot


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share from the start."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:  # while a reply is written, at every token, and much faster than the loop
        return length
    return next((index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), length)


def reach(slot: KvSlot, wanted: Sequence[int], snapshots: Sequence[Snapshot] = ()) -> int:
    """The furthest position on the way to `wanted` that `reuse_prefix` can bring the slot to."""
    shared = common_prefix(slot.token_ids, wanted)
    if slot.earliest_rewind <= shared:
        return shared
    return max((len(snapshot.token_ids) for snapshot in _on_the_way(snapshots, wanted, shared)), default=0)


def _on_the_way(snapshots: Sequence[Snapshot], wanted: Sequence[int], shared: int) -> list[Snapshot]:
    """Those that can be restored: good for as long as the tokens before it are still the ones it was taken with."""
    return [s for s in snapshots if len(s.token_ids) <= shared and s.token_ids == tuple(wanted[: len(s.token_ids)])]


def reuse_prefix(slot: KvSlot, wanted: Sequence[int], snapshots: Sequence[Snapshot] = ()) -> int:
    """Leave the slot at the furthest position it can reach without running the model, on the way to `wanted`.

    What it holds afterwards is a prefix of `wanted`; the caller prefills the rest. Ring caches cannot always be wound
    back as far as the sequences agree: then the longest snapshot that lies on the way is restored, and where there is
    none the cache starts afresh.

    Returns:
        The position.
    """
    held = slot.token_ids
    shared = common_prefix(held, wanted)
    if slot.earliest_rewind <= shared:
        if shared < len(held):
            slot.rewind(shared)
        return shared
    reachable = _on_the_way(snapshots, wanted, shared)
    if not reachable:
        slot.reset()
        return 0
    slot.restore(max(reachable, key=lambda snapshot: len(snapshot.token_ids)))
    return slot.position
