"""What a text tells about stored weights: figures of both models, taken while the vocabulary comes stretch by stretch.

Shapes: N tokens in all windows, n of the vocabulary in a stretch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.evaluate.softmax_sums import SoftmaxSums
from gemma_edge.converter.quality.verdict import Verdict, verdict_of

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

GATED: Final = ("kl", "kl_p99", "kl_max", "top1", "ppl")
"""What gates may bound."""

_DIGITS: Final = 6  # in a report: what is left is the order in which sums were taken


@dataclass(frozen=True)
class Quality:
    """A converted model against its checkpoint. kl, kl_p99, kl_max: of KL(checkpoint || converted) in nats.

    tokens: how many positions. top1: share of them with the same most likely token. perplexity: of the tokens that
    follow, by the converted model; reference_perplexity: by the checkpoint.
    """

    tokens: int
    kl: float
    kl_p99: float
    kl_max: float
    top1: float
    perplexity: float
    reference_perplexity: float

    @property
    def perplexity_ratio(self) -> float:
        """Converted / checkpoint."""
        return self.perplexity / self.reference_perplexity

    @property
    def verdict(self) -> Verdict:
        """What that means."""
        return verdict_of(self.kl, self.top1, self.perplexity_ratio)

    @property
    def is_defined(self) -> bool:
        """Whether the checkpoint itself computes numbers: else nothing can be said of the conversion."""
        return bool(np.isfinite(self.reference_perplexity))

    @property
    def metrics(self) -> Mapping[str, float]:
        """By the names that gates know."""
        figures = (self.kl, self.kl_p99, self.kl_max, self.top1, self.perplexity_ratio)
        return dict(zip(GATED, figures, strict=True))

    def values(self) -> dict[str, Any]:
        """As JSON, which knows no infinity: what is infinite is null."""
        figures = {
            "kl": self.kl,
            "kl_p99": self.kl_p99,
            "kl_max": self.kl_max,
            "top1": self.top1,
            "perplexity": self.perplexity,
            "reference_perplexity": self.reference_perplexity,
        }
        shown = {name: float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for name, value in figures.items()}
        return {"tokens": self.tokens, **shown, "verdict": self.verdict.value, "meaning": self.verdict.meaning}


@dataclass
class QualitySums:
    """Of two models' logits for the same tokens. following: the token after each, -1 at the end of a window, [N]."""

    following: NDArray[np.integer[Any]]
    expected: SoftmaxSums
    found: SoftmaxSums
    drift: Float64  # sum of exp(a) (a - b), for logits a as expected and b as found
    next_logits: Float64  # of the token that follows, [2, N]: expected and found

    @classmethod
    def of(cls, windows: NDArray[np.integer[Any]]) -> Self:
        """Of nothing yet. windows: [B, T], each a text of its own."""
        following = np.concatenate([windows[:, 1:], np.full((len(windows), 1), -1)], axis=1).reshape(-1)
        tokens = len(following)
        sums = SoftmaxSums.of_nothing(tokens), SoftmaxSums.of_nothing(tokens)
        return cls(following, *sums, np.zeros(tokens), np.zeros((2, tokens)))

    def add(self, first: int, expected: Float32, found: Float32) -> None:
        """Logits [N, n] of both, for the n tokens of the vocabulary from `first` on."""
        shrunk, weights = self.expected.add(first, expected)
        self.found.add(first, found)
        self.drift = self.drift * shrunk + np.einsum("nv,nv->n", weights, expected - found)
        [rows] = np.nonzero((self.following >= first) & (self.following < first + expected.shape[1]))
        columns = self.following[rows] - first
        self.next_logits[:, rows] = expected[rows, columns], found[rows, columns]

    def quality(self) -> Quality:
        """Of all that was added, which is the whole vocabulary."""
        logs = np.stack([self.expected.log, self.found.log])
        kl = np.maximum(0.0, self.drift / self.expected.total + logs[1] - logs[0])  # maximum passes NaN on
        surprise = (logs - self.next_logits)[:, self.following >= 0].mean(axis=1)
        with np.errstate(over="ignore"):
            reference_perplexity, perplexity = np.exp(surprise).tolist()
        return Quality(
            tokens=len(kl),
            kl=float(kl.mean()),
            kl_p99=float(np.quantile(kl, 0.99)),
            kl_max=float(kl.max()),
            top1=float((self.found.top == self.expected.top).mean()),
            perplexity=perplexity,
            reference_perplexity=reference_perplexity,
        )
