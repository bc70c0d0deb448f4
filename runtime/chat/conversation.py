"""A conversation: messages in, messages out, with tools run in between and the KV cache kept from turn to turn.

Names and meaning are litert_lm's. Beyond it: `history`, `rewind`, `timing`, asyncio versions of the two ways to send,
and a bound on tool rounds. A turn that fails or is cancelled leaves the conversation as it was before.
"""

import os
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeGuard

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.paths import user_path
from gemma_edge.runtime.chat.calls.channels import Thought
from gemma_edge.runtime.chat.calls.syntax import Chunk, Mistake
from gemma_edge.runtime.chat.figures import BenchmarkInfo
from gemma_edge.runtime.chat.media_reader import MediaReader
from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.messages import Contents, Message, read_message
from gemma_edge.runtime.chat.options import ConversationOptions, SendOptions, ThinkingConfig, check_format
from gemma_edge.runtime.chat.prompt import Preface, PromptRenderer, as_received
from gemma_edge.runtime.chat.prompt_tokens import PromptTokens, prompt_tokens
from gemma_edge.runtime.chat.record import Record
from gemma_edge.runtime.chat.reply import ReplyParts, collect, reply_message, streamed_message, told
from gemma_edge.runtime.chat.sending import Sending
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.chat.tools import ToolBox, ToolLoopError
from gemma_edge.runtime.config import check_max_output_tokens
from gemma_edge.runtime.kv.generate import Decoding, Reason, TurnTiming
from gemma_edge.runtime.kv.scheduler import CancelledError
from gemma_edge.runtime.kv.sequence import TokenSequence
from gemma_edge.runtime.kv.turn import Mark, Usage
from gemma_edge.runtime.kv.waiting import Blocking, InLoop, Waiting, blocking
from gemma_edge.runtime.media.item import media_items
from gemma_edge.runtime.text.constraints import ResponseFormat
from gemma_edge.runtime.text.control_text import without_marks
from gemma_edge.runtime.text.penalties import (
    NoRepeatNgramConfig,
    Penalties,
    RepetitionPenaltyConfig,
    SuppressTokensConfig,
)
from gemma_edge.runtime.text.sampler import Sampler
from gemma_edge.runtime.text.template import ChatTemplate

Sendable = str | Contents | Message | Json


class ConversationError(GemmaEdgeError, RuntimeError):
    """The conversation is closed, busy, or has not the turns asked for. Also a RuntimeError, as litert_lm raises."""


class Conversation:
    """Made by `Engine.create_conversation`. Not for several threads at once, except `cancel_process`."""

    def __init__(
        self,
        model: TextModel,
        sequence: TokenSequence,
        options: ConversationOptions = ConversationOptions(),  # noqa: B008  frozen
        init_s: float = 0.0,
        media: MediaReader | None = None,
    ) -> None:
        """init_s: seconds it took to create the engine. media: what reads images and recordings, by default nothing.

        Raises as `Engine.create_conversation`.
        """
        check_max_output_tokens(options.max_output_tokens)
        self.messages, self.tools = list(options.messages or ()), list(options.tools or ())
        self.chat_template, self.tool_event_handler = options.chat_template, options.tool_event_handler
        self.automatic_tool_calling = options.automatic_tool_calling
        self.max_tool_rounds = options.max_tool_rounds
        self.extra_context = dict(options.extra_context or {})
        self.thinking_config, self.sampler_config = options.thinking_config, options.sampler_config
        self.constrained_decoding_config = options.constrained_decoding_config
        self.max_output_tokens = options.max_output_tokens
        self._model = model
        self._sequence: TokenSequence | None = sequence
        self._init_s = init_s
        self._media = media or MediaReader(model)
        self._timing = TurnTiming()
        self._sampler = Sampler(options.sampler_config or model.sampler_config)
        self._tools = ToolBox(self.tools, options.tool_event_handler)
        system = [{"role": "system", "content": options.system_message}] if options.system_message else []
        preface = Preface(
            [*system, *(read_message(message) for message in self.messages)],
            self._tools.descriptions,
            self.extra_context,
        )
        self._preface_items = media_items(preface.messages)
        template = model.template if options.chat_template is None else ChatTemplate(options.chat_template)
        self._renderer = PromptRenderer(
            template,
            model.tool_syntax,
            preface,
            model.marked,
            all_plain=options.sanitize_control_tokens,
            plain_reply=model.marked_reply(template) if options.sanitize_control_tokens else None,
        )
        self._record = Record()
        self._sending: Sending | None = None
        self._reason: Reason | None = None
        self._usage = Usage()

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
            repetition_penalty_config=repetition_penalty_config,
            no_repeat_ngram_config=no_repeat_ngram_config,
            suppress_tokens_config=suppress_tokens_config,
            max_output_tokens=max_output_tokens,
            thinking_config=thinking_config,
            response_format=response_format,
        )
        chunks: list[Chunk] = []
        for chunk in blocking(self._send(message, options, Blocking())):
            collect(chunks, chunk)
        return self._reply(chunks)

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
            repetition_penalty_config=repetition_penalty_config,
            no_repeat_ngram_config=no_repeat_ngram_config,
            suppress_tokens_config=suppress_tokens_config,
            max_output_tokens=max_output_tokens,
            thinking_config=thinking_config,
            response_format=response_format,
        )
        for chunk in blocking(self._send(message, options, Blocking())):
            if self._is_streamed(chunk):
                yield Message.from_json(streamed_message(chunk))

    async def asend_message(self, message: Sendable, **options: Any) -> Message:
        """`send_message` for asyncio. Cancelling the task cancels the turn."""
        chunks: list[Chunk] = []
        async with aclosing(self._send(message, self._options(**options), InLoop())) as parts:
            async for chunk in parts:
                collect(chunks, chunk)
        return self._reply(chunks)

    async def asend_message_async(self, message: Sendable, **options: Any) -> AsyncGenerator[Message, None]:
        """`send_message_async` for asyncio."""
        async with aclosing(self._send(message, self._options(**options), InLoop())) as parts:
            async for chunk in parts:
                if self._is_streamed(chunk):
                    yield Message.from_json(streamed_message(chunk))

    def cancel_process(self) -> None:
        """Ends the present turn within one token (or one prefill call). May be called from any thread."""
        if (sending := self._sending) is not None:
            sending.cancel()

    def render_message_to_string(self, message: Sendable) -> str:
        """The text that sending this message now would add to the prompt."""
        self._open()
        turn = self._renderer.turn(self._record.messages, [as_received(read_message(message))], self._extra(None))
        return without_marks(turn)

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
        return tuple(self._record.messages)

    @property
    def timing(self) -> TurnTiming:
        """Times of the last turn, token by token."""
        return self._timing

    def get_benchmark_info(self) -> BenchmarkInfo:
        """Figures of the last turn."""
        self._open()
        return BenchmarkInfo.of(self._init_s, self._timing)

    @property
    def finish_reason(self) -> str | None:
        """Why the last reply ended, as `Message.finish_reason` says it, or "budget"; of a stream, once it has ended."""
        return None if self._reason is None else self._reason.value

    @property
    def usage(self) -> Usage:
        """Tokens of the last turn, added up over its tool rounds."""
        return self._usage

    def save_cache(self, path: str | os.PathLike[str]) -> None:
        """Write the keys and values of all tokens but the last to a file, for `Engine.load_cache`.

        Raises ConversationError: nothing was said yet. OutputError: the file cannot be written.
        """
        sequence = self._open()
        self._check_idle()
        if not len(sequence):
            raise ConversationError("nothing to save: the conversation has no turn; send a message first")
        sequence.save(user_path(path))

    def rewind(self, turns: int = 1) -> None:
        """Forgets the last turns (message, tool rounds, reply), to send something else in their place."""
        sequence = self._open()
        self._check_idle()
        if not 0 <= turns <= self._record.turns:
            raise ConversationError(f"cannot go back {turns} turns, there are {self._record.turns}; ask for fewer")
        self._record.rewind(turns, sequence)

    def close(self) -> None:
        """Releases the conversation, and ends a reply that is being written. Closing twice is fine, and so is closing
        after the engine.
        """
        self.cancel_process()
        self._sequence = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _answers_calls(self) -> bool:
        return self.automatic_tool_calling and len(self._tools) > 0

    def _is_streamed(self, chunk: Chunk | None) -> TypeGuard[Chunk]:
        """Calls that are answered here are not, nor what only the model is told about."""
        return bool(chunk) and (isinstance(chunk, str | Thought) or not self._answers_calls)

    def _reply(self, chunks: Sequence[Chunk]) -> Message:
        """A whole reply; what only the model is told about is left out where calls are answered."""
        shown = [chunk for chunk in chunks if not (self._answers_calls and isinstance(chunk, Mistake))]
        message = Message.from_json(reply_message(shown))
        message.finish_reason = self.finish_reason
        return message

    async def _send(self, message: Sendable, options: SendOptions, wait: Waiting) -> AsyncGenerator[Chunk | None, None]:
        """The chunks of a turn, with None before every answer to tool calls."""
        sequence = self._open()
        messages = [as_received(read_message(message))]
        with self._turn(sequence) as sending:
            for round_number in count():
                chunks: list[Chunk] = []
                async with aclosing(self._reply_to(sequence, messages, options, sending, wait)) as parts:
                    async for chunk in parts:
                        chunks.append(chunk)
                        yield chunk
                reply = reply_message(chunks)
                self._record.messages += [*messages, reply]
                is_cut = self._reason is Reason.LENGTH  # a call that was cut off is none
                mistakes = [chunk for chunk in chunks if isinstance(chunk, Mistake) and not is_cut]
                if "tool_calls" in reply:
                    self._reason = Reason.TOOL_CALLS
                if not self._answers_calls or not ("tool_calls" in reply or mistakes):
                    return
                if round_number == self.max_tool_rounds:
                    raise ToolLoopError(
                        f"the model called tools {round_number + 1} times in a row, {self.max_tool_rounds} rounds are "
                        "allowed; raise max_tool_rounds or make the tools' results clearer"
                    )
                answers = await wait.call(partial(self._tools.answer, reply.get("tool_calls", ())))
                messages = [as_received(answer) for answer in [*answers, *map(told, mistakes)]]
                if not messages:
                    return
                yield None

    @contextmanager
    def _turn(self, sequence: TokenSequence) -> Iterator[Sending]:
        """Records where a turn begins; takes it back if it does not come to its end."""
        self._check_idle()
        self._sending = sending = Sending()
        self._reason, self._usage = None, Usage()
        try:
            with suppress(CancelledError), self._record.turn(sequence):
                yield sending
        finally:
            self._sending = None

    def _may_constrain(self, messages: Sequence[Json]) -> bool:
        """A format would forbid tool calls, so where they are answered it binds only the reply to their results."""
        return not self._answers_calls or messages[0].get("role") == "tool"

    async def _reply_to(
        self, sequence: TokenSequence, messages: Sequence[Json], options: SendOptions, sending: Sending, wait: Waiting
    ) -> AsyncGenerator[Chunk, None]:
        prompt = await self._prompt(sequence, messages, options, wait)
        wanted = options.response_format if self._may_constrain(messages) else None
        constraint = None if wanted is None else self._model.constraint(wanted)
        how = Decoding(self._sampler, self._model.stop, options.penalties, constraint, options.max_output_tokens)
        earlier = self._usage  # nothing in the first round: where the turn began is where to come back to
        sequence.truncate(prompt.kept)
        turn = sequence.reply(prompt.rest, how, None if earlier.prompt else Mark.BEFORE_PROMPT)
        sending.begin(turn)
        self._timing = turn.timing
        parts = ReplyParts(self._model, self._tools.parameters)
        try:
            while (token_id := await wait.token(turn)) is not None:
                for chunk in parts.push(token_id):
                    yield chunk
        finally:
            turn.cancel()
            self._reason, self._usage = turn.reason, earlier + turn.usage
        for chunk in parts.finish():
            yield chunk
        if turn.reason is Reason.CANCELLED:
            raise CancelledError
        self._record.encoded = prompt.encoded
        if constraint is not None and turn.reason is Reason.STOP:
            constraint.check(parts.text)

    async def _prompt(
        self, sequence: TokenSequence, messages: Sequence[Json], options: SendOptions, wait: Waiting
    ) -> PromptTokens:
        text = self._renderer.whole(self._record.messages, messages, options.extra_context)
        items = media_items(messages) if self._record.messages else [*self._preface_items, *media_items(messages)]
        held, room = sequence.token_ids, sequence.context_tokens
        read = partial(prompt_tokens, text, items, held, self._record.encoded, self._model, self._media, room)
        return await wait.call(read) if items else read()  # opens files

    def _options(
        self,
        *,
        repetition_penalty_config: RepetitionPenaltyConfig | None = None,
        no_repeat_ngram_config: NoRepeatNgramConfig | None = None,
        suppress_tokens_config: SuppressTokensConfig | None = None,
        max_output_tokens: int | None = None,
        thinking_config: ThinkingConfig | None = None,
        response_format: ResponseFormat | None = None,
    ) -> SendOptions:
        check_format(response_format, self.constrained_decoding_config)
        check_max_output_tokens(max_output_tokens)
        penalties = Penalties(
            repetition_penalty_config or RepetitionPenaltyConfig(),
            no_repeat_ngram_config or NoRepeatNgramConfig(),
            suppress_tokens_config or self._model.suppress,
        )
        limit = self.max_output_tokens if max_output_tokens is None else max_output_tokens
        return SendOptions(penalties, limit, self._extra(thinking_config), response_format)

    def _extra(self, thinking: ThinkingConfig | None) -> dict[str, Any]:
        thinking = thinking or self.thinking_config
        chosen = {} if thinking is None else {"enable_thinking": thinking.enable_thinking}
        return {**self.extra_context, **chosen}

    def _check_idle(self) -> None:
        if self._sending is not None:
            raise ConversationError("a reply is still being written; read its stream to the end or close it first")

    def _open(self) -> TokenSequence:
        if self._sequence is None:
            raise ConversationError("the conversation is closed; create a new one")
        return self._sequence
