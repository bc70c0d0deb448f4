"""Weights moved so that a layer makes up for what the layers before it do wrong."""

import numpy as np
import pytest

from gemma_edge.converter.calibrate.moments import RIDGE, Moments

FEW, MANY = 40, 500
"""Tokens, below and above the number of columns: the same least squares, worked out in two ways."""


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_the_target_is_least_squares_held_to_the_weights(tokens: int) -> None:
    rng = np.random.default_rng(5)
    exact, noise = rng.standard_normal((2, tokens, 64), np.float32)
    found = exact + np.float32(0.3) * noise
    rows = rng.standard_normal((32, 64), np.float32)
    scales = np.exp2(rng.integers(-2, 3, 64)).astype(np.float32)
    for divisors in (np.ones_like(scales), scales):
        moments = Moments.of(found, exact)
        moments.scale(divisors)
        x, e, w = (found / divisors).astype(float), (exact / divisors).astype(float), rows.astype(float)
        ridge = (tokens * RIDGE + 64) * np.square(x).mean()
        expected = np.linalg.solve(x.T @ x + ridge * np.eye(64), (w @ (e.T @ x) + ridge * w).T).T
        np.testing.assert_allclose(moments.target(rows), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("tokens", "left"), [(FEW, 0.3), (MANY, 0.1)])
def test_the_target_brings_outputs_closer_and_can_be_taken_in_pieces(tokens: int, left: float) -> None:
    """Fewer tokens say less, so weights are held more."""
    rng = np.random.default_rng(3)
    exact = rng.standard_normal((tokens, 64), np.float32)
    found = exact + 0.3 * exact[:, ::-1] + 0.05 * rng.standard_normal((tokens, 64), np.float32)  # a systematic error
    rows = rng.standard_normal((32, 64), np.float32)
    moments = Moments.of(found, exact)
    target = moments.target(rows)
    as_they_are = np.square(found @ rows.T - exact @ rows.T).mean()
    moved = np.square(found @ target.T - exact @ rows.T).mean()
    assert moved < left * as_they_are
    np.testing.assert_allclose(rows @ moments.move(), target, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_exact_inputs_leave_the_weights_as_they_are(tokens: int) -> None:
    rng = np.random.default_rng(4)
    inputs = rng.standard_normal((tokens, 64), np.float32)
    rows = rng.standard_normal((32, 64), np.float32)
    np.testing.assert_allclose(Moments.of(inputs, inputs).target(rows), rows, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_inputs_that_are_always_zero_leave_the_weights_as_they_are(tokens: int) -> None:
    rows = np.ones((2, 64), np.float32)
    zeros = np.zeros((tokens, 64), np.float32)
    np.testing.assert_allclose(Moments.of(zeros, zeros).target(rows), rows, rtol=1e-5)
