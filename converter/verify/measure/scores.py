"""What a bundle predicts against what the checkpoint predicts, token by token, and what that comes to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.measure.bootstrap import Interval, Resampling

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

TOP = 5
_BLOCK = 512  # about the root of Gemma's vocabulary


@dataclass(frozen=True)
class TokenScore:
    """One position. Surprises are -log p of the token that the text has next, NaN at the end of a window."""

    kl: float  # KL(checkpoint || bundle), nats
    top1: float  # 1 where both find the same token most likely
    top5: float  # how many of the checkpoint's five most likely tokens are among the bundle's, as a share
    surprise: float  # the bundle's
    reference_surprise: float


@dataclass(frozen=True)
class Metric:
    """A number of the report; `low` and `high` bound it with 95 % confidence, where that is known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Scores:
    """All positions of a text, [B * T] each."""

    kl: Float64
    top1: Float64
    top5: Float64
    surprise: Float64
    reference_surprise: Float64

    @classmethod
    def of(cls, tokens: Sequence[TokenScore]) -> "Scores":
        """Of scores in the order of the text."""
        columns = np.array([[t.kl, t.top1, t.top5, t.surprise, t.reference_surprise] for t in tokens], np.float64)
        return cls(*columns.T)

    def metrics(self, resampling: Resampling) -> dict[str, Metric]:
        """The figures of the report, with intervals from resampled text."""
        followed = ~np.isnan(self.surprise)
        weight = followed.astype(np.float64)

        def mean(values: Float64) -> Metric:
            return _metric(float(values.mean()), resampling.means(values, np.ones_like(values)))

        def perplexity(surprise: Float64) -> Metric:
            surprise = np.where(followed, surprise, 0.0)
            mean_surprise = surprise.sum() / max(1.0, weight.sum())
            return _metric(float(np.exp(mean_surprise)), _exp(resampling.means(surprise, weight)))

        return {
            "kl": mean(self.kl),
            "kl_p99": Metric(float(np.quantile(self.kl, 0.99))),
            "kl_max": Metric(float(self.kl.max())),
            "top1": mean(self.top1),
            "top5": mean(self.top5),
            "ppl": perplexity(self.surprise - self.reference_surprise),
            "perplexity": perplexity(self.surprise),
            "reference_perplexity": perplexity(self.reference_surprise),
        }


def differences(a: Scores, b: Scores, resampling: Resampling) -> dict[str, Metric]:
    """What b has more than a, on the same resampled texts; for perplexity by what factor."""

    def mean(values: Float64) -> Metric:
        return _metric(float(values.mean()), resampling.means(values, np.ones_like(values)))

    followed = ~np.isnan(a.surprise)
    more = np.where(followed, b.surprise - a.surprise, 0.0)
    weight = followed.astype(np.float64)
    ratio = float(np.exp(more.sum() / max(1.0, weight.sum())))
    return {
        "kl": mean(b.kl - a.kl),
        "top1": mean(b.top1 - a.top1),
        "ppl": _metric(ratio, _exp(resampling.means(more, weight))),
    }


def score_token(reference: Float32, found: Float32, following: int | None) -> TokenScore:
    """One position from the logits [V] of both; `found` is finite. Raises VerifyError where they cannot be compared."""
    if reference.shape != found.shape:
        raise VerifyError(
            f"the checkpoint has logits of {reference.size} tokens, the bundle of {found.size}; "
            "give the checkpoint that the bundle was converted from"
        )
    if not np.isfinite(reference).all():  # max(0, NaN) would be 0
        raise VerifyError("the checkpoint's logits are not finite, expected numbers; download the checkpoint again")
    best, others = top_tokens(reference, TOP), top_tokens(found, TOP)
    p, q = reference.astype(np.float64), found.astype(np.float64)
    p -= p[best[0]]
    q -= q[others[0]]
    weights = np.exp(p)
    total = weights.sum()
    log_p, log_q = float(np.log(total)), float(np.log(np.exp(q).sum()))
    surprise, reference_surprise = float("nan"), float("nan")
    if following is not None:
        surprise, reference_surprise = log_q - float(q[following]), log_p - float(p[following])
    p -= q
    return TokenScore(
        kl=max(0.0, float(weights @ p / total) + log_q - log_p),
        top1=float(best[0] == others[0]),
        top5=len({*best} & {*others}) / len(best),
        surprise=surprise,
        reference_surprise=reference_surprise,
    )


def log_softmax(logits: Float32) -> Float64:
    """Of one position, [V]."""
    shifted: Float64 = logits.astype(np.float64) - logits.max()
    shifted -= np.log(np.exp(shifted).sum())
    return shifted


def top_tokens(logits: Float32, count: int) -> list[int]:
    """The most likely tokens, the likeliest first."""
    blocks = len(logits) // _BLOCK
    if blocks > 2 * count:  # the most likely are in the blocks with the largest maxima: far fewer than all to sort
        largest = logits[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        within = np.argpartition(largest, -count)[-count:, np.newaxis] * _BLOCK + np.arange(_BLOCK)
        places = np.concatenate([np.sort(within.reshape(-1)), np.arange(blocks * _BLOCK, len(logits))])
    else:
        places = np.arange(len(logits))
    chosen = places[np.argsort(-logits[places], kind="stable")[:count]]
    return [int(i) for i in chosen]


def _metric(value: float, interval: Interval | None) -> Metric:
    return Metric(value) if interval is None else Metric(value, interval.low, interval.high)


def _exp(interval: Interval | None) -> Interval | None:
    return None if interval is None else Interval(float(np.exp(interval.low)), float(np.exp(interval.high)))
