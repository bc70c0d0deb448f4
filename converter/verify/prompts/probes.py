"""Conversations that chat templates are tried on: what fine-tunes and converters are known to treat differently."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Probe:
    """what: for people. tools: descriptions, or None for a conversation without any."""

    what: str
    messages: tuple[Message, ...]
    tools: Sequence[Message] | None = None


def _text(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


_USER: Final = {"role": "user", "content": " Hi,\n\nyou "}
_REPLY: Final = {"role": "assistant", "content": "Hello. "}
_MORE: Final = {"role": "user", "content": "Look.\nWell?"}
_SYSTEM: Final = {"role": "system", "content": "Be brief."}

TALK: Final = (
    Probe("one turn", (_USER,)),
    Probe("several turns", (_USER, _REPLY, _MORE)),
    Probe("a system message", (_SYSTEM, _USER)),
    Probe("content in parts", ({"role": "user", "content": _text(" Look. ", "Well?\n")},)),
    Probe("a system message in parts", ({"role": "system", "content": _text("Be brief.")}, _USER, _REPLY, _MORE)),
    Probe("empty content", ({"role": "user", "content": ""},)),
)

_TOOLS: Final = (
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "description": "Tells the time.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "where"}},
                "required": ["city"],
            },
        },
    },
)
_CALL: Final = {"type": "function", "function": {"name": "get_time", "arguments": {"city": "Paris"}}}

TOOLS: Final = (
    Probe("tools", (_USER,), _TOOLS),
    Probe(
        "a tool call and its result",
        (
            _USER,
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "name": "get_time", "content": "12"},
        ),
        _TOOLS,
    ),
)
