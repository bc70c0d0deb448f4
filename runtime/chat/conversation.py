"""A conversation: messages in, messages out, with tools run in between and the KV cache kept from turn to turn.

Names and meaning are litert_lm's. Beyond it: `history`, `rewind`, `timing`, asyncio versions of the two ways to send,
and a bound on tool rounds. A turn that fails or is cancelled leaves the conversation as it was before.
"""

import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, Self

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.chat import aio
from gemma_edge.runtime.chat.figures import BenchmarkInfo
from gemma_edge.runtime.chat.media_reader import MediaReader
from gemma_edge.runtime.chat.messages import Contents, Json, Message, normalize_message
from gemma_edge.runtime.chat.prompt import Preface, PromptRenderer, as_received
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.chat.tool_syntax import Chunk, ReplyParser, joined
from gemma_edge.runtime.chat.tools import Tool, ToolBox, ToolEventHandler, ToolLoopError
from gemma_edge.runtime.config import check_max_output_tokens
from gemma_edge.runtime.executors.base import ContextOverflowError
from gemma_edge.runtime.kv.generate import Decoding, TurnTiming, as_text, generate
from gemma_edge.runtime.kv.sequence import CancelledError, TokenSequence
from gemma_edge.runtime.media.item import media_items
from gemma_edge.runtime.text.constraints import ConstrainedDecodingConfig, ConstraintError, ResponseFormat
from gemma_edge.runtime.text.penalties import (
    NoRepeatNgramConfig,
    Penalties,
    RepetitionPenaltyConfig,
    SuppressTokensConfig,
)
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig
from gemma_edge.runtime.text.template import ChatTemplate

Sendable = str | Contents | Message | Json


class ConversationError(GemmaEdgeError, RuntimeError):
    """The conversation is closed, busy, or has not the turns asked for. Also a RuntimeError, as litert_lm raises."""


@dataclass(frozen=True)
class ThinkingConfig:
    """Asks the chat template for reasoning (`enable_thinking`). Gemma 3 and 3n have none; the budget is not used."""

    enable_thinking: bool = True
    thinking_token_budget: int = -1


@dataclass(frozen=True)
class _Options:
    """What one call of `send_message` asks for beside the message."""

    penalties: Penalties
    max_output_tokens: int | None
    extra_context: Mapping[str, Any]
    response_format: ResponseFormat | None


class Conversation:
    """Made by `Engine.create_conversation`. Not for several threads at once, except `cancel_process`."""

    def __init__(
        self,
        model: TextModel,
        sequence: TokenSequence,
        init_s: float = 0.0,
        media: MediaReader | None = None,
        *,
        messages: Sequence[Json | Message] | None = None,
        tools: Sequence[Callable[..., Any] | Tool] | None = None,
        tool_event_handler: ToolEventHandler | None = None,
        automatic_tool_calling: bool = True,
        max_tool_rounds: int = 10,
        extra_context: Mapping[str, Any] | None = None,
        thinking_config: ThinkingConfig | None = None,
        sampler_config: SamplerConfig | None = None,
        system_message: str | None = None,
        constrained_decoding_config: ConstrainedDecodingConfig | None = None,
        max_output_tokens: int | None = None,
        chat_template: str | None = None,
    ) -> None:
        """init_s: seconds it took to create the engine. media: what reads images and recordings, by default nothing.

        max_tool_rounds: calls in a row before ToolLoopError.

        Raises TemplateError, BundleError: no usable chat template. ToolError: a tool without a name. ConfigError:
        max_output_tokens below 1.
        """
        check_max_output_tokens(max_output_tokens)
        self.messages = list(messages or ())
        self.automatic_tool_calling = automatic_tool_calling
        self.max_tool_rounds = max_tool_rounds
        self.extra_context = dict(extra_context or {})
        self.thinking_config = thinking_config
        self.sampler_config = sampler_config
        self.constrained_decoding_config = constrained_decoding_config
        self.max_output_tokens = max_output_tokens
        self._model = model
        self._sequence: TokenSequence | None = sequence
        self._init_s = init_s
        self._media = media or MediaReader(model)
        self._timing = TurnTiming()
        self._sampler = Sampler(sampler_config or model.sampler_config)
        self._tools = ToolBox(tools or (), tool_event_handler)
        system = [{"role": "system", "content": system_message}] if system_message else []
        preface = Preface(
            [*system, *(normalize_message(message) for message in self.messages)],
            self._tools.descriptions,
            self.extra_context,
        )
        self._preface_items = media_items(preface.messages)
        template = model.template if chat_template is None else ChatTemplate(chat_template)
        self._renderer = PromptRenderer(template, model.tool_syntax, preface)
        self._history: list[Json] = []
        self._turns: list[tuple[int, int]] = []  # where each began: messages, tokens
        self._is_answering = False

    # ------------------------------------------------------------ sending

    def send_message(
        self,
        message: Sendable,
        *,
        repetition_penalty_config: RepetitionPenaltyConfig | None = None,
        no_repeat_ngram_config: NoRepeatNgramConfig | None = None,
        suppress_tokens_config: SuppressTokensConfig | None = None,
        max_output_tokens: int | None = None,
        thinking_config: ThinkingConfig | None = None,
        response_format: ResponseFormat | None = None,
    ) -> Message:
        """Sends a message and returns the reply, after all tools it asked for have run.

        Cancelled from another thread, it returns what there was until then.
        Raises ContextOverflowError, MediaError, TemplateError, ConstraintError, ToolError, ToolLoopError, MessageError,
        ConfigError, TokenizerError; ConversationError while a stream of this conversation has not ended.
        """
        options = self._options(
            repetition_penalty_config,
            no_repeat_ngram_config,
            suppress_tokens_config,
            max_output_tokens,
            thinking_config,
            response_format,
        )
        chunks: list[Chunk] = []
        for chunk in self._send(message, options):
            if chunk is None:
                chunks.clear()  # an answer to tool calls follows, which is what counts
            else:
                chunks.append(chunk)
        return Message.from_json(_reply(chunks))

    def send_message_async(
        self,
        message: Sendable,
        *,
        repetition_penalty_config: RepetitionPenaltyConfig | None = None,
        no_repeat_ngram_config: NoRepeatNgramConfig | None = None,
        suppress_tokens_config: SuppressTokensConfig | None = None,
        max_output_tokens: int | None = None,
        thinking_config: ThinkingConfig | None = None,
        response_format: ResponseFormat | None = None,
    ) -> Generator[Message, None, None]:
        """As `send_message`, but yields the reply in pieces as it is written; the texts add up to the same reply.

        Calls that are answered here are not yielded. Leaving the loop early cancels the turn.
        """
        options = self._options(
            repetition_penalty_config,
            no_repeat_ngram_config,
            suppress_tokens_config,
            max_output_tokens,
            thinking_config,
            response_format,
        )
        for chunk in self._send(message, options):
            if isinstance(chunk, str) or (chunk and not self._answers_calls):
                yield Message.from_json(_reply([chunk]))

    async def asend_message(self, message: Sendable, **options: Any) -> Message:
        """`send_message` for asyncio. Cancelling the task cancels the turn."""
        replies = aio.stream((self.send_message(message, **options) for _ in range(1)), self.cancel_process)
        return await anext(replies)

    def asend_message_async(self, message: Sendable, **options: Any) -> AsyncGenerator[Message, None]:
        """`send_message_async` for asyncio."""
        return aio.stream(self.send_message_async(message, **options), self.cancel_process)

    def cancel_process(self) -> None:
        """Ends the present turn within one token (or one prefill call). May be called from any thread."""
        if self._sequence is not None:
            self._sequence.cancel()

    # ------------------------------------------------------------ looking inside

    def render_message_to_string(self, message: Sendable) -> str:
        """The text that sending this message now would add to the prompt."""
        self._open()
        return self._renderer.turn(self._history, [as_received(normalize_message(message))], self._extra(None))

    @property
    def token_count(self) -> int:
        """Tokens of the conversation so far, prompt and replies."""
        return len(self._open())

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens of the conversation so far."""
        return self._open().token_ids

    @property
    def history(self) -> Sequence[Json]:
        """Everything said since the preface, tool messages included, as JSON."""
        return tuple(self._history)

    @property
    def timing(self) -> TurnTiming:
        """Times of the last turn, token by token."""
        return self._timing

    def get_benchmark_info(self) -> BenchmarkInfo:
        """Figures of the last turn."""
        self._open()
        return BenchmarkInfo.of(self._init_s, self._timing)

    def rewind(self, turns: int = 1) -> None:
        """Forgets the last turns (message, tool rounds, reply), to send something else in their place."""
        self._open()
        self._check_idle()
        if not 0 <= turns <= len(self._turns):
            raise ConversationError(f"cannot go back {turns} turns, there are {len(self._turns)}; ask for fewer")
        if turns:
            messages, tokens = self._turns[-turns]
            self._forget(messages, tokens)

    def close(self) -> None:
        """Releases the conversation. Closing twice, and after the engine, is fine."""
        self._sequence = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ one turn

    @property
    def _answers_calls(self) -> bool:
        return self.automatic_tool_calling and len(self._tools) > 0

    def _send(self, message: Sendable, options: _Options) -> Iterator[Chunk | None]:
        """The chunks of a turn, with None before every answer to tool calls."""
        sequence = self._open()
        messages = [as_received(normalize_message(message))]
        with self._turn(sequence):
            for round_number in count():
                chunks: list[Chunk] = []
                for chunk in self._reply_to(sequence, messages, options):
                    chunks.append(chunk)
                    yield chunk
                reply = _reply(chunks)
                self._history += [*messages, reply]
                if not self._answers_calls or "tool_calls" not in reply:
                    return
                if round_number == self.max_tool_rounds:
                    raise ToolLoopError(
                        f"the model called tools {round_number + 1} times in a row, {self.max_tool_rounds} rounds are "
                        "allowed; raise max_tool_rounds or make the tools' results clearer"
                    )
                messages = [as_received(answer) for answer in self._tools.answer(reply["tool_calls"])]
                if not messages:
                    return
                yield None

    @contextmanager
    def _turn(self, sequence: TokenSequence) -> Iterator[None]:
        """Records where a turn begins; takes it back if it does not come to its end."""
        self._check_idle()
        began = (len(self._history), len(sequence))
        self._is_answering = True
        sequence.begin()
        try:
            if len(sequence):
                sequence.mark()
            yield
        except CancelledError:
            self._forget(*began)
        except BaseException:  # GeneratorExit too: whoever reads the stream has left
            self._forget(*began)
            raise
        else:
            self._turns.append(began)
        finally:
            self._is_answering = False

    def _may_constrain(self, messages: Sequence[Json]) -> bool:
        """A format for a reply that may have to be a call would forbid the call: then only answers keep to it."""
        return not self._answers_calls or messages[0].get("role") == "tool"

    def _reply_to(self, sequence: TokenSequence, messages: Sequence[Json], options: _Options) -> Iterator[Chunk]:
        self._timing = TurnTiming()
        prompt = self._prompt(sequence, messages, options)
        wanted = options.response_format if self._may_constrain(messages) else None
        constraint = None if wanted is None else self._model.constraint(wanted)
        how = Decoding(self._sampler, self._model.stop, options.penalties, constraint, options.max_output_tokens)
        texts = as_text(generate(sequence, prompt, how, self._timing), self._model.tokenizer, self._model.stop)
        if not len(self._tools):  # a fence is text to a model that was shown no tools
            yield from texts
            return
        parser = ReplyParser(self._model.tool_syntax)
        for piece in texts:
            yield from parser.push(piece)
        yield from parser.finish()

    def _prompt(self, sequence: TokenSequence, messages: Sequence[Json], options: _Options) -> list[int]:
        """What these messages add to the sequence."""
        text = self._renderer.turn(self._history, messages, options.extra_context)
        items = media_items(messages) if self._history else [*self._preface_items, *media_items(messages)]
        start = [] if len(sequence) else list(self._model.start_tokens)
        prompt = self._media.read(text, items)
        asked = len(sequence) + len(start) + prompt.token_count + 1
        if asked > sequence.context_tokens:  # before the seconds that encoding takes
            raise ContextOverflowError(asked, sequence.context_tokens)
        started = time.perf_counter()
        tokens = [*start, *prompt.tokens(sequence.check)]
        self._timing.media_s = time.perf_counter() - started if items else 0.0
        return tokens

    def _forget(self, messages: int, tokens: int) -> None:
        del self._history[messages:]
        self._turns = [turn for turn in self._turns if turn[0] < messages]
        if self._sequence is not None:
            self._sequence.truncate(tokens)

    def _options(
        self,
        repetition: RepetitionPenaltyConfig | None,
        ngram: NoRepeatNgramConfig | None,
        suppress: SuppressTokensConfig | None,
        max_output_tokens: int | None,
        thinking: ThinkingConfig | None,
        response_format: ResponseFormat | None,
    ) -> _Options:
        check_max_output_tokens(max_output_tokens)
        config = self.constrained_decoding_config
        if response_format is not None and config is not None and not config.enable:
            raise ConstraintError(
                "response_format was given but constrained_decoding_config.enable is False; enable it or leave it out"
            )
        penalties = Penalties(
            repetition or RepetitionPenaltyConfig(),
            ngram or NoRepeatNgramConfig(),
            suppress or self._model.suppress,
        )
        limit = self.max_output_tokens if max_output_tokens is None else max_output_tokens
        return _Options(penalties, limit, self._extra(thinking), response_format)

    def _extra(self, thinking: ThinkingConfig | None) -> dict[str, Any]:
        thinking = thinking or self.thinking_config
        chosen = {} if thinking is None else {"enable_thinking": thinking.enable_thinking}
        return {**chosen, **self.extra_context}

    def _check_idle(self) -> None:
        if self._is_answering:
            raise ConversationError("a reply is still being written; read its stream to the end or close it first")

    def _open(self) -> TokenSequence:
        if self._sequence is None:
            raise ConversationError("the conversation is closed; create a new one")
        return self._sequence


def _reply(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The model's message: what it wrote around its calls, one part for each stretch of text, and the calls."""
    texts, calls = joined(chunks)
    message: dict[str, Any] = {"role": "assistant"}
    if texts or not calls:
        message["content"] = [{"type": "text", "text": text} for text in texts or [""]]
    if calls:
        message["tool_calls"] = [call.to_json() for call in calls]
    return message
