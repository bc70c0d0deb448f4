"""What pushes a token's logit down because of what was generated before: repetition, repeated n-grams, a ban list.

Each follows from the logits and the tokens generated *in this reply*: the prompt does not count, and a new
reply starts afresh. The arithmetic is LiteRT-LM's (runtime/components/logits_processor at 0.18.1).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from gemma_edge.runtime.text.logits import Logits
from gemma_edge.runtime.text.occurrences import Counts, Ngrams
from gemma_edge.runtime.text.sampler import SamplerError


@dataclass(frozen=True)
class RepetitionPenaltyConfig:
    """Makes tokens that were generated before less likely.

    repetition_penalty: positive logits are divided by it, the others multiplied (None or 1: off).
    presence_penalty: subtracted once from the logit of every such token (0).
    frequency_penalty: subtracted as often as the token was generated (0).
    window_size: how many tokens back count; None or 0: all.
    """

    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    window_size: int | None = None

    def __post_init__(self) -> None:
        if self.repetition_penalty is not None and not self.repetition_penalty >= 1.0:
            raise SamplerError(
                f"repetition_penalty is {self.repetition_penalty}, expected at least 1.0; 1.0 switches it off"
            )
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if value is not None and not abs(value) <= float(np.finfo(np.float32).max):
                raise SamplerError(
                    f"{name} is {value}, expected a number within float32; leave it out to switch it off"
                )
        _check_window(self.window_size)


@dataclass(frozen=True)
class NoRepeatNgramConfig:
    """Forbids a run of tokens to occur twice.

    no_repeat_ngram_size: its length; None or 0: off.
    window_size: how many tokens back count; None or 0: all; at least no_repeat_ngram_size.
    """

    no_repeat_ngram_size: int | None = None
    window_size: int | None = None

    def __post_init__(self) -> None:
        if self.no_repeat_ngram_size is not None and self.no_repeat_ngram_size < 0:
            raise SamplerError(
                f"no_repeat_ngram_size is {self.no_repeat_ngram_size}, expected 0 or more; 0 switches it off"
            )
        _check_window(self.window_size)


@dataclass(frozen=True)
class SuppressTokensConfig:
    """Token ids that are never generated."""

    suppress_tokens: Collection[int] | None = None

    def __post_init__(self) -> None:
        for token_id in self.suppress_tokens or ():
            if token_id < 0:
                raise SamplerError(f"suppress_tokens has {token_id}, expected token ids of 0 or more; leave it out")


def _check_window(window_size: int | None) -> None:
    if window_size is not None and window_size < 0:
        raise SamplerError(f"window_size is {window_size}, expected 0 or more; 0 takes everything into account")


@dataclass(frozen=True)
class Penalties:
    """The penalties of one reply, applied in litert_lm's order."""

    repetition: RepetitionPenaltyConfig = RepetitionPenaltyConfig()
    no_repeat_ngram: NoRepeatNgramConfig = NoRepeatNgramConfig()
    suppress: SuppressTokensConfig = SuppressTokensConfig()
    bias: Mapping[int, float] = field(default_factory=dict)  # added to logits, by token id (litert_lm has none)

    def start(self) -> "ReplyPenalties":
        """Those of a new reply."""
        return ReplyPenalties(self)


class ReplyPenalties:
    """The penalties of a reply while it is written. Apply them to logits, draw, add what was drawn; repeat."""

    def __init__(self, penalties: Penalties) -> None:
        self._penalties = penalties
        self._counts = Counts(penalties.repetition.window_size or 0)
        ngram = penalties.no_repeat_ngram
        self._ngrams = Ngrams(ngram.no_repeat_ngram_size or 0, ngram.window_size or 0)

    def add(self, token_id: int) -> None:
        """The reply's next token."""
        self._counts.add(token_id)
        self._ngrams.add(token_id)

    def apply(self, logits: Logits) -> None:
        """Changes logits [V]."""
        add_bias(logits, self._penalties.bias)
        penalize_repetition(logits, self._counts, self._penalties.repetition)
        for token_ids in self.banned().values():
            ban(logits, token_ids)

    def banned(self) -> dict[str, Collection[int]]:
        """Tokens that may not come next, by what forbids them."""
        return {
            "no_repeat_ngram_config": self._ngrams.repeating(),
            "suppress_tokens_config": self._penalties.suppress.suppress_tokens or (),
        }


def add_bias(logits: Logits, bias: Mapping[int, float]) -> None:
    """Adds a number to some of the logits [V]; ids outside the vocabulary are ignored."""
    for token_id, value in bias.items():
        if 0 <= token_id < len(logits):
            logits[token_id] += np.float32(value)


def ban(logits: Logits, token_ids: Collection[int]) -> None:
    """Sets some of the logits [V] to -inf; ids outside the vocabulary are ignored."""
    if token_ids:
        logits[[token_id for token_id in token_ids if 0 <= token_id < len(logits)]] = -np.inf


def penalize_repetition(logits: Logits, written: Counts, config: RepetitionPenaltyConfig) -> None:
    """Makes every token that was written less likely: changes logits [V]."""
    factor, presence = config.repetition_penalty or 1.0, config.presence_penalty or 0.0
    frequency = config.frequency_penalty or 0.0
    if factor == 1.0 and presence == 0.0 and frequency == 0.0:
        return
    token_ids, counts = written.found()  # [n]
    lowered = np.float32(presence) + counts * np.float32(frequency)
    values = logits[token_ids]
    values = np.where(values > 0, values / np.float32(factor), values * np.float32(factor))
    logits[token_ids] = values - lowered
