"""What the figures of a text mean for somebody who talks to the model: the only place where bounds lie.

Measured on Gemma 3 270M in LiteRT, 765 tokens of the built-in text. Bundles of before columns were
balanced and turned: those of today lose less (QUALITY.md), but what counts here is which loss goes with which replies.

| | KL, nats | top-1 | perplexity | what it says |
|---|---|---|---|---|
| int8 | 0.084 | 0.88 | x 1.07 | what the checkpoint says, or as good |
| int4 in blocks of 32, calibrated | 0.35 | 0.77 | x 1.45 | other sentences, sensible ones |
| int4 in blocks of 32, round to nearest | 1.07 | 0.56 | x 3.0 | loses the thread, repeats itself |
| int4 with a scale per row | 3.19 | 0.27 | x 27 | words without sense |

Figures depend on the text and on how long its windows are: cut into windows of 64 tokens instead of 256, the same text
gives 0.72 nats and x 2.0 for the third row, 2.57 and x 13.5 for the last.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Verdict(StrEnum):
    """From the best to the worst."""

    GOOD = "good"
    USABLE = "usable"
    DEGRADED = "degraded"
    NOT_USABLE = "not usable"

    @property
    def meaning(self) -> str:
        """In plain words."""
        return _MEANINGS[self]


_MEANINGS: Final = {
    Verdict.GOOD: "replies are as good as the checkpoint's",
    Verdict.USABLE: "replies differ from the checkpoint's, and make sense",
    Verdict.DEGRADED: "replies make sense, but errors and repetitions are to be expected",
    Verdict.NOT_USABLE: "replies are broken",
}


@dataclass(frozen=True)
class Bounds:
    """What a verdict asks for. kl: at most, nats, mean. perplexity_ratio: at most. top1: at least, a share."""

    kl: float
    perplexity_ratio: float
    top1: float = 0.0

    def hold(self, kl: float, top1: float, perplexity_ratio: float) -> bool:
        """Whether all are kept. What is no number keeps none."""
        return kl <= self.kl and perplexity_ratio <= self.perplexity_ratio and top1 >= self.top1


BOUNDS: Final = {
    Verdict.GOOD: Bounds(kl=0.15, perplexity_ratio=1.15, top1=0.8),
    Verdict.USABLE: Bounds(kl=0.6, perplexity_ratio=1.7),
    Verdict.DEGRADED: Bounds(kl=0.8, perplexity_ratio=2.2),
}
"""Top-1 agreement is asked for where replies shall be the checkpoint's own. It cannot tell a broken model: where all
tokens are about as likely, as in a model without training, another order among them means nothing."""


def verdict_of(kl: float, top1: float, perplexity_ratio: float) -> Verdict:
    """kl: mean of KL(checkpoint || bundle) in nats. top1: share of positions with the same most likely token.

    perplexity_ratio: bundle / checkpoint.
    """
    return next((v for v, bounds in BOUNDS.items() if bounds.hold(kl, top1, perplexity_ratio)), Verdict.NOT_USABLE)
