"""Log probabilities of tokens."""

import numpy as np

from gemma_edge.runtime.text.logits import scores
from gemma_edge.runtime.text.sampler import log_probability


def test_scores_are_of_the_softmax() -> None:
    logits = np.random.default_rng(1).normal(size=500).astype(np.float32) * 5
    found = scores(logits, 7, 4)
    assert found.chosen == log_probability(logits, 7)
    order = np.argsort(-logits)[:4].tolist()
    assert [token_id for token_id, _ in found.best] == order
    assert [score for _, score in found.best] == [log_probability(logits, token_id) for token_id in order]
    assert scores(logits, 7, 0).best == ()
    assert len(scores(logits[:3], 1, 20).best) == 3
