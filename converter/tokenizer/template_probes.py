"""Conversations on which a bundle's template must write what transformers writes, and how LiteRT-LM hands them over.

LiteRT-LM gives a template `content` as a list of parts, and none where a reply was a call alone. Its answers to calls
are parts too: {"type": "tool_response", "name": ..., "response": ...}.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gemma_edge.converter.tokenizer.template_reference import Reference

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Probe:
    """what: for people. messages, tools, context: transformers' input. received: the messages as LiteRT-LM has them."""

    what: str
    messages: Sequence[Message]
    received: Sequence[Message]
    tools: Sequence[Message] | None = None
    generation: bool = True
    context: Mapping[str, Any] = field(default_factory=dict)


_USER: Final = {"role": "user", "content": " Hi,\n\nyou 'and' \"they\" "}
_REPLY: Final = {"role": "assistant", "content": "Hello. "}
_MORE: Final = {"role": "user", "content": "Look.\nWell?"}
_LAST: Final = {"role": "user", "content": "So {{ be }} it"}
_SYSTEM: Final = {"role": "system", "content": "Be brief. "}
_TALKS: Final[Sequence[tuple[str, Sequence[Message]]]] = (
    ("one turn", (_USER,)),
    ("two turns", (_USER, _REPLY, _MORE)),
    ("three turns", (_USER, _REPLY, _MORE, {"role": "assistant", "content": "Yes"}, _LAST)),
    ("a system message", (_SYSTEM, _USER)),
    ("a system message and two turns", (_SYSTEM, _USER, _REPLY, _MORE)),
    ("empty content", ({"role": "user", "content": ""},)),
    ("an empty reply", (_USER, {"role": "assistant", "content": ""}, _MORE)),
    ("an empty system message", ({"role": "system", "content": ""}, _USER)),
    ("a developer's message", ({"role": "developer", "content": "Be brief."}, _USER)),
)

_CITY: Final = {"type": "string", "description": "where, \"or\" 'so'"}
_TOOLS: Final = (
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "description": "Tells the time.",
            "parameters": {"type": "object", "properties": {"city": _CITY}, "required": ["city"]},
        },
    },
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds <b>numbers</b>.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "first"},
                    "b": {"type": "array", "items": {"type": "number"}, "description": "others"},
                    "c": {"type": "string", "enum": ["x", "y"], "description": "how"},
                    "d": {"type": "boolean", "default": False, "description": "whether"},
                },
                "required": ["a"],
            },
        },
    },
)


def _call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


_TIME: Final = _call("get_time", {"city": "Paris"})
_ANSWER: Final = {"role": "tool", "name": "get_time", "content": "12:30"}
_TOOL_TALKS: Final[Sequence[tuple[str, Sequence[Message]]]] = (
    ("tools", (_USER,)),
    ("tools and a system message", (_SYSTEM, _USER)),
    ("tools and two turns", (_USER, _REPLY, _MORE)),
    ("a call", (_USER, {"role": "assistant", "tool_calls": [_TIME]}, _ANSWER)),
    ("a call and an answer", (_USER, {"role": "assistant", "tool_calls": [_TIME]}, _ANSWER, _REPLY, _MORE)),
    ("words before a call", (_USER, {"role": "assistant", "content": "Let me see.", "tool_calls": [_TIME]}, _ANSWER)),
    (
        "two calls",
        (
            _USER,
            {"role": "assistant", "tool_calls": [_TIME, _call("get_time", {"city": "R\u00f3ma"})]},
            _ANSWER,
            {**_ANSWER, "content": "13:30"},
        ),
    ),
    ("a call with numbers", (_USER, {"role": "assistant", "tool_calls": [_call("add", {"a": 1, "b": [2.5, 3]})]},
                             {"role": "tool", "name": "add", "content": "6.5"})),
    ("a call with a boolean", (_USER, {"role": "assistant", "tool_calls": [_call("add", {"a": 1, "d": True})]},
                               {"role": "tool", "name": "add", "content": "1"})),
    ("a call with null", (_USER, {"role": "assistant", "tool_calls": [_call("add", {"a": 1, "c": None})]},
                          {"role": "tool", "name": "add", "content": "1"})),
)  # fmt: skip


def probes(reference: Reference, missing: Any) -> Iterator[Probe]:
    """What to try. missing: what transformers gets as the content of a reply that is a call alone (see `absent`)."""
    contexts: list[Mapping[str, Any]] = [{}]
    if reference.mentions("enable_thinking"):
        contexts += [{"enable_thinking": True}, {"enable_thinking": False}]
    for context in contexts:
        for what, talk in _TALKS:
            for generation in (True, False):
                yield Probe(what, talk, [_received(message) for message in talk], None, generation, context)
        if reference.mentions_tools:
            for what, talk in _TOOL_TALKS:
                told = [_with_content(message, missing) for message in talk]
                for received in (_answered(talk), [_received(message) for message in talk]):
                    for generation in (True, False):
                        yield Probe(what, told, received, _TOOLS, generation, context)


ABSENT: Final = object()


def absent(reference: Reference) -> Any:
    """The content to give a reply that is a call alone: none at all, or the first of "" and None that is taken."""
    for value in (ABSENT, "", None):
        talk = [_with_content(message, value) for message in _TOOL_TALKS[3][1]]
        if reference.render(talk, _TOOLS) is not None:
            return value
    return ABSENT


def _with_content(message: Message, missing: Any) -> Message:
    return message if "content" in message or missing is ABSENT else {**message, "content": missing}


def _received(message: Message) -> Message:
    if "content" not in message:
        return message
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _answered(talk: Sequence[Message]) -> list[Message]:
    """With all answers to one reply's calls in one message, as LiteRT-LM sends them by itself."""
    received: list[Message] = []
    for message in talk:
        if message["role"] != "tool":
            received.append(_received(message))
            continue
        part = {"name": message["name"], "response": message["content"], "type": "tool_response"}
        if received[-1]["role"] == "tool":
            received[-1]["content"].append(part)
        else:
            received.append({"content": [part], "role": "tool"})
    return received
