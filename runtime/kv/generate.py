"""The loop that writes a reply: logits, penalties, constraint, draw, until a stop token or a limit."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gemma_edge.runtime.executors.base import ContextOverflowError
from gemma_edge.runtime.kv.sequence import TokenSequence
from gemma_edge.runtime.text.constraints import Constraint
from gemma_edge.runtime.text.penalties import Penalties
from gemma_edge.runtime.text.sampler import Sampler, log_probability
from gemma_edge.runtime.text.tokenizer import Detokenizer, Tokenizer


@dataclass
class TurnTiming:
    """What one turn took. Filled while it runs."""

    media_s: float = 0.0  # spent on images and recordings, before prefill
    prefill_tokens: int = 0
    time_to_first_token_s: float = 0.0  # from the start of prefill until the first token is drawn
    token_s: list[float] = field(default_factory=list)  # of every later token

    @property
    def decode_tokens(self) -> int:
        """All tokens drawn, the first one included."""
        return len(self.token_s) + bool(self.time_to_first_token_s)

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prefill_tokens / self.time_to_first_token_s if self.time_to_first_token_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        return len(self.token_s) / sum(self.token_s) if self.token_s else 0.0


class StopTokens:
    """Notices when a reply ends: with one of several token sequences, mostly of one token."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._sequences = [tuple(sequence) for sequence in sequences if sequence]

    def ended(self, generated: Sequence[int]) -> int:
        """How many tokens at the end are a stop sequence; 0: not ended."""
        lengths = [len(s) for s in self._sequences if tuple(generated[len(generated) - len(s) :]) == s]
        return max(lengths, default=0)

    def pending(self, generated: Sequence[int]) -> int:
        """How many tokens at the end may become a stop sequence, and must not be shown yet."""
        longest = max(map(len, self._sequences), default=1) - 1
        for count in range(min(longest, len(generated)), 0, -1):
            tail = tuple(generated[len(generated) - count :])
            if any(s[:count] == tail for s in self._sequences if len(s) > count):
                return count
        return 0


@dataclass(frozen=True)
class Decoding:
    """How one reply is written."""

    sampler: Sampler
    stop: StopTokens
    penalties: Penalties = field(default_factory=Penalties)
    constraint: Constraint | None = None
    max_output_tokens: int | None = None


def generate(sequence: TokenSequence, prompt: Sequence[int], how: Decoding, timing: TurnTiming) -> Iterator[int]:
    """Appends the prompt and then token after token to the sequence, yielding each one drawn, a stop token included.

    Ends after a stop sequence, `max_output_tokens`, or when the context is full.

    Raises:
        ContextOverflowError: the prompt does not fit, with room for one token of a reply; nothing is appended.
        CancelledError: `sequence.cancel` was called.
    """
    started = time.perf_counter()
    asked = len(sequence) + len(prompt) + 1
    if asked > sequence.context_tokens:
        raise ContextOverflowError(asked, sequence.context_tokens)
    sequence.append(prompt)
    timing.prefill_tokens = len(prompt)
    generated: list[int] = []
    limit = how.max_output_tokens
    while (limit is None or len(generated) < limit) and len(sequence) < sequence.context_tokens:
        logits = how.penalties.apply(sequence.logits(), generated)
        if how.constraint is not None:
            logits = how.constraint.mask(logits)
        token_id = how.sampler.pick(logits)
        sequence.append([token_id])
        generated.append(token_id)
        now = time.perf_counter()
        if len(generated) == 1:
            timing.time_to_first_token_s = now - started
        else:
            timing.token_s.append(now - started)
        started = now
        yield token_id
        if how.stop.ended(generated):
            return
        if how.constraint is not None:
            how.constraint.accept(token_id)


def as_text(token_ids: Iterator[int], tokenizer: Tokenizer, stop: StopTokens) -> Iterator[str]:
    """The text of a reply as it grows, without its stop sequence; never a part of a character, never empty."""
    detokenizer = Detokenizer(tokenizer)
    generated: list[int] = []
    shown = 0

    def show(end: int) -> str:
        nonlocal shown
        # Only training keeps a model from drawing what its vocabulary is padded with: no text, as in litert_lm.
        pieces = [token_id for token_id in generated[shown:end] if token_id < tokenizer.size]
        text = "".join(map(detokenizer.push, pieces))
        shown = end
        return text

    for token_id in token_ids:
        generated.append(token_id)
        if text := show(len(generated) - max(stop.ended(generated), stop.pending(generated))):
            yield text
    if text := show(len(generated) - stop.ended(generated)) + detokenizer.flush():
        yield text


def score(sequence: TokenSequence, target: Sequence[int]) -> list[float]:
    """The natural log probability of each target token after the sequence and the target tokens before it.

    Leaves the sequence as it was. Raises ContextOverflowError when the target does not fit.
    """
    length = len(sequence)
    scores = []
    try:
        for token_id in target:
            logits = sequence.logits()
            scores.append(log_probability(np.asarray(logits), token_id))
            sequence.append([token_id])
    finally:
        sequence.truncate(length)
    return scores
