"""Weights moved so that a layer makes up for what the layers before it do wrong."""

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.factor import DAMPING, Factor
from gemma_edge.converter.calibrate.moments import Moments, moved

Float32 = NDArray[np.float32]
FEW, MANY = 40, 500
"""Tokens, below and above the number of columns."""


def target(rows: Float32, moments: Moments) -> Float32:
    """[n, k], columns as they were."""
    factor = Factor.of(moments.gram, 0, moments.damping)
    result = np.empty_like(rows)
    result[:, factor.order] = moved(rows, moments, factor).T
    return result


@pytest.mark.parametrize("rows", [16, 48])
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_the_target_is_least_squares_held_to_the_weights(tokens: int, rows: int) -> None:
    """With few rows by way of tokens, with more by way of columns."""
    rng = np.random.default_rng(5)
    exact, noise = rng.standard_normal((2, tokens, 64), np.float32)
    exact[0] *= 100  # a token of large inputs does not count for more
    found = exact + np.float32(0.3) * noise
    weights = rng.standard_normal((rows, 64), np.float32)
    moments = Moments.of(found, exact)
    x, e, w = found.astype(float), exact.astype(float), weights.astype(float)
    squares = np.square(e).mean(axis=1, keepdims=True)
    share = 1 / (squares + squares.mean())
    share /= share.sum()
    gram = x.T @ (share * x)
    ridge = moments.damping * gram.diagonal().mean()
    expected = np.linalg.solve(gram + ridge * np.eye(64), (w @ (e.T @ (share * x)) + ridge * w).T).T
    np.testing.assert_allclose(target(weights, moments), expected, rtol=1e-2, atol=2e-3)


def test_fewer_tokens_hold_weights_more() -> None:
    inputs = np.random.default_rng(2).standard_normal((MANY, 64), np.float32)
    assert DAMPING < Moments.of(inputs, inputs).damping < Moments.of(inputs[:FEW], inputs[:FEW]).damping


@pytest.mark.parametrize(("tokens", "left"), [(FEW, 0.3), (MANY, 0.1)])
def test_the_target_brings_outputs_closer(tokens: int, left: float) -> None:
    """Fewer tokens say less, so weights are held more."""
    rng = np.random.default_rng(3)
    exact = rng.standard_normal((tokens, 64), np.float32)
    found = exact + 0.3 * exact[:, ::-1] + 0.05 * rng.standard_normal((tokens, 64), np.float32)  # a systematic error
    rows = rng.standard_normal((32, 64), np.float32)
    moments = Moments.of(found, exact)
    as_they_are = np.square(found @ rows.T - exact @ rows.T).mean()
    corrected = np.square(found @ target(rows, moments).T - exact @ rows.T).mean()
    assert corrected < left * as_they_are


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_exact_inputs_leave_the_weights_as_they_are(tokens: int) -> None:
    rng = np.random.default_rng(4)
    inputs = rng.standard_normal((tokens, 64), np.float32)
    rows = rng.standard_normal((32, 64), np.float32)
    np.testing.assert_allclose(target(rows, Moments.of(inputs, inputs)), rows, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_inputs_that_are_always_zero_leave_the_weights_as_they_are(tokens: int) -> None:
    rows = np.ones((2, 64), np.float32)
    zeros = np.zeros((tokens, 64), np.float32)
    np.testing.assert_allclose(target(rows, Moments.of(zeros, zeros)), rows, rtol=1e-5)
