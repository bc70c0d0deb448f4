"""A reply put together from its tokens, piece by piece, and as the message it is."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gemma_edge.runtime.chat.calls.channels import ChannelParser, Thought, with_thoughts
from gemma_edge.runtime.chat.calls.syntax import Chunk, Mistake, ReplyParser, joined
from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.kv.generate import ReplyText


class ReplyParts:
    """The chunks of a reply, from its tokens: text, channels, and calls where tools were shown."""

    def __init__(self, model: TextModel, tools: Mapping[str, Sequence[str]]) -> None:
        """tools: the names of each tool's parameters, in order."""
        self.text = ""  # all of it so far, calls and channels included
        self._text = ReplyText(model.tokenizer, model.stop)
        self._channels = ChannelParser(model.channels)
        # A fence is text to a model that was shown no tools.
        self._parser = ReplyParser(model.tool_syntax, tools) if tools else None

    def push(self, token_id: int) -> Sequence[Chunk]:
        """What one more token adds, often nothing."""
        return list(self._parse(self._read(self._text.push(token_id))))

    def finish(self) -> Sequence[Chunk]:
        """What was held back."""
        chunks = [*self._parse(self._read(self._text.finish())), *self._parse(self._channels.finish())]
        return chunks if self._parser is None else [*chunks, *self._parser.finish()]

    def _read(self, piece: str) -> Iterator[str | Thought]:
        self.text += piece
        return self._channels.push(piece)

    def _parse(self, parts: Iterable[str | Thought]) -> Iterator[Chunk]:
        for part in parts:
            if self._parser is None or isinstance(part, Thought):
                yield part
            else:
                yield from self._parser.push(part)


def collect(chunks: list[Chunk], chunk: Chunk | None) -> None:
    """Adds it to a reply; an answer to tool calls, which None announces, is what counts from then on."""
    if chunk is None:
        chunks.clear()
    else:
        chunks.append(chunk)


def reply_message(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The model's message: what it wrote around its calls, one part a stretch of text, the calls, and channels."""
    texts, calls = joined(chunks)
    message: dict[str, Any] = {"role": "assistant"}
    if texts or not calls:
        message["content"] = [{"type": "text", "text": text} for text in texts or [""]]
    if calls:
        message["tool_calls"] = [call.to_json() for call in calls]
    return with_thoughts(message, (chunk for chunk in chunks if isinstance(chunk, Thought)))


def streamed_message(chunk: Chunk) -> dict[str, Any]:
    """A piece of it."""
    return with_thoughts({"role": "assistant"}, [chunk]) if isinstance(chunk, Thought) else reply_message([chunk])


def told(mistake: Mistake) -> Json:
    """What the model reads about a call that was none."""
    return {"role": "tool", "content": f"Error: the call could not be read: {mistake.error}"}
