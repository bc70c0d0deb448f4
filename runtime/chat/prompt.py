"""From messages to the text of a prompt: of the whole conversation, and of what a turn adds to it.

The latter is what LiteRT-LM shows of a turn and prefills (runtime/conversation/conversation.cc): it renders the
conversation without and with it, and takes what the longer text has more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemma_edge.runtime.chat.calls.syntax import ToolSyntax
from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.system_text import SystemText
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

    def __init__(
        self,
        template: ChatTemplate,
        syntax: ToolSyntax,
        preface: Preface,
        plain: Callable[[Any], Any] = lambda value: value,
        *,
        all_plain: bool = False,
        plain_reply: Callable[[Any], Any] | None = None,
    ) -> None:
        """plain: marks the control tokens in a JSON value, so that they stay text. Applied to what tools are and say;
        all_plain: to what everyone says but the system; plain_reply: in place of it, to earlier replies.

        Raises TemplateError: there are tools that the template does not show.
        """
        self._plain = plain
        self._all_plain = all_plain
        self._plain_reply = plain_reply or plain
        self._template = template
        self._syntax = syntax
        self._preface = preface
        self._system = SystemText(template)
        self._tools = [syntax.declare(plain(tool)) for tool in preface.tools] if preface.tools else None
        if self._tools and not _shows(template, self._tools):
            raise TemplateError(
                "the chat template shows no tools; leave the tools out, or take a model that was taught to call some"
            )

    def whole(self, history: Sequence[Json], messages: Sequence[Json], extra_context: Mapping[str, Any]) -> str:
        """The text of the whole conversation, up to where the model goes on. Raises TemplateError."""
        return self._render([*history, *messages], extra_context, add_generation_prompt=True)

    def turn(self, history: Sequence[Json], messages: Sequence[Json], extra_context: Mapping[str, Any]) -> str:
        """The text that `messages` add after `history`, up to where the model goes on.

        Raises TemplateError: the template refuses, or a longer conversation does not begin like the shorter one.
        """
        after = self.whole(history, messages, extra_context)
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
            [self._input(message) for message in self._system.placed([*self._preface.messages, *messages])],
            self._tools,
            add_generation_prompt,
            {**self._preface.extra_context, **extra_context},
        )

    def _input(self, message: Json) -> dict[str, Any]:
        """A message as the template sees it: content as a list of parts, calls and results as source text."""
        has_calls = "tool_calls" in message
        is_tool = message["role"] == "tool"
        if is_tool or (self._all_plain and message["role"] != "system"):
            as_it_is = ("role", "tool_calls")
            plain = self._plain_reply if message["role"] == "assistant" else self._plain
            message = {key: value if key in as_it_is else plain(value) for key, value in message.items()}
        content = message.get("content")
        if self._syntax.shows_json or (not has_calls and not is_tool):
            shown = {**message, "content": _parts(content)} if "content" in message else dict(message)
            return {**shown, "tool_calls": self._plain(message["tool_calls"])} if has_calls else shown
        result: dict[str, Any] = {"role": message["role"]}
        if is_tool and isinstance(content, Sequence) and not isinstance(content, str):
            result["content"] = [self._result(part) for part in content]
        elif "content" in message:
            result["content"] = _parts(content)
        if has_calls:
            result["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        return result

    def _result(self, part: Json) -> Json:
        return part if part.get("type") == "text" else {"type": "text", "text": self._syntax.response(part)}

    def _call(self, call: Json) -> dict[str, Any]:
        function = self._plain(call["function"])
        result = {"name": function["name"]}
        if function.get("arguments"):  # LiteRT-LM leaves empty ones out as well
            result["arguments"] = {key: self._syntax.value(value) for key, value in function["arguments"].items()}
        return {"type": "function", "function": result}


def _shows(template: ChatTemplate, tools: Sequence[Any]) -> bool:
    """Whether tools change what the template writes, with a system message or without."""
    talk = [{"role": role, "content": [{"type": "text", "text": "Probe."}]} for role in ("system", "user")]
    for messages in (talk[1:], talk):
        try:
            if template.render(messages, tools, True, {}) != template.render(messages, None, True, {}):
                return True
        except TemplateError:
            return True
    return False


def _parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def as_received(message: Json) -> dict[str, Any]:
    """A message as LiteRT-LM receives one to send: its JSON parser puts the keys of every object in order."""
    return {key: _sorted(value) for key, value in sorted(message.items())}


def _sorted(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _sorted(item) for key, item in sorted(value.items())}
    return [_sorted(item) for item in value] if isinstance(value, list | tuple) else value
