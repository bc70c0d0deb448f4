"""Replies as they are written: from tokens to pieces of text, calls, log probabilities and a reason to end."""

import json
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from gemma_edge.runtime.chat.calls.channels import ChannelParser, Thought
from gemma_edge.runtime.chat.calls.syntax import Chunk, Mistake, ReplyParser
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.kv.generate import Decoding, Drawn, Reason, ReplyText
from gemma_edge.runtime.kv.turn import Mark, Prompt, Turn
from gemma_edge.runtime.serve.api.ask import Ask
from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.hooks import ReplyFilter
from gemma_edge.runtime.text.constraints import Constraint, ConstraintError
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig
from gemma_edge.runtime.text.stop_texts import StopTexts


@dataclass(frozen=True)
class ToolCall:
    """arguments: a JSON object, as text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Piece:
    """What is new of one reply. finish: why it ended, with the last piece."""

    choice: int
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    tokens: tuple[Drawn, ...] = ()
    finish: str | None = None


@dataclass
class Totals:
    """What a request took. Filled while it runs. token_s: of every token after a reply's first."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    forced_tokens: int = 0
    batched_tokens: int = 0
    first_token_at: float | None = None  # time.monotonic
    token_s: list[float] = field(default_factory=list)


class _Reply:
    """One reply: what its tokens come to."""

    def __init__(self, engine: Engine, ask: Ask, guard: ReplyFilter | None) -> None:
        model = engine.text_model
        self._ask = ask
        self._text = ReplyText(model.tokenizer, model.stop)
        self._stop = StopTexts(ask.stop)
        self._guard = guard
        self._channels = ChannelParser(model.channels)
        self._parser = ReplyParser(model.tool_syntax, ask.parameters) if ask.tools and not ask.is_forced else None
        self._json = ""  # of a call that was demanded
        self._calls = 0
        self.whole = ""  # all text that was certain

    @property
    def is_over(self) -> bool:
        """Whether nothing that may still come counts."""
        return self._stop.is_found or (self._ask.has_one_call and self._calls > 0)

    @property
    def has_calls(self) -> bool:
        return self._calls > 0

    def feed(self, token_id: int) -> list[str | ToolCall]:
        return self._certain(self._stop.feed(self._text.push(token_id)))

    def finish(self) -> list[str | ToolCall]:
        """What was held back."""
        rest = "" if self._stop.is_found else self._stop.feed(self._text.finish()) + self._stop.finish()
        found = self._certain(rest)
        if self._guard is not None:
            found += self._parsed(self._guard.finish())
        found += self._answered(self._channels.finish())
        if self._parser is not None:
            found += [item for chunk in self._parser.finish() for item in self._items(chunk)]
        if self._ask.is_forced:
            found += self._demanded()
        return found

    def _certain(self, text: str) -> list[str | ToolCall]:
        self.whole += text
        if text and self._guard is not None:
            text = self._guard.feed(text)
        return self._parsed(text)

    def _parsed(self, text: str) -> list[str | ToolCall]:
        if self._ask.is_forced:
            self._json += text
            return []
        return self._answered(self._channels.push(text))

    def _answered(self, parts: Iterable[str | Thought]) -> list[str | ToolCall]:
        """Without what was written into channels."""
        texts = [part for part in parts if isinstance(part, str)]
        if self._parser is None:
            return [*texts]
        return [item for text in texts for chunk in self._parser.push(text) for item in self._items(chunk)]

    def _items(self, chunk: Chunk) -> list[str | ToolCall]:
        if isinstance(chunk, Thought):
            return []
        if isinstance(chunk, str):
            return [chunk] if not (self._ask.has_one_call and self._calls) else []
        if isinstance(chunk, Mistake):  # what only looks like a call is text
            return [chunk.text]
        calls = [ToolCall(call.name, _json(dict(call.arguments))) for call in chunk]
        if self._ask.has_one_call:
            calls = calls[: 1 - self._calls] if self._calls < 1 else []
        self._calls += len(calls)
        return list(calls)

    def _demanded(self) -> list[str | ToolCall]:
        """A call that was cut off is text, so that nothing is lost."""
        try:
            found = json.loads(self._json)
            call = ToolCall(found["name"], _json(found["arguments"]))
        except (ValueError, KeyError, TypeError):
            return [self._json] if self._json else []
        self._calls = 1
        return [call]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Choice:
    """One reply that is to be written. constraint: a fresh one, of the form the reply is to have."""

    prompt: Prompt
    sampler: SamplerConfig
    constraint: Constraint | None
    guard: ReplyFilter | None


async def written(engine: Engine, ask: Ask, choices: Sequence[Choice], totals: Totals) -> AsyncGenerator[Piece, None]:
    """The pieces of all replies, one reply after the other.

    Raises RefusedError: the guard ends a reply (RESPONSE_FILTERED), or it breaks its schema. GemmaEdgeError: the model
    stopped.
    """
    for index, choice in enumerate(choices):
        async with aclosing(_written(engine, ask, choice, index, totals)) as pieces:
            try:
                async for piece in pieces:
                    yield piece
            except RefusedError as refusal:
                if refusal.code is not Code.RESPONSE_FILTERED or not ask.is_stream:
                    raise
                yield Piece(index, finish="content_filter")


async def _written(engine: Engine, ask: Ask, choice: Choice, index: int, totals: Totals) -> AsyncGenerator[Piece, None]:
    model, constraint = engine.text_model, choice.constraint
    how = Decoding(Sampler(choice.sampler), model.stop, ask.penalties, constraint, ask.max_tokens, ask.best)
    reply = _Reply(engine, ask, choice.guard)
    turn = engine.new_sequence(is_passing=ask.is_passing).reply(choice.prompt, how, Mark.BEFORE_REPLY)
    pending: list[Drawn] = []  # tokens whose text has not left
    try:
        async for token_id in turn:
            totals.first_token_at = totals.first_token_at or time.monotonic()
            if ask.best is not None and turn.drawn is not None and not model.stop.ended([token_id]):
                pending.append(turn.drawn)
            if found := reply.feed(token_id):
                yield _piece(index, found, pending)
                pending = []
            if reply.is_over:
                break
    finally:
        ended = turn.reason
        turn.cancel()
        _add(totals, turn)
    rest = reply.finish()
    if constraint is not None and ended is Reason.STOP:
        try:
            constraint.check(reply.whole)
        except ConstraintError as error:  # which quotes the reply
            message = str(error) if choice.guard is None else "the reply breaks its JSON schema; ask again"
            raise RefusedError(422, Code.GENERATION_ERROR, message) from error
    yield replace(_piece(index, rest, pending), finish=_finish(ended, reply))


def _piece(choice: int, found: Sequence[str | ToolCall], tokens: Sequence[Drawn]) -> Piece:
    text = "".join(item for item in found if isinstance(item, str))
    calls = tuple(item for item in found if isinstance(item, ToolCall))
    return Piece(choice, text, calls, tuple(tokens))


def _add(totals: Totals, turn: Turn) -> None:
    usage = turn.usage
    totals.prompt_tokens += usage.prompt
    totals.cached_tokens += usage.cached
    totals.generated_tokens += usage.generated
    totals.drafted_tokens += turn.timing.drafted_tokens
    totals.accepted_tokens += turn.timing.accepted_tokens
    totals.forced_tokens += turn.timing.forced_tokens
    totals.batched_tokens += turn.timing.batched_tokens
    totals.token_s += turn.timing.token_s


def _finish(reason: Reason | None, reply: _Reply) -> str:
    if reason is Reason.LENGTH and not reply.is_over:
        return "length"
    return "tool_calls" if reply.has_calls else "stop"
