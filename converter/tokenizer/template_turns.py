"""What a chat template writes around messages and calls, found by asking it."""

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from gemma_edge.converter.tokenizer.template_reference import Reference


@dataclass(frozen=True)
class Turns:
    """What stands before and behind a user's and the model's words."""

    user_prefix: str
    user_suffix: str
    model_prefix: str
    model_suffix: str


GEMMA_TURNS: Final = Turns("<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>\n")


@dataclass(frozen=True)
class CallSyntax:
    """How calls are written. start, end: around them in a reply. notation: LiteRT-LM's word for what is between."""

    start: str
    end: str
    notation: Literal["json", "python", "fc"]


_WORDS: Final = ("0451", "0452", "0453")
_CALL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {"name": "get_0451", "arguments": {"city": "0452"}},
}
_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "get_0451",
        "description": "0453",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


# What opens a reply and what follows a call, `<|tool_response>`, may both depend on what comes next.
_GEMMA4_CALL: Final = re.compile(r"""(<\|tool_call>)call:get_0451\{city:<\|"\|>0452<\|"\|>\}(<tool_call\|>)""")


def turns(reference: Reference) -> Turns:
    """Of the second turn, as the first may hold a system message; empty texts where the template takes no second."""
    said, reply, more = _WORDS
    talk = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": more},
    ]
    closed, opened = reference.render(talk[:1], None, False), reference.render(talk[:1])
    answered, whole = reference.render(talk[:2], None, False), reference.render(talk, None, False)
    if closed is None or opened is None or answered is None or whole is None:
        return Turns("", "", "", "")
    behind = closed.partition(said)[2]
    return Turns(
        whole.removeprefix(answered).partition(more)[0],
        behind,
        opened.removeprefix(closed),
        answered.partition(reply)[2],
    )


def call_syntax(reference: Reference) -> CallSyntax | None:
    """How a reply with a call looks; None where LiteRT-LM has no word for it, or nothing stands around it."""
    talk: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
    asked = reference.render(talk, [_TOOL], False)
    opened = reference.render(talk, [_TOOL])
    called = next(
        (
            text
            for content in ({}, {"content": ""}, {"content": None})
            if (
                text := reference.render(
                    [*talk, {"role": "assistant", **content, "tool_calls": [_CALL]}], [_TOOL], False
                )
            )
        ),
        None,
    )
    if opened is None or asked is None or called is None:
        return None
    if called.startswith(asked) and (written := _GEMMA4_CALL.search(called, len(asked))):
        return CallSyntax(written[1], written[2], "fc")
    if not called.startswith(opened):
        return None
    reply = called[len(opened) :]
    ending = turns(reference).model_suffix
    reply = reply.removesuffix(ending) if ending else reply
    for notation, found in (("json", _json(reply)), ("fc", _braces(reply)), ("python", _brackets(reply))):
        if found is not None:
            start, end = reply[: found[0]], reply[found[1] :]
            return CallSyntax(start, end, notation) if start.strip() and end.strip() else None  # type: ignore[arg-type]
    return None


def _json(reply: str) -> tuple[int, int] | None:
    for found in re.finditer(r"\{", reply):
        try:
            value, end = json.JSONDecoder().raw_decode(reply, found.start())
        except ValueError:
            continue
        if isinstance(value, dict) and value == {"name": "get_0451", "arguments": {"city": "0452"}}:
            return found.start(), end
    return None


def _braces(reply: str) -> tuple[int, int] | None:
    found = re.search(r"call:get_0451\{city:<escape>0452<escape>\}", reply)
    return found and found.span()


def _brackets(reply: str) -> tuple[int, int] | None:
    found = re.search(r"""get_0451\(city=["']0452["']\)""", reply)
    return found and found.span()
