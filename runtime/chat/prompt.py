"""From messages to the text that a turn adds to the prompt, in LiteRT-LM's way.

LiteRT-LM never renders a turn alone. It renders the conversation without and with it, and prefills what the longer text
has more (runtime/conversation/conversation.cc). What was prefilled or generated before stays as it is, so a reply's
tokens are never tokenized again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemma_edge.runtime.chat.messages import Json
from gemma_edge.runtime.chat.tool_syntax import ToolSyntax
from gemma_edge.runtime.text.template import ChatTemplate, TemplateError


@dataclass(frozen=True)
class Preface:
    """What stands before the first message.

    messages: earlier ones, a system message for instance. tools: descriptions. extra_context: variables for the
    template.
    """

    messages: Sequence[Json] = ()
    tools: Sequence[Json] = ()
    extra_context: Mapping[str, Any] = field(default_factory=dict)


class PromptRenderer:
    """Renders the turns of one conversation."""

    def __init__(self, template: ChatTemplate, syntax: ToolSyntax, preface: Preface) -> None:
        self._template = template
        self._syntax = syntax
        self._preface = preface
        self._tools = [syntax.declare(tool) for tool in preface.tools] if preface.tools else None

    def turn(self, history: Sequence[Json], messages: Sequence[Json], extra_context: Mapping[str, Any]) -> str:
        """The text that `messages` add after `history`, up to where the model goes on.

        Raises TemplateError: the template refuses, or a longer conversation does not begin like the shorter one.
        """
        after = self._render([*history, *messages], extra_context, add_generation_prompt=True)
        if not history:
            return after
        before = self._render(history, extra_context, add_generation_prompt=False)
        if not after.startswith(before):
            raise TemplateError(
                "the chat template changes what it rendered before when a message is added; "
                "pass a chat_template that only appends"
            )
        return after[len(before) :]

    def _render(self, messages: Sequence[Json], extra_context: Mapping[str, Any], add_generation_prompt: bool) -> str:
        return self._template.render(
            [self._input(message) for message in (*self._preface.messages, *messages)],
            self._tools,
            add_generation_prompt,
            {**self._preface.extra_context, **extra_context},
        )

    def _input(self, message: Json) -> dict[str, Any]:
        """A message as the template sees it: content as a list of parts, calls and results as source text."""
        content = message.get("content")
        has_calls = isinstance(message.get("tool_calls"), Sequence)
        is_tool = message.get("role") == "tool"
        if not has_calls and not is_tool:
            return {**message, "content": _parts(content)} if "content" in message else dict(message)
        result: dict[str, Any] = {"role": message["role"]} if "role" in message else {}
        if is_tool and isinstance(content, Mapping):
            content = [content]
        if is_tool and isinstance(content, Sequence) and not isinstance(content, str):
            result["content"] = [{"type": "text", "text": self._syntax.response(part)} for part in content]
        elif "content" in message:
            result["content"] = _parts(content)
        if has_calls:
            result["tool_calls"] = [self._call(call) for call in message["tool_calls"] if "function" in call]
        return result

    def _call(self, call: Json) -> dict[str, Any]:
        function = call["function"]
        result = {"name": function.get("name")}
        if "arguments" in function:
            arguments = function["arguments"]
            if isinstance(arguments, Mapping):
                arguments = {key: self._syntax.value(value) for key, value in arguments.items()}
            result["arguments"] = arguments
        return {"type": "function", "function": result}


def _parts(content: object) -> object:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [parts] if isinstance(parts, Mapping) else parts


def as_received(message: Json) -> dict[str, Any]:
    """A message as LiteRT-LM receives one to send: its JSON parser puts the keys of every object in order."""
    return {key: _sorted(value) for key, value in sorted(message.items())}


def _sorted(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _sorted(item) for key, item in sorted(value.items())}
    return [_sorted(item) for item in value] if isinstance(value, list | tuple) else value
