"""Where system texts go in a template that has no place for all of them.

Gemma's template reads one part of one system message, at the start, and puts it before the first user's text. A second
part was lost there, and a later message became a turn of a role that Gemma does not know. Other templates have a turn
for every system message: what they can place is left alone, which is found out by asking them.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.text.template import ChatTemplate, TemplateError

_FIRST, _SECOND, _USER = "Probe one.", "Probe two.", "Probe three."


class SystemText:
    """Puts the system messages of a conversation where a template shows them."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def placed(self, messages: Sequence[Json]) -> list[Json]:
        """The same messages, none of whose system texts is lost.

        Several parts, and several messages at the start, become one text; a later message becomes part of the user's
        message after it, or a user's message of its own.
        """
        start = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
        result = self._first(messages[:start], messages[start:])
        waiting: list[str] = []  # system texts that the next message takes
        for message in messages[start:]:
            if message["role"] != "system":
                result += _with(waiting, message)
                waiting = []
            elif self._has_many:
                result.append(self._whole(message))
            else:
                waiting.append(_text(message))
        return [*result, *([_user(waiting)] if waiting else [])]

    def _first(self, system: Sequence[Json], others: Sequence[Json]) -> list[Json]:
        """The system messages at the start."""
        if len(system) > 1 and not self._has_many:
            system = [_system("\n\n".join(map(_text, system)))]
        if system and (not others or others[0]["role"] != "user") and not self._has_turns:
            return [_user([_text(message)]) for message in system]
        return [self._whole(message) for message in system]

    def _whole(self, message: Json) -> Json:
        is_one = isinstance(message["content"], str) or len(message["content"]) == 1 or self._reads_parts
        return message if is_one else {**message, "content": _text(message)}

    @cached_property
    def _has_turns(self) -> bool:
        """Whether the template writes a turn of the role, and not only its text."""
        return "system" in self._shown([_system(_FIRST)]).lower()

    @cached_property
    def _has_many(self) -> bool:
        """Whether it writes a turn for every system message."""
        shown = self._shown([_system(_FIRST), _system(_SECOND)])
        return self._has_turns and _FIRST in shown and _SECOND in shown

    @cached_property
    def _reads_parts(self) -> bool:
        shown = self._shown([_system(_FIRST, _SECOND)])
        return _FIRST in shown and _SECOND in shown

    def _shown(self, messages: list[dict[str, Any]]) -> str:
        user = {"role": "user", "content": [{"type": "text", "text": _USER}]}
        try:
            return self._template.render([*messages, user], None, True, {})
        except TemplateError:
            return ""


def _system(*texts: str) -> dict[str, Any]:
    return {"role": "system", "content": [{"type": "text", "text": text} for text in texts]}


def _user(texts: Sequence[str]) -> Json:
    return {"role": "user", "content": "\n\n".join(texts)}


def _with(texts: Sequence[str], message: Json) -> list[Json]:
    """A message with system texts before it, as Gemma's template puts the first one before the user's text."""
    if not texts:
        return [message]
    if message["role"] != "user":
        return [_user(texts), message]
    content = message["content"]
    if isinstance(content, str):
        return [{**message, "content": "\n\n".join([*texts, content])}]
    if content and content[0]["type"] == "text":
        first = {**content[0], "text": "\n\n".join([*texts, str(content[0]["text"])])}
        return [{**message, "content": [first, *content[1:]]}]
    return [{**message, "content": [{"type": "text", "text": "\n\n".join(texts)}, *content]}]


def _text(message: Json) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "\n\n".join(str(part["text"]) for part in content)
