"""What compares with oracles can fail: too far off, another token, another text before a near tie."""

import numpy as np
import pytest

from tests.near_ties import settled_tokens
from tests.oracles import Expected

LOGITS = np.array([[0.0, 3.0, 1.0], [2.0, 1.9999, 0.0], [5.0, 0.0, 1.0]])
NOISE = np.array([0.0, 0.0, 0.01])
EXPECTED = Expected(LOGITS, NOISE)


def test_logits_may_be_off_by_the_tolerance_and_what_float32_explains() -> None:
    EXPECTED.check((LOGITS + np.array([[0.9e-3], [0.9e-3], [0.04]])).astype(np.float32), tolerance=1e-3)
    for off in ([1.1e-3, 0, 0], [0, 0, 0.05]):
        with pytest.raises(AssertionError, match="off by"):
            EXPECTED.check((LOGITS + np.array(off)[:, None]).astype(np.float32), tolerance=1e-3)


def test_a_token_is_the_best_or_as_good() -> None:
    EXPECTED.check_greedy([1, 0, 0], tolerance=1e-3)
    EXPECTED.check_greedy([1, 1, 0], tolerance=1e-3)
    with pytest.raises(AssertionError):
        EXPECTED.check_greedy([2, 0, 0], tolerance=1e-3)


def test_what_comes_before_a_near_tie_is_settled() -> None:
    assert EXPECTED.settled([1, 0, 0], tolerance=1e-3, suppressed=[]) == 1
    assert EXPECTED.settled([2, 0, 0], tolerance=1e-3, suppressed=[1]) == 3  # without its rival
    assert EXPECTED.settled([1, 0, 0], tolerance=1e-6, suppressed=[]) == 3
    assert settled_tokens(LOGITS.astype(np.float32), [1, 0, 0], near_tie=1e-3) == 1
    assert settled_tokens(LOGITS.astype(np.float32), [1, 0, 0], near_tie=1e-6) == 3
