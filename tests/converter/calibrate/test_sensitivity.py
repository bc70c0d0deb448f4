"""What each part of a model loses in fewer bits: runs that go on from a shared one find what whole runs find."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.measure import ReferenceText, RoundedWeights
from gemma_edge.converter.calibrate.sensitivity import groups, losses, read_bytes
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import NO_HOOKS, Hooks
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.quantize.recipes import Recipe


@pytest.mark.parametrize("fixture", ["tiny_gemma3", "tiny_gemma3n"])
def test_a_run_that_goes_on_from_another_finds_what_a_whole_one_does(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma_edge.converter.calibrate.sensitivity.LAYER_GROUPS", 2)
    directory: Path = request.getfixturevalue(fixture)
    checkpoint, recipe = Checkpoint.open(directory), Recipe.named("int4")
    model = StreamingModel.open(checkpoint)
    windows = np.random.default_rng(6).integers(3, 2048, (2, 48))
    parts = tuple(groups(tuple(model.model.tensors.values()), len(model.model.config.attention)))
    read: list[int] = []
    found = losses(checkpoint, model, windows, parts, recipe, read.append)
    assert sum(read) == read_bytes(model, parts)

    exact = log_probabilities(model, windows)
    reference = ReferenceText.of(model, windows)
    for part in parts:
        for encoding in part.options:
            weights = RoundedWeights(checkpoint, model, part.storages(recipe, encoding))
            stored = log_probabilities(model, windows, Hooks(weights=weights))
            expected = (np.exp(exact) * (exact - stored)).sum(-1).mean()
            assert found[part.name, encoding] == pytest.approx(expected, rel=1e-3, abs=1e-7), part.name
            alone = reference.divergence(weights)
            assert alone.kl == pytest.approx(expected, rel=1e-3, abs=1e-7)
            assert alone.top1 == pytest.approx((exact.argmax(-1) == stored.argmax(-1)).mean(), abs=0.02)  # ties
    assert len(found) == sum(len(part.options) for part in parts)


def log_probabilities(
    model: StreamingModel, windows: NDArray[np.int64], hooks: Hooks = NO_HOOKS
) -> NDArray[np.float64]:
    """[N, V], each run from the start and with its logits whole."""
    logits = np.concatenate([block.astype(np.float64) for _, block in model.run(windows, hooks)])
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits
