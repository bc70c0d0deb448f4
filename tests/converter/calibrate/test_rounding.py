"""Rounding for given inputs: what it saves, that it is GPTQ, and what it does at the edges."""

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.factor import DAMPING
from gemma_edge.converter.calibrate.rounding import Rounder, Rows
from gemma_edge.converter.quantize.quantize import Quantized, Search, quantize_rows
from gemma_edge.runtime.formats.encoding import Encoding

pytestmark = pytest.mark.filterwarnings("error")

Float32 = NDArray[np.float32]
ROWS, COLUMNS = 48, 128


@pytest.fixture(scope="module")
def weights() -> Float32:
    return np.random.default_rng(1).standard_normal((ROWS, COLUMNS), np.float32) * np.float32(0.02)


@pytest.fixture(scope="module")
def gram() -> Float32:
    """Of inputs with correlated columns of very different sizes, as after a trained norm."""
    rng = np.random.default_rng(2)
    mix = rng.standard_normal((COLUMNS, COLUMNS), np.float32) * np.exp(
        rng.standard_normal(COLUMNS, np.float32), dtype=np.float32
    )
    inputs: Float32 = rng.standard_normal((1000, COLUMNS), np.float32) @ mix.T
    product: Float32 = inputs.T @ inputs / np.float32(len(inputs))
    return product


def cost(stored: Quantized, encoding: Encoding, weights: Float32, gram: Float32) -> float:
    """Mean square change of the outputs, summed over rows."""
    change = (encoding.dequantize(stored.data, stored.scales, weights.shape) - weights).astype(np.float64)
    return float(np.einsum("nk,kj,nj->", change, gram, change))


@pytest.mark.parametrize("name", ["int8", "int4", "int4-b32", "int4-b64", "int2"])
def test_outputs_change_far_less_than_with_each_value_rounded_for_itself(
    name: str, weights: Float32, gram: Float32
) -> None:
    encoding = Encoding.parse(name)
    alone = cost(quantize_rows(weights, encoding), encoding, weights, gram)
    together = cost(Rounder.of(gram, encoding).round(weights), encoding, weights, gram)
    assert together < 0.4 * alone


def test_the_first_pass_is_gptq(weights: Float32, gram: Float32) -> None:
    """As the paper spells it: the inverse, its Cholesky factor, and an update of all later columns after each one."""
    encoding = Encoding.parse("int4")
    rounder = Rounder.of(gram, encoding)
    scales = quantize_rows(weights, encoding, Search.ABSMAX).scales
    assert scales is not None
    state = Rows.of(weights, rounder, scales.astype(np.float32)[np.newaxis])
    state.choose_integers()

    damped = gram.astype(np.float64) + DAMPING * np.mean(np.diag(gram)) * np.eye(COLUMNS)
    order = np.argsort(-np.diag(gram), kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T  # upper, inverse = factor^T factor
    rest = weights[:, order].astype(np.float64)
    expected = np.empty_like(rest)
    for j in range(COLUMNS):
        expected[:, j] = np.clip(np.rint(rest[:, j] / scales), -7, 7)
        error = (rest[:, j] - expected[:, j] * scales) / factor[j, j]
        rest[:, j:] -= np.outer(error, factor[j, j:])
    same = expected == state.integers.T
    assert same.mean() > 0.99  # float32 against float64: a value between two integers falls either way


def test_no_later_step_makes_the_outputs_worse(weights: Float32, gram: Float32) -> None:
    rounder = Rounder.of(gram, Encoding.parse("int4-b32"))
    state = Rows.of(weights, rounder)

    def row_costs() -> Float32:
        costs: Float32 = np.einsum("kn,kj,jn->n", state.errors, rounder.factor.gram, state.errors)
        return costs

    state.choose_integers()
    before = first = row_costs()
    for step in (state.improve, state.improve):
        step()
        after = row_costs()
        # Scales are rounded to what float16 and bfloat16 both hold: 2^-9 of a scale, a few percent of a row's cost.
        assert (after <= before * 1.1).all()
        before = after
    assert after.sum() < 0.9 * first.sum()


@pytest.mark.parametrize("name", ["int4", "int4-b32"])
def test_the_reported_error_is_the_real_one(name: str, weights: Float32, gram: Float32) -> None:
    encoding = Encoding.parse(name)
    stored = Rounder.of(gram, encoding).round(weights)
    change = encoding.dequantize(stored.data, stored.scales, weights.shape) - weights
    assert stored.error.squared == pytest.approx(float(np.square(change).sum()), rel=1e-3)
    assert stored.error.values == weights.size
    assert stored.data.shape == (ROWS, COLUMNS // 2)


def test_uncorrelated_inputs_of_one_size_leave_nothing_to_gain(weights: Float32) -> None:
    """Then the error of the weights is the error of the outputs, and plain rounding is the best there is."""
    encoding = Encoding.parse("int8")
    stored = Rounder.of(np.eye(COLUMNS, dtype=np.float32), encoding).round(weights)
    plain = quantize_rows(weights, encoding)
    assert stored.error.squared <= plain.error.squared
    assert stored.error.squared == pytest.approx(plain.error.squared, rel=0.05)


@pytest.mark.parametrize("name", ["int4", "int4-b32"])
def test_inputs_that_never_occur_and_rows_of_zeros(name: str, weights: Float32, gram: Float32) -> None:
    encoding = Encoding.parse(name)
    silent = gram.copy()
    silent[:40] = silent[:, :40] = 0
    rows = weights.copy()
    rows[3] = 0
    for given in (silent, np.zeros_like(gram), np.ones_like(gram)):
        stored = Rounder.of(given, encoding).round(rows)
        restored = encoding.dequantize(stored.data, stored.scales, rows.shape)
        assert np.isfinite(restored).all()
        assert not restored[3].any()
        assert np.abs(restored).max() < 2 * np.abs(rows).max()


def test_the_gram_is_left_as_it_was(gram: Float32) -> None:
    before = gram.copy()
    Rounder.of(gram, Encoding.parse("int4"))
    np.testing.assert_array_equal(gram, before)
