"""Prompts of requests: rendered, counted in tokens, and shortened where that is asked for, before anything is run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.prompt import Preface, PromptRenderer, as_received
from gemma_edge.runtime.chat.prompt_tokens import Encoded, prompt_tokens
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import ContextOverflowError
from gemma_edge.runtime.kv.turn import Prompt
from gemma_edge.runtime.media.image import image_size
from gemma_edge.runtime.media.item import MediaKind, media_items
from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.settings import Settings


@dataclass(frozen=True)
class Prepared:
    """A prompt. tokens: its length. media_tokens: of those, rows that an encoder makes.

    dropped: how many messages were left out to make it fit.
    """

    prompt: Prompt
    tokens: int
    media_tokens: int = 0
    dropped: int = 0


class Prompter:
    """Makes the prompts of one engine. For one thread."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._model = engine.text_model
        self._settings = settings
        pieces = engine.text_model.tokenizer.all_piece_bytes()
        self._longest_piece = max(map(len, pieces))

    def chat(self, messages: Sequence[Json], tools: Sequence[Json], wanted_tokens: int | None) -> Prepared:
        """Of messages in LiteRT-LM's form. wanted_tokens: of the reply.

        Raises RefusedError: longer than the context, images too large. GemmaEdgeError: what the model cannot be told.
        """
        self._check_images(messages)
        if self._settings.truncate == "oldest":
            return self._truncated(messages, tools, wanted_tokens)
        try:
            return self._rendered(messages, tools)
        except ContextOverflowError as error:
            raise _too_long(error) from error

    def text(self, prompt: str | Sequence[int]) -> Prepared:
        """Of a text, behind one start token whether it is written or not; or of tokens, as they are.

        Raises RefusedError: longer than the context, a token that is none.
        """
        context, model = self._engine.max_num_tokens, self._model
        if isinstance(prompt, str):
            self._check_length(prompt)
            token_ids = [*model.start_tokens, *model.tokenizer.encode(prompt.removeprefix(model.start_text))]
        else:
            wrong = next((token_id for token_id in prompt if token_id >= model.tokenizer.size), None)
            if wrong is not None:
                message = f"prompt has the token {wrong}, the model has 0 to {model.tokenizer.size - 1}"
                raise RefusedError(422, Code.VALIDATION_ERROR, message, param="prompt")
            token_ids = list(prompt)
        if len(token_ids) + 1 > context:
            raise _too_long(ContextOverflowError(len(token_ids) + 1, context))
        if not token_ids:
            raise RefusedError(422, Code.VALIDATION_ERROR, "prompt is empty, and the model has no start token")
        return Prepared(token_ids, len(token_ids))

    def tokenized(self, text: str) -> list[int]:
        """Of a text, without a start token. Raises RefusedError: one that is longer than any context."""
        self._check_length(text)
        return self._model.tokenizer.encode(text)

    def _rendered(self, messages: Sequence[Json], tools: Sequence[Json]) -> Prepared:
        model, media, room = self._model, self._engine.media, self._engine.max_num_tokens
        # A reply stays as the model wrote it; all else in LiteRT-LM's order of keys, whenever it is said.
        told = [message if message["role"] == "assistant" else as_received(message) for message in messages]
        preface = Preface((), list(tools), {})
        template = model.template
        renderer = PromptRenderer(
            template,
            model.tool_syntax,
            preface,
            model.marked,
            all_plain=True,
            plain_reply=model.marked_reply(template),
        )
        text = renderer.whole([], told, {})
        self._check_length(text)
        items = media_items(messages)
        counted = media.read(text, items)
        made = prompt_tokens(text, items, (), Encoded(), model, media, room)
        tokens = len(model.start_tokens) + counted.token_count if items else _length(made.rest)
        return Prepared(made.rest, tokens, counted.media_tokens)

    def _truncated(self, messages: Sequence[Json], tools: Sequence[Json], wanted_tokens: int | None) -> Prepared:
        """Without as many of the oldest turns as have to go for a reply to have room, a quarter of the context at most.

        A turn is a user's message and all up to the next. System messages stay, and the last turn.
        """
        context = self._engine.max_num_tokens
        reserved = min(wanted_tokens or context // 4, context // 4)
        starts = [index for index, message in enumerate(messages) if message["role"] == "user"]
        last = max(0, len(starts) - 1)

        def without(turns: int) -> list[Json]:
            first = starts[turns] if turns else 0
            return [m for i, m in enumerate(messages) if i >= first or m["role"] == "system"]

        def fitting(turns: int) -> Prepared | None:
            kept = without(turns)
            try:
                prepared = self._rendered(kept, tools)
            except ContextOverflowError as error:
                if turns == last:
                    raise _too_long(error) from error
                return None
            fits = turns == last or prepared.tokens + reserved <= context
            return replace(prepared, dropped=len(messages) - len(kept)) if fits else None

        if (whole := fitting(0)) is not None:
            return whole
        low, high, best = 1, last, fitting(last)
        while low < high:
            middle = (low + high) // 2
            found = fitting(middle)
            low, high, best = (low, middle, found) if found else (middle + 1, high, best)
        assert best is not None
        return best

    def _check_length(self, text: str) -> None:
        """Tokenizing megabytes only to refuse them would take seconds."""
        least = len(text) // self._longest_piece
        if least > self._engine.max_num_tokens:
            raise ContextOverflowError(least, self._engine.max_num_tokens)

    def _check_images(self, messages: Sequence[Json]) -> None:
        most = self._settings.image_pixels
        for item in media_items(messages):
            if item.kind is MediaKind.IMAGE:
                width, height = image_size(item)
                if width * height > most:
                    message = f"an image has {width} x {height} pixels, at most {most} are read; scale it down"
                    raise RefusedError(413, Code.TOO_LARGE, message)


def _length(rest: Prompt) -> int:
    assert not callable(rest)
    return len(rest)


def _too_long(error: ContextOverflowError) -> RefusedError:
    return RefusedError(
        400,
        Code.CONTEXT_LENGTH_EXCEEDED,
        f"the prompt and one token of a reply are {error.asked_tokens} tokens, the context has "
        f"{error.allowed_tokens}; shorten the messages or drop old ones (--truncate oldest does)",
        param="messages",
    )
