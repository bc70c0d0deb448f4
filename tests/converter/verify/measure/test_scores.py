"""The figures against their definitions, and intervals that hold what they promise."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.measure.bootstrap import Resampling
from gemma_edge.converter.verify.measure.scores import Scores, differences, score_token, top_tokens
from gemma_edge.converter.verify.measure.similarity import Similarity

WINDOWS, TOKENS = 4, 96


def _logits(*probabilities: float) -> NDArray[np.float32]:
    return np.log(np.array(probabilities, np.float32)) + np.float32(3)  # a constant changes nothing


def test_a_position_by_hand() -> None:
    reference = _logits(0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125)
    found = _logits(0.25, 0.5, 0.125, 0.0625, 0.03125, 0.03125)
    score = score_token(reference, found, following=1)
    assert score.kl == pytest.approx(0.25 * math.log(2), rel=1e-5)
    assert (score.top1, score.top5) == (0.0, 1.0)
    assert score.surprise == pytest.approx(math.log(2), rel=1e-5)
    assert score.reference_surprise == pytest.approx(math.log(4), rel=1e-5)
    same = score_token(reference, reference, following=None)
    assert (same.kl, same.top1, same.top5) == (0.0, 1.0, 1.0)
    assert math.isnan(same.surprise)


def test_the_most_likely_tokens_come_in_order() -> None:
    assert top_tokens(np.array([0, 5, 3, 9, 1, 4], np.float32), 3) == [3, 1, 5]


def test_what_cannot_be_compared_is_refused() -> None:
    five, six = np.zeros(5, np.float32), np.zeros(6, np.float32)
    with pytest.raises(VerifyError, match=r"^the checkpoint has logits of 5 tokens, the bundle of 6; give the"):
        score_token(five, six, None)
    with pytest.raises(VerifyError, match=r"^the checkpoint's logits are not finite, expected numbers; download"):
        score_token(np.full(6, np.inf, np.float32), six, None)


def _scores(seed: int, kl: float) -> Scores:
    """Alike in windows, as texts are: each has a level of its own. The last token of each is followed by nothing."""
    random = np.random.default_rng(seed)
    levels = random.exponential(1.0, (WINDOWS, 1)) + random.exponential(1.0, (WINDOWS, TOKENS))
    surprise = np.where(np.arange(TOKENS) == TOKENS - 1, np.nan, levels)
    noise = random.exponential(kl, (WINDOWS, TOKENS))
    same = random.random((WINDOWS, TOKENS)) < 0.9
    columns = (noise, same.astype(float), same.astype(float), surprise + noise, surprise)
    return Scores(*(column.reshape(-1) for column in columns))


def test_metrics_are_the_means_and_lie_in_their_intervals() -> None:
    scores = _scores(1, 0.02)
    metrics = scores.metrics(Resampling.of(WINDOWS, TOKENS, seed=0))
    assert metrics["kl"].value == pytest.approx(scores.kl.mean())
    assert metrics["kl_max"].value == scores.kl.max()
    assert metrics["kl_p99"].value == pytest.approx(np.quantile(scores.kl, 0.99))
    assert metrics["perplexity"].value == pytest.approx(np.exp(np.nanmean(scores.surprise)))
    ratio = metrics["perplexity"].value / metrics["reference_perplexity"].value
    assert metrics["ppl"].value == pytest.approx(ratio)
    for name in ("kl", "top1", "top5", "ppl", "perplexity", "reference_perplexity"):
        metric = metrics[name]
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low < metric.value < metric.high, name


def test_pairing_narrows_the_interval() -> None:
    """Of the ratio, against those of the two perplexities: what makes a text hard is hard for both."""
    metrics = _scores(2, 0.02).metrics(Resampling.of(WINDOWS, TOKENS, seed=0))

    def relative_width(name: str) -> float:
        metric = metrics[name]
        assert metric.low is not None
        assert metric.high is not None
        return (metric.high - metric.low) / metric.value

    assert relative_width("ppl") < 0.2 * relative_width("perplexity")


def test_the_same_seed_gives_the_same_intervals() -> None:
    scores = _scores(3, 0.02)
    assert scores.metrics(Resampling.of(WINDOWS, TOKENS, 7)) == scores.metrics(Resampling.of(WINDOWS, TOKENS, 7))
    assert scores.metrics(Resampling.of(WINDOWS, TOKENS, 7)) != scores.metrics(Resampling.of(WINDOWS, TOKENS, 8))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of exponential noise with a known mean, 200 times over; 95 % would be 190."""
    resampling = Resampling.of(16, 128, seed=0)
    held = 0
    for seed in range(200):
        values = np.random.default_rng(seed).exponential(1.0, 16 * 128)
        interval = resampling.means(values, np.ones_like(values))
        assert interval is not None
        held += interval.low <= 1.0 <= interval.high
    assert 180 <= held <= 200


def test_a_text_of_a_few_blocks_has_no_interval() -> None:
    """Drawing one block again and again gives one value: an interval without width, which promises everything."""
    scores = _scores(1, 0.02)
    short = Scores(*(getattr(scores, name)[: 2 * TOKENS] for name in vars(scores)))
    six_blocks = Resampling.of(2, TOKENS, seed=0)
    for metric in (*short.metrics(six_blocks).values(), *differences(short, short, six_blocks).values()):
        assert (metric.low, metric.high) == (None, None)


def test_blocks_stay_in_their_windows() -> None:
    assert Resampling.of(2, 70, seed=0).starts.tolist() == [0, 32, 64, 70, 102, 134]


def test_differences_of_two_bundles_on_one_text() -> None:
    a, b = _scores(4, 0.02), _scores(4, 0.05)
    found = differences(a, b, Resampling.of(WINDOWS, TOKENS, seed=0))
    assert found["kl"].value == pytest.approx(b.kl.mean() - a.kl.mean())
    assert found["kl"].low is not None
    assert found["kl"].low > 0
    assert found["ppl"].value == pytest.approx(np.exp(np.nanmean(b.surprise - a.surprise)))
    same = differences(a, a, Resampling.of(WINDOWS, TOKENS, seed=0))
    assert (same["kl"].low, same["kl"].high, same["ppl"].value) == (0.0, 0.0, 1.0)


def test_similarity_by_hand() -> None:
    expected, found = np.array([3.0, 4.0], np.float32), np.array([3.0, 3.0], np.float32)
    similarity = Similarity.between(expected, found)
    assert similarity.cosine == pytest.approx(21 / (5 * 18**0.5))
    assert similarity.snr_db == pytest.approx(10 * math.log10(25))
    assert similarity.gain == pytest.approx(21 / 25)
    whole = Similarity.between(expected[:1], found[:1]) + Similarity.between(expected[1:], found[1:])
    assert whole == similarity
    assert Similarity.between(expected, expected).snr_db == math.inf
    assert Similarity.between(np.zeros(2, np.float32), found).snr_db == -math.inf
