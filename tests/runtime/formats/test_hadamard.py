import numpy as np
import pytest

from gemma_edge.runtime.formats import hadamard


def outliers(rows: int, columns: int) -> np.ndarray:
    values = np.random.default_rng(5).standard_normal((rows, columns)).astype(np.float32)
    values[:, 7] *= 200
    values[3] *= 1e-20
    return values


def test_turning_twice_changes_nothing() -> None:
    h = hadamard.matrix()
    np.testing.assert_array_equal(h @ h, np.eye(hadamard.BLOCK, dtype=np.float32))
    values = outliers(6, 192)
    np.testing.assert_allclose(hadamard.turn(hadamard.turn(values)), values, rtol=0, atol=1e-4)


def test_a_product_of_turned_numbers_is_the_product() -> None:
    x, w = outliers(5, 128).astype(np.float64), outliers(9, 128).astype(np.float64)
    np.testing.assert_allclose(hadamard.turn(x) @ hadamard.turn(w).T, x @ w.T, rtol=1e-12)


def test_an_outlier_is_spread_over_its_block() -> None:
    values = outliers(40, 64)
    crest = np.abs(values).max(axis=1) / np.sqrt(np.mean(np.square(values), axis=1))
    turned = hadamard.turn(values)
    assert np.median(crest) > 7
    assert np.median(np.abs(turned).max(axis=1) / np.sqrt(np.mean(np.square(turned), axis=1))) < 2


def test_exact_sums_are_those_of_whole_numbers() -> None:
    """In any order of summation, so on any machine: the same as in 64-bit integers."""
    values = outliers(37, 128)
    _, exponents = np.frexp(np.abs(values).max(axis=1))
    steps = np.ldexp(1.0, exponents - 17)[:, None]
    whole = np.rint(values / steps).astype(np.int64)
    signs = np.sign(hadamard.matrix()).astype(np.int64)
    expected = (whole.reshape(-1, 64) @ signs).reshape(values.shape) * steps / 8
    np.testing.assert_array_equal(hadamard.turn_exactly(values.copy()), expected.astype(np.float32))
    np.testing.assert_allclose(expected, hadamard.turn(values.astype(np.float64)), rtol=0, atol=200 * 2.0**-14)


@pytest.mark.parametrize("split", [1, 5, 36])
def test_rows_are_turned_alike_in_any_company(split: int) -> None:
    values = outliers(37, 192)
    whole = hadamard.turn_exactly(values.copy())
    parts = [hadamard.turn_exactly(values[:split].copy()), hadamard.turn_exactly(values[split:].copy())]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_rows_of_zeros_and_of_tiny_numbers_stay_finite() -> None:
    values = np.zeros((3, 64), np.float32)
    values[1] = 1e-44
    values[2, 0] = 3e38
    turned = hadamard.turn_exactly(values)
    assert np.isfinite(turned).all()
    assert not turned[0].any()
