"""The weights of norms, tuned."""

from pathlib import Path

import numpy as np
import pytest

from gemma_edge.converter.calibrate.norms import gains, tunable_norms
from gemma_edge.converter.checkpoint import Checkpoint
from gemma_edge.converter.evaluate import StreamingModel


def test_noise_is_shrunk_and_a_size_that_is_wrong_is_mended() -> None:
    rng = np.random.default_rng(1)
    exact = rng.standard_normal((4, 2000, 3), np.float32)
    found = exact * np.float32([1, 0.8, 1]) + rng.standard_normal(exact.shape, np.float32) * np.float32([0, 0, 0.5])
    np.testing.assert_allclose(gains(exact, found), [1, 1.25, 1 / 1.25], rtol=0.02)


def test_channels_of_nothing_stay_and_none_is_turned_around() -> None:
    exact = np.ones((1, 50, 3), np.float32)
    found = exact * np.float32([0, -1, 0.01])
    np.testing.assert_allclose(gains(exact, found), [1, 0.25, 2])


@pytest.mark.parametrize("fixture", ["tiny_gemma3", "tiny_gemma3n"])
def test_every_norm_with_weights_of_its_own_is_tuned(fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    model = StreamingModel.open(Checkpoint.open(path))
    names = set(tunable_norms(model.graph).values())
    assert {"norm.weight", "layers.0.post_attention_layernorm.weight", "layers.1.self_attn.q_norm.weight"} <= names
    assert all("norm" in name for name in names)
