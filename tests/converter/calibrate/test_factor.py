"""One factorization of a gram: what it is, what order its columns have, and equations solved with it."""

import numpy as np
import pytest

from gemma_edge.converter.calibrate.factor import DAMPING, Factor, GramError


@pytest.mark.parametrize(("columns", "width"), [(96, 32), (640, 32), (640, 0), (512, 256)])
def test_it_is_the_damped_gram_and_solves_with_it(columns: int, width: int) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((2 * columns, columns), np.float32) * np.exp(rng.standard_normal(columns, np.float32))
    gram = inputs.T @ inputs / np.float32(len(inputs))
    before = gram.copy()
    factor = Factor.of(gram, width)
    np.testing.assert_array_equal(gram, before)
    damped = gram + DAMPING * gram.diagonal().mean() * np.eye(columns)
    expected = damped[np.ix_(factor.order, factor.order)]
    np.testing.assert_allclose(factor.gram, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        (factor.upper * factor.pivots) @ factor.upper.T, expected, rtol=1e-4, atol=1e-4 * gram.max()
    )
    np.testing.assert_array_equal(np.tril(factor.upper, -1), 0)
    values = rng.standard_normal((columns, 7), np.float32)
    solution = np.linalg.solve(expected.astype(float), values.astype(float))
    np.testing.assert_allclose(factor.solve(values.copy()), solution, rtol=1e-2, atol=1e-3 * np.abs(solution).max())


def test_groups_stay_together_and_the_strongest_come_first() -> None:
    power = np.array([1, 2, 8, 1, 5, 5, 0, 1], np.float32)
    assert Factor.of(np.diag(power), 2).order.tolist() == [4, 5, 2, 3, 1, 0, 7, 6]
    assert Factor.of(np.diag(power)).order.tolist() == [2, 4, 5, 1, 0, 3, 7, 6]


def test_what_is_no_gram_is_refused() -> None:
    with pytest.raises(GramError, match="the gram has no Cholesky factor"):
        Factor.of(np.array([[1, 9], [9, 1]], np.float32))
