"""What is kept of a KV cache, on an executor that only does the bookkeeping of positions."""

from collections.abc import Sequence

import pytest

from gemma_edge.runtime.executors.base import Snapshot
from gemma_edge.runtime.kv.prefix import common_prefix, reuse_prefix


class Positions:
    """The part of an executor that prefix reuse talks to: tokens, positions and how far back it can go."""

    def __init__(self, token_ids: Sequence[int], earliest_rewind: int = 0) -> None:
        self.token_ids = list(token_ids)
        self.earliest_rewind = earliest_rewind
        self.calls: list[str] = []

    @property
    def position(self) -> int:
        return len(self.token_ids)

    def rewind(self, position: int) -> None:
        assert self.earliest_rewind <= position <= self.position
        self.calls.append(f"rewind {position}")
        del self.token_ids[position:]

    def restore(self, snapshot: Snapshot) -> None:
        self.calls.append(f"restore {len(snapshot.token_ids)}")
        self.token_ids = list(snapshot.token_ids)

    def reset(self) -> None:
        self.calls.append("reset")
        self.token_ids = []


def snapshot(*token_ids: int) -> Snapshot:
    return Snapshot(token_ids, {}, 0)


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 9, 3], [1, 2, 3], 1), ([4], [5], 0)],
)
def test_common_prefix(first: list[int], second: list[int], length: int) -> None:
    assert common_prefix(first, second) == common_prefix(second, first) == length
    assert common_prefix(tuple(first), second) == length


@pytest.mark.parametrize(
    ("held", "earliest", "wanted", "snapshots", "position", "calls"),
    [
        ([], 0, [1, 2], [], 0, []),
        ([1, 2], 0, [1, 2, 3], [], 2, []),  # going on costs nothing
        ([1, 2, 3], 0, [1, 2], [], 2, ["rewind 2"]),
        ([1, 2, 3, 4], 0, [1, 2, 9], [], 2, ["rewind 2"]),
        ([1, 2, 3, 4], 0, [9], [], 0, ["rewind 0"]),
        ([1, 2, 3, 4], 3, [1, 2, 9], [], 0, ["reset"]),  # the ring has lost position 2
        ([1, 2, 3, 4], 3, [1, 2, 9], [snapshot(1), snapshot(1, 2)], 2, ["restore 2"]),
        ([1, 2, 3, 4], 3, [1, 2, 9], [snapshot(1, 2, 3)], 0, ["reset"]),  # beyond what they share
        ([1, 2, 3, 4], 3, [1, 2, 9], [snapshot(7, 2)], 0, ["reset"]),  # taken with other tokens
        ([1, 2, 3, 4], 2, [1, 2, 9], [snapshot(1)], 2, ["rewind 2"]),  # a rewind goes less far back
    ],
)
def test_the_furthest_position_that_can_be_kept(
    held: list[int], earliest: int, wanted: list[int], snapshots: list[Snapshot], position: int, calls: list[str]
) -> None:
    executor = Positions(held, earliest)
    assert reuse_prefix(executor, wanted, snapshots) == position  # type: ignore[arg-type]
    assert executor.calls == calls
    assert executor.token_ids == wanted[:position]
