"""The loop that writes a reply: logits, penalties, constraint, draw, until a stop token or a limit."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.executors.base import ExecutorError, Logits
from gemma_edge.runtime.text.constraints import Constraint, ConstraintError
from gemma_edge.runtime.text.logits import Scores, scores
from gemma_edge.runtime.text.penalties import Penalties, ReplyPenalties, ban
from gemma_edge.runtime.text.sampler import Sampler, SamplerError
from gemma_edge.runtime.text.tokenizer import Detokenizer, Tokenizer


class Reason(StrEnum):
    """Why a reply ended: at a stop token, at a limit or the end of the context, cancelled, with calls of tools to be
    answered by whoever asked, or because memory ran out."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    TOOL_CALLS = "tool_calls"
    BUDGET = "budget"


@dataclass(frozen=True)
class Guessed:
    """How a token's logits were come by. drafted: guesses that ran with the call that gave them; 0 of a plain step.
    is_accepted: they came with an earlier call, which had guessed the token before. is_forced: likewise, and the
    response format had left no other token there: it was no guess.
    """

    drafted: int = 0
    is_accepted: bool = False
    is_forced: bool = False


@dataclass
class TurnTiming:
    """What one turn took. Filled while it runs.

    drafted_tokens: guesses that were run. accepted_tokens: those that stood and saved a call. verify_calls: calls that
    ran guesses. forced_tokens: those that a response format left no choice about, and that saved a call; no guesses.
    batched_tokens: those whose step ran in one call with other conversations'.
    """

    media_s: float = 0.0  # spent on images and recordings, before prefill
    prefill_tokens: int = 0  # of the prompt
    run_tokens: int = 0  # what had to run before the first token: no prefix that was there, but all that was lost
    time_to_first_token_s: float = 0.0  # from the start of prefill until the first token is drawn
    token_s: list[float] = field(default_factory=list)  # of every later token
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    verify_calls: int = 0
    forced_tokens: int = 0
    batched_tokens: int = 0

    def add_call(self, guessed: Guessed, together: int) -> None:
        """Count one token's, as `Drawn` has them."""
        self.batched_tokens += together > 1
        self.drafted_tokens += guessed.drafted
        self.accepted_tokens += guessed.is_accepted
        self.verify_calls += guessed.drafted > 0
        self.forced_tokens += guessed.is_forced

    @property
    def decode_tokens(self) -> int:
        """All tokens drawn, the first one included."""
        return len(self.token_s) + bool(self.time_to_first_token_s)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Of what had to run."""
        return self.run_tokens / self.time_to_first_token_s if self.time_to_first_token_s else 0.0

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
    """How one reply is written.

    best: of how many likeliest tokens to tell log probabilities beside the drawn one's; None: of none at all.
    """

    sampler: Sampler
    stop: StopTokens
    penalties: Penalties = field(default_factory=Penalties)
    constraint: Constraint | None = None
    max_output_tokens: int | None = None
    best: int | None = None


@dataclass(frozen=True)
class Drawn:
    """A token that was drawn. sampler_state: of the generator afterwards. seconds: since the one before, or `draw`.

    reason: why it is the last; None where it is not. together: of how many conversations the call took a step that gave
    its logits.
    """

    token_id: int
    sampler_state: int
    seconds: float
    scores: Scores | None = None
    guessed: Guessed = Guessed()
    reason: Reason | None = None
    together: int = 1


def draw(decode: Callable[[int], Logits], last: int, room: int, how: Decoding) -> Generator[Drawn, None, Reason]:
    """Token after token, a stop token included, until a stop sequence, `max_output_tokens`, or `room` tokens.

    decode: the logits after one more token, float32 [V], which are changed. last: the token before the first that is
    drawn.

    Raises ExecutorError: the logits are not finite. SamplerError: penalties forbid every token. ConstraintError: they
    forbid what the constraint demands.
    """
    generated: list[int] = []
    penalties = how.penalties.start()
    limit = room if how.max_output_tokens is None else min(room, how.max_output_tokens)
    started = time.perf_counter()
    while len(generated) < limit:
        given = decode(last)
        logits = given if how.best is None else given.copy()
        penalties.apply(logits)
        last = _pick(how, logits, penalties)
        generated.append(last)
        penalties.add(last)
        now = time.perf_counter()
        told = None if how.best is None else scores(given, last, how.best)
        reason = Reason.STOP if how.stop.ended(generated) else Reason.LENGTH if len(generated) == limit else None
        yield Drawn(last, how.sampler.state, now - started, told, reason=reason)
        started = now
        if reason is not None:
            return reason
        if how.constraint is not None:
            how.constraint.accept(last)
    return Reason.LENGTH


def _pick(how: Decoding, logits: Logits, penalties: ReplyPenalties) -> int:
    """A token that may follow; changes logits [V]. Raises what `draw` does."""
    if how.constraint is None or how.sampler.is_greedy:
        picked = how.sampler.pick(logits)
        if how.constraint is None or (logits[picked] != -np.inf and how.constraint.allows(picked)):
            if not np.isfinite(logits[picked]):
                raise _none_left(how, logits[picked], len(logits), penalties)
            return picked  # mostly: a model that is asked for a format keeps to it
    elif how.constraint.is_wide():
        allowed = how.sampler.pick_allowed(logits, how.constraint.allowed)
        if allowed is not None:
            return allowed
    left, token_ids = how.constraint.narrow(logits)
    picked = how.sampler.pick(left)
    if not np.isfinite(left[picked]):
        raise _none_left(how, left[picked], len(logits), penalties)
    return picked if token_ids is None else int(token_ids[picked])


def _none_left(how: Decoding, logit: np.float32, tokens: int, penalties: ReplyPenalties) -> GemmaEdgeError:
    """What is wrong where no token can be picked. logit: the likeliest token's. tokens: of the vocabulary.

    Whether penalties forbid all of them is seen on logits of 0: the model's own have been changed by them.
    """
    banned = {name: token_ids for name, token_ids in penalties.banned().items() if token_ids}
    zeros = np.zeros(tokens, np.float32)
    for token_ids in banned.values():
        ban(zeros, token_ids)
    if how.constraint is not None:
        zeros, _ = how.constraint.narrow(zeros)
    if logit != -np.inf or np.any(zeros == 0):
        return _not_finite(logit)
    if how.constraint is not None:
        return ConstraintError(
            "no_repeat_ngram_config or suppress_tokens_config forbids every token that the response format "
            "allows next; leave one of them out"
        )
    return SamplerError(
        f"{' and '.join(banned)} forbid{'s' * (len(banned) == 1)} all {tokens} tokens; allow some of them"
    )


def finite(logits: Logits) -> Logits:
    """The same logits [V]. Raises ExecutorError where they are NaN or infinite: what is drawn then means nothing."""
    highest = np.max(logits)  # NaN if one is
    if not np.isfinite(highest):
        raise _not_finite(highest)
    return logits


def _not_finite(logit: np.float32) -> ExecutorError:
    return ExecutorError(f"the model's logits are not finite ({logit}); convert the checkpoint again")


class ReplyText:
    """The text of a reply as it grows, without its stop sequence; never a part of a character."""

    def __init__(self, tokenizer: Tokenizer, stop: StopTokens) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._detokenizer = Detokenizer(tokenizer)
        self._generated: list[int] = []
        self._shown = 0

    def push(self, token_id: int) -> str:
        """The text that one more token adds, often none."""
        self._generated.append(token_id)
        return self._show(max(self._stop.ended(self._generated), self._stop.pending(self._generated)))

    def finish(self) -> str:
        """What was held back."""
        return self._show(self._stop.ended(self._generated)) + self._detokenizer.flush()

    def _show(self, held_back: int) -> str:
        end = len(self._generated) - held_back
        # Only training keeps a model from drawing what its vocabulary is padded with: no text, as in litert_lm.
        pieces = [token_id for token_id in self._generated[self._shown : end] if token_id < self._tokenizer.size]
        self._shown = end
        return "".join(map(self._detokenizer.push, pieces))


def as_text(token_ids: Iterable[int], tokenizer: Tokenizer, stop: StopTokens) -> Iterator[str]:
    """As `ReplyText`, of tokens that are there already; no piece is empty."""
    text = ReplyText(tokenizer, stop)
    yield from filter(None, map(text.push, token_ids))
    if rest := text.finish():
        yield rest
