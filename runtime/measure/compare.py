"""How far two models of one checkpoint are apart: in probabilities, in text, in size, memory and speed.

Both read the same tokens, one window after the other, and their logits are compared after each token: no more than two
rows of logits exist at a time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gemma_edge.profiles.errors import GemmaEdgeError

Logits = NDArray[np.float32]


class ComparisonError(GemmaEdgeError):
    """Two models that cannot be compared, or nothing to compare them on."""


@dataclass(frozen=True)
class Cost:
    """What running one model took. size_bytes: on disk, without caches. Memory is that of its process, at its end."""

    size_bytes: int
    anon_bytes: int
    file_bytes: int
    decode_tokens_per_s: float


class Comparable(Protocol):
    """A model that reads tokens."""

    def score(self, token_ids: Sequence[int]) -> Iterable[Logits]:
        """The logits after each token of a text of its own: float32 [V]."""

    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        """The most likely continuation, stop tokens included."""

    def cost(self) -> Cost:
        """So far."""


@dataclass(frozen=True)
class Distance:
    """Of two models' predictions over a text.

    kl_ab: mean KL(A || B) in nats. top1: share of positions with the same most likely token.
    """

    tokens: int
    kl_ab: float
    kl_ba: float
    top1: float
    largest_logit_difference: float
    perplexity_a: float
    perplexity_b: float


@dataclass(frozen=True)
class Comparison:
    """greedy_same_tokens: how many tokens of the greedy continuations agree before the first that does not."""

    distance: Distance
    greedy_tokens: int
    greedy_same_tokens: int
    a: Cost
    b: Cost


def compare(a: Comparable, b: Comparable, token_ids: Sequence[int], window: int, greedy_tokens: int) -> Comparison:
    """Over `token_ids` in windows of `window` tokens, each a text of its own, and in greedy text after the first half
    window.

    Raises ComparisonError: fewer than two tokens, different vocabularies.
    """
    if len(token_ids) < 2 or window < 2:
        raise ComparisonError(
            f"found {len(token_ids)} tokens in windows of {window}, expected 2 or more of both; give more text"
        )
    sums = _Sums()
    for first in range(0, len(token_ids), window):
        text = token_ids[first : first + window]
        following = [*text[1:], None]
        for row_a, row_b, token in zip(a.score(text), b.score(text), following, strict=True):
            sums.add(row_a, row_b, token)
    prompt = token_ids[: window // 2]
    pairs = list(zip(a.greedy(prompt, greedy_tokens), b.greedy(prompt, greedy_tokens), strict=True))
    same = next((i for i, (left, right) in enumerate(pairs) if left != right), greedy_tokens)
    return Comparison(sums.distance(), greedy_tokens, same, a.cost(), b.cost())


class _Sums:
    """Means in the making."""

    def __init__(self) -> None:
        self._rows = self._followed = self._same = 0
        self._kl_ab = self._kl_ba = self._largest = 0.0
        self._surprise_a = self._surprise_b = 0.0

    def add(self, logits_a: Logits, logits_b: Logits, following: int | None) -> None:
        """One position. following: the token that the text has next, None at its end."""
        if logits_a.shape != logits_b.shape:
            raise ComparisonError(
                f"vocabularies of {logits_a.size} and {logits_b.size} tokens, expected the same; "
                "compare models of one checkpoint"
            )
        a, b = _log_softmax(logits_a), _log_softmax(logits_b)
        difference = a - b
        self._kl_ab += float((np.exp(a) * difference).sum())
        self._kl_ba -= float((np.exp(b) * difference).sum())
        self._same += int(a.argmax() == b.argmax())
        self._largest = max(self._largest, float(np.abs(logits_a - logits_b).max()))
        self._rows += 1
        if following is not None:
            self._surprise_a -= float(a[following])
            self._surprise_b -= float(b[following])
            self._followed += 1

    def distance(self) -> Distance:
        rows, followed = self._rows, max(1, self._followed)
        return Distance(
            rows,
            self._kl_ab / rows,
            self._kl_ba / rows,
            self._same / rows,
            self._largest,
            float(np.exp(self._surprise_a / followed)),
            float(np.exp(self._surprise_b / followed)),
        )


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result
