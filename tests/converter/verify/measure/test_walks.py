"""Both computations in one pass are each what it is alone."""

from pathlib import Path

import numpy as np
import pytest

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import Hooks
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.verify.find.bundle_weights import BundleWeights
from gemma_edge.converter.verify.measure.walks import Walks
from tests.converter.verify.wrong import bundle_of, copied

WINDOWS = np.random.default_rng(0).integers(4, 2000, (3, 40))
SAMPLE = WINDOWS[0, :24].tolist()


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])
def test_side_by_side_is_as_alone(name: str, val_bin: Path, tmp_path: Path) -> None:
    path = copied(val_bin.parent / name, tmp_path / name)
    source = Checkpoint.open(path)
    model = StreamingModel.open(source)
    stored = BundleWeights.of(bundle_of(path), model.model.tensors)
    done: list[int] = []
    walks = Walks(source, model, stored.substitute, SAMPLE, done.append)
    walked = walks.body(WINDOWS)
    np.testing.assert_allclose(walked.expected, model.hidden(WINDOWS), rtol=1e-4, atol=1e-4)
    alone = model.hidden(np.array([SAMPLE]), Hooks(weights=stored.substitute))
    np.testing.assert_allclose(walked.own, alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(alone, model.hidden(np.array([SAMPLE]), Hooks(read=stored.read)))
    assert set(walked.outputs) == set(range(len(model.model.config.attention)))
    assert [first for first, _, _ in walks.head(walked, block=50)] == [0, 50, 100]
    [(_, logits, own), *rest] = list(walks.head(walked, block=50))
    [(_, expected)] = model.logits(walked.expected[:50])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    [(_, expected)] = model.logits(walked.own, Hooks(weights=stored.substitute))
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-4)
    assert all(len(none) == 0 for _, _, none in rest)
    assert sum(done) <= model.body_bytes + 2 * 3 * model.head_bytes(1)


def test_without_readable_weights_the_checkpoint_stands_for_both(tiny_gemma3: Path) -> None:
    source = Checkpoint.open(tiny_gemma3)
    model = StreamingModel.open(source)
    walks = Walks(source, model, None, SAMPLE, lambda _bytes: None)
    walked = walks.body(WINDOWS)
    assert walked.outputs == {}
    np.testing.assert_array_equal(walked.own, walked.expected[: len(SAMPLE)])
    [(_, logits, own)] = list(walks.head(walked, block=120))
    np.testing.assert_array_equal(own, logits[: len(SAMPLE)])
    assert all(len(part) == len(SAMPLE) for pair in walked.caches.values() for part in pair)
