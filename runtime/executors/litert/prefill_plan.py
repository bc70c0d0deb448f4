"""Which chain of prefill signatures runs a prompt at the least cost.

A call with T rows costs roughly a fixed part (the weights pass through the cores once) and a part per row, so a few
large calls beat many small ones and a nearly empty large call loses to a small one. A partly filled call is placed so
that it *ends* with the prompt and recomputes the rows before it: that costs the same as padding but writes nothing
beyond the prompt, so it never passes the end of the context (the cache write would be clamped and corrupt the cache)
and never uses up the distance that ring caches can be rewound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

# In units of one prefill row. E2B int4 with 2 threads: a decode step takes 66 ms, a prefill row 12 ms, so a call costs
# about as much as 5 rows before its first row, and a decode step spends about 2 more on the logits.
CALL_ROWS = 5
LOGITS_ROWS = 2


@dataclass(frozen=True)
class Chunk:
    """One call of `rows` rows from position `start`; the first `real_rows` carry tokens, the rest is padding."""

    start: int
    rows: int
    real_rows: int
    is_decode: bool = False

    @property
    def end(self) -> int:
        """The position after the last row that carries a token."""
        return self.start + self.real_rows


def plan_prefill(
    position: int,
    count: int,
    sizes: Sequence[int],
    context_tokens: int,
    rewind_rows: int | None = None,
    high_water: int = 0,
) -> list[Chunk]:
    """Chunks that bring the cache from `position` to `position + count`.

    Args:
        position: tokens already in the cache.
        count: tokens to add; `position + count` must not pass `context_tokens`.
        sizes: rows of the prefill signatures; may be empty, then every token is a decode step.
        context_tokens: positions in the cache.
        rewind_rows: how far below the highest position ever written a chunk may start (None: anywhere).
        high_water: the highest position ever written, padding included.
    """
    sizes = tuple(sorted(set(sizes), reverse=True))
    end = position + count
    high_water = max(high_water, position)
    chunks: list[Chunk] = []
    while position < end:
        left = end - position
        lowest_start = 0 if rewind_rows is None else max(0, high_water - rewind_rows)
        chunk = _place(position, left, _usable(sizes, left), lowest_start, context_tokens)
        chunks.append(chunk)
        position = chunk.end
        high_water = max(high_water, chunk.start + chunk.rows)
    return chunks


def _usable(sizes: tuple[int, ...], left: int) -> tuple[int, ...]:
    """The cheapest call to make next and, in case it has no legal place, the smaller ones. Sizes are descending."""
    if not sizes:
        return ()
    best = sizes[0] if left >= 2 * sizes[0] else _best_next(sizes)[left]
    return tuple(size for size in sizes if size <= best)


def _place(position: int, left: int, sizes: tuple[int, ...], lowest_start: int, context_tokens: int) -> Chunk:
    """The first of `sizes` that has a legal place here. A decode step always has one."""
    for rows in sizes:
        if rows <= left:
            return Chunk(position, rows, rows)
        start = position + left - rows
        if start >= lowest_start:
            return Chunk(start, rows, rows)
        if position + rows <= context_tokens:
            return Chunk(position, rows, left)
    return Chunk(position, 1, 1, is_decode=True)


@lru_cache(maxsize=16)
def _best_next(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """`[n]`: the call to make next when n tokens are left (0: a decode step), for n below twice the largest size."""
    calls = [(size, CALL_ROWS + size) for size in sizes]
    cost, best = [0], [0]
    for left in range(1, 2 * sizes[0]):
        options = [(price + cost[max(0, left - size)], -size) for size, price in calls]
        options.append((CALL_ROWS + 1 + LOGITS_ROWS + cost[left - 1], 0))
        price, negative_size = min(options)
        cost.append(price)
        best.append(-negative_size)
    return tuple(best)
