"""Every plan covers its tokens once, stays inside the cache, and costs no more than any other legal chain."""

import itertools
from functools import cache

import pytest

from gemma_edge.runtime.executors.litert.prefill_plan import CALL_ROWS, LOGITS_ROWS, Chunk, plan_prefill

SIZE_SETS = [(), (1,), (4,), (2, 8), (8, 32), (1, 16, 128)]


def cost(chunks: list[Chunk]) -> int:
    return sum(CALL_ROWS + chunk.rows + (LOGITS_ROWS if chunk.is_decode else 0) for chunk in chunks)


@pytest.mark.parametrize("sizes", SIZE_SETS)
def test_chunks_follow_each_other_to_the_end_and_never_leave_the_context(sizes: tuple[int, ...]) -> None:
    context_tokens = 150
    for position, count in itertools.product(range(0, 150, 7), range(151)):
        if position + count > context_tokens:
            continue
        reached = position
        for chunk in plan_prefill(position, count, sizes, context_tokens):
            assert chunk.start <= reached < chunk.end
            assert chunk.start + chunk.rows <= context_tokens
            assert chunk.is_decode or chunk.rows in sizes
            reached = chunk.end
        assert reached == position + count


@pytest.mark.parametrize("sizes", SIZE_SETS[1:])
def test_no_chain_is_cheaper(sizes: tuple[int, ...]) -> None:
    @cache
    def cheapest(left: int) -> int:
        if left <= 0:
            return 0
        steps = [CALL_ROWS + 1 + LOGITS_ROWS + cheapest(left - 1)]
        return min(steps + [CALL_ROWS + size + cheapest(left - size) for size in sizes])

    for count in range(1, 300):
        assert cost(plan_prefill(1000, count, sizes, 4096)) == cheapest(count), count


def test_a_partly_filled_call_ends_with_the_prompt_and_recomputes_what_is_before() -> None:
    assert plan_prefill(100, 30, (32,), 512) == [Chunk(98, 32, 32)]


def test_at_the_start_there_is_nothing_to_recompute_so_it_is_padded() -> None:
    assert plan_prefill(0, 30, (32,), 512) == [Chunk(0, 32, 30)]


def test_a_ring_that_was_rewound_too_far_for_recomputing_is_padded() -> None:
    # Written up to 130, rewound to 100: a start at 98 would need slots that positions 98 and 99 + R overwrote.
    assert plan_prefill(100, 30, (32,), 512, rewind_rows=31, high_water=130) == [Chunk(100, 32, 30)]


def test_where_neither_fits_smaller_calls_and_decode_steps_finish() -> None:
    chunks = plan_prefill(482, 30, (8, 32), 512, rewind_rows=31, high_water=512)
    assert [(chunk.start, chunk.rows, chunk.is_decode) for chunk in chunks] == [
        (482, 8, False),
        (490, 8, False),
        (498, 8, False),
        (504, 8, False),  # 6 tokens left: two are computed again
    ]
    assert all(chunk.is_decode for chunk in plan_prefill(3, 2, (8,), 7))


@pytest.mark.parametrize("rewind_rows", [9, 33])
def test_no_chunk_starts_below_what_the_rings_hold(rewind_rows: int) -> None:
    sizes = (8,) if rewind_rows == 9 else (8, 32)
    for position, count, above in itertools.product(range(0, 200, 9), range(1, 100), range(0, rewind_rows + 1, 4)):
        high_water = position + above
        for chunk in plan_prefill(position, count, sizes, 512, rewind_rows, high_water):
            assert high_water - chunk.start <= rewind_rows
            high_water = max(high_water, chunk.start + chunk.rows)


def test_one_token_is_not_worth_a_large_call() -> None:
    assert plan_prefill(0, 1, (128,), 4096) == [Chunk(0, 1, 1, is_decode=True)]
    assert plan_prefill(50, 1, (16, 128), 4096) == [Chunk(50, 1, 1, is_decode=True)]
