"""A reply put together from its tokens, piece by piece, and as the message it is."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_edge.runtime.chat.calls.syntax import Chunk, Mistake, ReplyParser, joined
from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.kv.generate import ReplyText


class ReplyParts:
    """The chunks of a reply, from its tokens: text, and calls where tools were shown."""

    def __init__(self, model: TextModel, tools: Mapping[str, Sequence[str]]) -> None:
        """tools: the names of each tool's parameters, in order."""
        self.text = ""  # all of it so far, calls included
        self._text = ReplyText(model.tokenizer, model.stop)
        # A fence is text to a model that was shown no tools.
        self._parser = ReplyParser(model.tool_syntax, tools) if tools else None

    def push(self, token_id: int) -> Sequence[Chunk]:
        """What one more token adds, often nothing."""
        return self._parse(self._text.push(token_id))

    def finish(self) -> Sequence[Chunk]:
        """What was held back."""
        chunks = self._parse(self._text.finish())
        return chunks if self._parser is None else [*chunks, *self._parser.finish()]

    def _parse(self, piece: str) -> Sequence[Chunk]:
        if not piece:
            return []
        self.text += piece
        return [piece] if self._parser is None else list(self._parser.push(piece))


def collect(chunks: list[Chunk], chunk: Chunk | None) -> None:
    """Adds it to a reply; an answer to tool calls, which None announces, is what counts from then on."""
    if chunk is None:
        chunks.clear()
    else:
        chunks.append(chunk)


def reply_message(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The model's message: what it wrote around its calls, one part for each stretch of text, and the calls."""
    texts, calls = joined(chunks)
    message: dict[str, Any] = {"role": "assistant"}
    if texts or not calls:
        message["content"] = [{"type": "text", "text": text} for text in texts or [""]]
    if calls:
        message["tool_calls"] = [call.to_json() for call in calls]
    return message


def told(mistake: Mistake) -> Json:
    """What the model reads about a call that was none."""
    return {"role": "tool", "content": f"Error: the call could not be read: {mistake.error}"}
