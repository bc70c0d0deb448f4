"""Tokens with an embedding of their own."""

import numpy as np

from gemma_edge.runtime.kv.prefix import common_prefix
from gemma_edge.runtime.media.soft_tokens import is_in_vocabulary, place_soft_rows, soft_tokens

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_they_are_ids_that_equal_only_their_like() -> None:
    tokens, again = soft_tokens(7, ROWS), soft_tokens(7, ROWS.copy())
    others = soft_tokens(7, ROWS + 1)
    assert [int(token) for token in tokens] == [7, 7, 7]
    assert tokens == again
    assert len({*tokens, *again}) == 3
    assert tokens[0] != tokens[1]
    assert all(a != b for a, b in zip(tokens, others, strict=True))
    assert tokens[0] != 7
    assert tokens != [7, 7, 7]


def test_a_cache_is_kept_up_to_another_image() -> None:
    one, two = soft_tokens(7, ROWS), soft_tokens(7, ROWS[::-1])
    assert common_prefix([1, 2, *one, 3], [1, 2, *soft_tokens(7, ROWS), 4]) == 5
    assert common_prefix([1, 2, *one, 3], [1, 2, *two, 3]) == 2
    assert common_prefix([1, 2, *one, 3], [1, 2, 7, 7, 7, 3]) == 2


def test_their_rows_replace_the_tables() -> None:
    rows = np.zeros((5, 4), np.float32)
    place_soft_rows([1, *soft_tokens(7, ROWS), 2], rows)
    assert np.array_equal(rows[1:4], ROWS)
    assert not rows[[0, 4]].any()


def test_a_decoder_takes_them_whatever_their_id() -> None:
    assert is_in_vocabulary(soft_tokens(100, ROWS)[0], 10)
    assert is_in_vocabulary(9, 10)
    assert not is_in_vocabulary(10, 10)
    assert not is_in_vocabulary(-1, 10)
