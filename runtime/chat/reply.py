"""A reply put together from its pieces, as the message it is."""

from collections.abc import Iterator, Sequence
from typing import Any

from gemma_edge.runtime.chat.calls.syntax import Chunk, Mistake, joined
from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.kv.generate import TurnTiming
from gemma_edge.runtime.text.constraints import Constraint


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


def checked(texts: Iterator[str], constraint: Constraint, timing: TurnTiming) -> Iterator[str]:
    """The same pieces; at their end, the whole is checked for what could not be enforced. Raises ConstraintError."""
    whole = ""
    for text in texts:
        whole += text
        yield text
    if timing.finish_reason == "stop":
        constraint.check(whole)
