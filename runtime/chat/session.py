"""A session: raw text in, text out, over one growing token sequence. Conversations are the level above.

Names and meaning are litert_lm's (runtime/core/session_advanced.cc and session_utils.cc at 0.18.1). Beyond it:
`logits`, `token_ids`, `timing`, an asyncio stream, and scoring of several targets that leaves the session as it was
(litert_lm appends the target and cannot decode after it).
"""

import os
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Self

from gemma_edge.profiles.paths import user_path
from gemma_edge.runtime.chat.figures import BenchmarkInfo
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.executors.base import ExecutorError, Logits
from gemma_edge.runtime.kv.generate import Decoding, Reason, ReplyText, TurnTiming
from gemma_edge.runtime.kv.scheduler import CancelledError
from gemma_edge.runtime.kv.sequence import TokenSequence
from gemma_edge.runtime.kv.turn import Turn, Usage
from gemma_edge.runtime.kv.waiting import Blocking, InLoop, Waiting, blocking
from gemma_edge.runtime.text.penalties import Penalties
from gemma_edge.runtime.text.sampler import Sampler


class SessionError(ExecutorError):
    """A call that the present state of the session does not allow."""


@dataclass(frozen=True)
class Responses:
    """What the model said, or how likely it finds what it was given.

    texts: the generated text, or the targets of `run_text_scoring`.
    scores: of `run_text_scoring`, the log likelihood of each target (litert_lm puts 0.0 here when decoding).
    token_lengths: of `run_text_scoring(store_token_lengths=True)`, the tokens of each target.
    token_scores: of `run_text_scoring`, the log likelihood of each token of each target.
    """

    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    token_lengths: list[int] = field(default_factory=list)
    token_scores: list[list[float]] = field(default_factory=list)


class _State(Enum):
    FRESH = "fresh"
    PREFILLED = "prefilled"
    DECODED = "decoded"


class Session:
    """Made by `Engine.create_session`. For one thread at a time, except `cancel_process`."""

    def __init__(
        self,
        model: TextModel,
        sequence: TokenSequence,
        sampler: Sampler,
        init_s: float,
        *,
        apply_prompt_template: bool = True,
        max_output_tokens: int | None = None,
    ) -> None:
        """init_s: seconds it took to create the engine."""
        self._model = model
        self._init_s = init_s
        self._sequence: TokenSequence | None = sequence
        self._sampler = sampler
        self._apply_prompt_template = apply_prompt_template
        self._max_output_tokens = max_output_tokens
        self._state = _State.FRESH
        self._prefill_tokens = self._run_tokens = 0
        self._prefill_s = 0.0
        self._turn: Turn | None = None  # the last reply that was begun
        self._timing = TurnTiming()

    def run_prefill(self, contents: list[str]) -> None:
        """Append text to the prompt of this turn, and run it.

        With the prompt template, the first call of a turn opens it and `run_decode` closes it. The very first call puts
        the model's start token in front. Each content is tokenized by itself.

        Raises:
            SessionError: no text, a start token written into it, or `cancel_process` was called meanwhile.
            ContextOverflowError: the prompt does not fit.

        After an error the session is as it was before.
        """
        sequence = self._idle()
        token_ids = self._prompt_tokens(contents)
        length = len(sequence)
        started = time.perf_counter()
        try:
            sequence.append(token_ids)
            run_tokens = sequence.prefill()
        except BaseException as error:
            sequence.truncate(length)
            if isinstance(error, CancelledError):
                raise SessionError("the prefill was cancelled; run it again to continue") from None
            raise
        if self._state is not _State.PREFILLED:
            self._prefill_tokens = self._run_tokens = 0
            self._prefill_s = 0.0
        self._prefill_tokens += len(token_ids)
        self._run_tokens += run_tokens
        self._prefill_s += time.perf_counter() - started
        self._state = _State.PREFILLED

    def _prompt_tokens(self, contents: Sequence[str]) -> list[int]:
        model = self._model
        texts = self._closing_texts()
        texts += [model.start_text] if self._state is _State.FRESH and model.start_text else []
        for index, content in enumerate(contents):
            if self._apply_prompt_template and model.start_text and content.startswith(model.start_text):
                raise SessionError(f"the text begins with {model.start_text}, which the template adds; leave it out")
            opens = self._apply_prompt_template and index == 0 and self._state is not _State.PREFILLED
            texts.append(model.prompt_templates.user.prefix + content if opens else content)
        token_ids = [token_id for text in texts for token_id in model.encode(text)]
        if not any(contents) or not token_ids:
            raise SessionError("run_prefill got no text; pass at least one string that is not empty")
        return token_ids

    def _closing_texts(self) -> list[str]:
        """What ends a reply that was cut off, so that the next prompt does not follow inside it."""
        sequence = self._open()
        is_cut = self._state is _State.DECODED and not self._model.stop.ended(sequence.token_ids)
        return [self._model.prompt_templates.model.suffix] if is_cut and self._apply_prompt_template else []

    def run_decode(self) -> Responses:
        """Generate until a stop token, `max_output_tokens`, the end of the context or `cancel_process`.

        Raises:
            SessionError: there is no prompt since the last reply.
            ContextOverflowError: the end of the template's turn does not fit.
        """
        return Responses(texts=["".join(blocking(self._texts(self._reply(), Blocking())))])

    def run_decode_async(self) -> Iterator[Responses]:
        """As `run_decode`, piece by piece; the texts add up to the same.

        It is written from now on, whether it is read or not; what is not read before the next call is forgotten.
        """
        turn = self._reply()
        return (Responses(texts=[text]) for text in blocking(self._texts(turn, Blocking())))

    def stream_decode(self) -> AsyncGenerator[Responses, None]:
        """As `run_decode_async`, for asyncio. Cancelling the task cancels the reply."""
        return self._responses(self._reply())

    async def _responses(self, turn: Turn) -> AsyncGenerator[Responses, None]:
        async with aclosing(self._texts(turn, InLoop())) as texts:
            async for text in texts:
                yield Responses(texts=[text])

    def _reply(self) -> Turn:
        sequence = self._idle()
        if self._state is not _State.PREFILLED:
            raise SessionError(f"nothing to answer: the session is {self._state.value}; call run_prefill first")
        templates = self._model.prompt_templates
        closing = templates.user.suffix + templates.model.prefix if self._apply_prompt_template else ""
        suffix = self._model.encode(closing) if closing else []
        penalties = Penalties(suppress=self._model.suppress)
        how = Decoding(self._sampler, self._model.stop, penalties, max_output_tokens=self._max_output_tokens)
        self._turn = turn = sequence.reply(suffix, how)
        return turn

    async def _texts(self, turn: Turn, wait: Waiting) -> AsyncGenerator[str, None]:
        """The pieces of a reply. Until its first token is read the turn is open, and another call may answer it."""
        text = ReplyText(self._model.tokenizer, self._model.stop)
        try:
            while (token_id := await wait.token(turn)) is not None:
                self._state, self._timing = _State.DECODED, turn.timing
                if piece := text.push(token_id):
                    yield piece
            if rest := text.finish():
                yield rest
        finally:
            turn.cancel()

    def run_text_scoring(self, target_text: list[str], store_token_lengths: bool = False) -> Responses:
        """The log likelihood of each target as the continuation of the session, which stays as it is.

        Raises:
            SessionError: nothing was prefilled, or `cancel_process` was called meanwhile.
            ContextOverflowError: a target does not fit.
        """
        sequence = self._idle()
        if not len(sequence):
            raise SessionError("nothing to continue: the session is fresh; call run_prefill first")
        targets = [self._model.tokenizer.encode(text) for text in target_text]
        try:
            token_scores = [sequence.score(target) for target in targets]
        except CancelledError:
            raise SessionError("the scoring was cancelled; run it again") from None
        return Responses(
            texts=list(target_text),
            scores=[sum(scores) for scores in token_scores],
            token_lengths=[len(target) for target in targets] if store_token_lengths else [],
            token_scores=token_scores,
        )

    @property
    def token_ids(self) -> Sequence[int]:
        """Every token so far: start token, templates, prompts, and replies with their stop token."""
        return self._open().token_ids

    @property
    def logits(self) -> Logits:
        """The logits of the token after the last of `token_ids`: float32 [V].

        Raises SessionError: nothing was prefilled, or `cancel_process` was called meanwhile.
        """
        sequence = self._open()
        if not len(sequence):
            raise SessionError("no logits: the session is fresh; call run_prefill first")
        try:
            return sequence.logits()
        except CancelledError:
            raise SessionError("reading the logits was cancelled; ask for them again") from None

    @property
    def reason(self) -> Reason | None:
        """Why the last reply ended; None before."""
        return None if self._turn is None else self._turn.reason

    @property
    def usage(self) -> Usage:
        """Tokens of the last reply. What `run_prefill` ran before it is cached by then."""
        return Usage() if self._turn is None else self._turn.usage

    @property
    def timing(self) -> TurnTiming:
        """Of the last turn, token by token. Prefill counts from `run_prefill` on."""
        return TurnTiming(
            prefill_tokens=self._prefill_tokens + self._timing.prefill_tokens,
            run_tokens=self._run_tokens + self._timing.run_tokens,
            time_to_first_token_s=self._prefill_s + self._timing.time_to_first_token_s,
            token_s=list(self._timing.token_s),
            drafted_tokens=self._timing.drafted_tokens,
            accepted_tokens=self._timing.accepted_tokens,
            verify_calls=self._timing.verify_calls,
            forced_tokens=self._timing.forced_tokens,
            batched_tokens=self._timing.batched_tokens,
        )

    def get_benchmark_info(self) -> BenchmarkInfo:
        """Figures of the last turn, in litert_lm's terms. Always measured; litert_lm wants `enable_benchmark`."""
        return BenchmarkInfo.of(self._init_s, self.timing)

    def cancel_process(self) -> None:
        """End the call that is running in another thread within one token. Generated text that was read is kept."""
        if self._sequence is not None:
            self._sequence.cancel()

    def save_cache(self, path: str | os.PathLike[str]) -> None:
        """Write the keys and values of all tokens but the last to a file, for `Engine.load_cache`.

        Raises SessionError: nothing was prefilled. OutputError: the file cannot be written.
        """
        sequence = self._idle()
        if not len(sequence):
            raise SessionError("nothing to save: the session is fresh; call run_prefill first")
        sequence.save(user_path(path))

    def close(self) -> None:
        """Forget the tokens. Closing twice, or after the engine, is fine."""
        self.cancel_process()
        self._sequence = None

    def _idle(self) -> TokenSequence:
        """To do something new with: a reply that was not read to its end is cut where reading stopped."""
        sequence = self._open()
        if self._turn is not None:
            self._turn.cancel()
        return sequence

    def _open(self) -> TokenSequence:
        if self._sequence is None:
            raise SessionError("the session is closed; create a new one")
        return self._sequence

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
