"""One message that is being answered: what was asked for beside it, how it is cancelled, and what becomes a reply."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.chat.tool_syntax import Chunk, ReplyParser, joined
from gemma_edge.runtime.kv.generate import ReplyText
from gemma_edge.runtime.kv.turn import Turn
from gemma_edge.runtime.text.constraints import ResponseFormat
from gemma_edge.runtime.text.penalties import Penalties


@dataclass(frozen=True)
class ThinkingConfig:
    """Asks the chat template for reasoning (`enable_thinking`). Gemma 3 and 3n have none; the budget is not used."""

    enable_thinking: bool = True
    thinking_token_budget: int = -1


@dataclass(frozen=True)
class SendOptions:
    """What one call of `send_message` asks for beside the message."""

    penalties: Penalties
    max_output_tokens: int | None
    extra_context: Mapping[str, Any]
    response_format: ResponseFormat | None


class Sending:
    """A message that is being answered, in one round or several. `cancel` ends all of it."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self._turn: Turn | None = None

    def begin(self, turn: Turn) -> None:
        """A round of it."""
        self._turn = turn
        if self.is_cancelled:
            turn.cancel()

    def cancel(self) -> None:
        """May be called from any thread."""
        self.is_cancelled = True
        if self._turn is not None:
            self._turn.cancel()


class ReplyParts:
    """The chunks of a reply, from its tokens: text, and calls where tools were shown."""

    def __init__(self, model: TextModel, *, has_tools: bool) -> None:
        self._text = ReplyText(model.tokenizer, model.stop)
        # A fence is text to a model that was shown no tools.
        self._parser = ReplyParser(model.tool_syntax) if has_tools else None

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
        return [piece] if self._parser is None else list(self._parser.push(piece))


def collect(chunks: list[Chunk], chunk: Chunk | None) -> None:
    """Adds it to a reply; an answer to tool calls, which None announces, is what counts from then on."""
    if chunk is None:
        chunks.clear()
    else:
        chunks.append(chunk)


def reply_json(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The model's message: what it wrote around its calls, one part for each stretch of text, and the calls."""
    texts, calls = joined(chunks)
    message: dict[str, Any] = {"role": "assistant"}
    if texts or not calls:
        message["content"] = [{"type": "text", "text": text} for text in texts or [""]]
    if calls:
        message["tool_calls"] = [call.to_json() for call in calls]
    return message
