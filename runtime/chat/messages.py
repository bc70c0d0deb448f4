"""What is said in a conversation: messages, their contents, tool calls. Names and JSON form are litert_lm's.

A message is its JSON: a dict as clients write it, with `role`, `contents`, `tool_calls` and `channels` to look at it as
values. What is written through either is seen through the other.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self, TypeVar, cast

from gemma_edge.runtime.chat.message_json import (
    Json,
    MessageError,
    sendable_message,
    standard_call,
    standard_content,
    standard_role,
)
from gemma_edge.runtime.media.item import base64_bytes

View = TypeVar("View")


class Role(Enum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    MODEL = "assistant"
    TOOL = "tool"


@dataclass
class ToolCall:
    """What the model asks to have run."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None
    type: str = "function"

    def to_json(self) -> dict[str, Any]:
        call: dict[str, Any] = {"type": self.type, "function": {"name": self.name, "arguments": self.arguments}}
        return call if self.id is None else {**call, "id": self.id}

    @classmethod
    def from_json(cls, data: Json) -> "ToolCall":
        """Also takes a call without "function" around it, and arguments as JSON text. Raises MessageError."""
        call = standard_call(data)
        function = call["function"]
        return cls(function["name"], function.get("arguments", {}), call.get("id"), call["type"])


class Content:
    """A part of a message; made as Content.Text("...") and so on."""

    Text: "ClassVar[type[Text]]"
    ImageBytes: "ClassVar[type[ImageBytes]]"
    ImageFile: "ClassVar[type[ImageFile]]"
    AudioBytes: "ClassVar[type[AudioBytes]]"
    AudioFile: "ClassVar[type[AudioFile]]"
    ToolResponse: "ClassVar[type[ToolResponse]]"

    def to_json(self) -> dict[str, Any]:
        raise NotImplementedError


@dataclass
class Text(Content):
    text: str

    def to_json(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}

    def __str__(self) -> str:
        return self.text


@dataclass
class ImageBytes(Content):
    bytes: bytes

    def to_json(self) -> dict[str, Any]:
        return {"type": "image", "blob": base64.b64encode(self.bytes).decode()}


@dataclass
class ImageFile(Content):
    absolute_path: str

    def to_json(self) -> dict[str, Any]:
        return {"type": "image", "path": self.absolute_path}


@dataclass
class AudioBytes(Content):
    bytes: bytes

    def to_json(self) -> dict[str, Any]:
        return {"type": "audio", "blob": base64.b64encode(self.bytes).decode()}


@dataclass
class AudioFile(Content):
    absolute_path: str

    def to_json(self) -> dict[str, Any]:
        return {"type": "audio", "path": self.absolute_path}


@dataclass
class ToolResponse(Content):
    name: str
    response: Any

    def to_json(self) -> dict[str, Any]:
        return {"type": "tool_response", "name": self.name, "response": self.response}


Content.Text = Text
Content.ImageBytes = ImageBytes
Content.ImageFile = ImageFile
Content.AudioBytes = AudioBytes
Content.AudioFile = AudioFile
Content.ToolResponse = ToolResponse


class Contents(list[Content]):
    """The parts of a message, in order. `str` gives the text parts joined."""

    def __init__(self, contents: Sequence[Content] = ()) -> None:
        super().__init__(contents)

    @classmethod
    def empty(cls) -> "Contents":
        return cls()

    @classmethod
    def of(cls, *args: str | Content | Sequence[Content]) -> "Contents":
        """From texts and contents, or from one sequence of contents."""
        if len(args) == 1 and isinstance(args[0], Sequence) and not isinstance(args[0], str | bytes):
            return cls(args[0])
        parts: list[Content] = []
        for arg in args:
            if isinstance(arg, str):
                parts.append(Text(arg))
            elif isinstance(arg, Content):
                parts.append(arg)
            else:
                raise MessageError(f"Contents.of got {type(arg).__name__}, expected str or Content; wrap it in one")
        return cls(parts)

    @property
    def contents(self) -> "Contents":
        """Itself, as in litert_lm."""
        return self

    def to_json(self) -> list[dict[str, Any]]:
        return [part.to_json() for part in self]

    def __str__(self) -> str:
        return "".join(str(part) for part in self if isinstance(part, Text))

    def __repr__(self) -> str:
        return f"Contents({list(self)!r})"


@dataclass
class _View:
    """What was last read from, or written to, one key of a message."""

    source: object  # what the key held
    value: Any  # what it was read as
    written: object  # how that is written as JSON, to notice a change of the value itself


class Message(dict[str, Any]):
    """One message: {"role", "content", "tool_calls", "channels"}, what is empty left out. `str` gives its text.

    channels: what the model wrote outside its answer, by channel name, such as its reasoning.
    finish_reason: of a reply, why it ended: "stop", "length" (max_output_tokens, or the context is full; a reply in a
        format may then be half of it), "tool_calls" or "cancelled". Not part of the JSON. None for other messages.
    """

    finish_reason: str | None = None

    def __init__(
        self,
        role: Role,
        contents: Contents | None = None,
        tool_calls: Sequence[ToolCall] = (),
        channels: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._views: dict[str, _View] = {}
        self.role = role
        self.contents = contents if contents is not None else Contents()
        self.tool_calls = list(tool_calls)
        self.channels = dict(channels or {})

    @property
    def role(self) -> Role:
        """Assistant where the message does not say, as in litert_lm. Raises MessageError for one nobody knows."""
        return Role(standard_role(self.get("role", "assistant")))

    @role.setter
    def role(self, role: Role | str) -> None:
        self["role"] = role.value if isinstance(role, Role) else role

    @property
    def contents(self) -> Contents:
        """Raises MessageError: a part of a type this runtime does not know, an image that is no base64."""
        return self._read("content", _read_contents, Contents.to_json)

    @contents.setter
    def contents(self, contents: Contents) -> None:
        self._write("content", contents, contents.to_json())

    @property
    def tool_calls(self) -> list[ToolCall]:
        """Raises MessageError: a call without a name, arguments that are no JSON object."""
        return self._read("tool_calls", _read_calls, _write_calls)

    @tool_calls.setter
    def tool_calls(self, tool_calls: Sequence[ToolCall]) -> None:
        calls = list(tool_calls)
        self._write("tool_calls", calls, _write_calls(calls))

    @property
    def channels(self) -> dict[str, str]:
        return self._read("channels", _read_channels, dict)

    @channels.setter
    def channels(self, channels: Mapping[str, str]) -> None:
        self._write("channels", dict(channels), dict(channels))

    def _read(self, key: str, read: Callable[[Any], View], write: Callable[[View], object]) -> View:
        source = self.get(key)
        held = self._views.get(key)
        if held is None or held.source is not source:
            value = read(source)
            held = self._views[key] = _View(source, value, write(value))
        return cast("View", held.value)

    def _write(self, key: str, value: object, written: object) -> None:
        self.pop(key, None)
        if written:
            self[key] = written
        self._views[key] = _View(self.get(key), value, written)

    def to_json(self) -> dict[str, Any]:
        """A plain dict, with what was changed in `contents`, `tool_calls` or `channels` themselves."""
        for key, write in (("content", Contents.to_json), ("tool_calls", _write_calls), ("channels", dict)):
            held = self._views.get(key)
            if held is not None and held.source is self.get(key) and write(held.value) != held.written:
                self._write(key, held.value, write(held.value))
        return dict(self)

    @classmethod
    def system(cls, text_or_contents: str | Contents) -> Self:
        return cls(Role.SYSTEM, _contents(text_or_contents))

    @classmethod
    def user(cls, text_or_contents: str | Contents) -> Self:
        return cls(Role.USER, _contents(text_or_contents))

    @classmethod
    def model(
        cls,
        contents: Contents | None = None,
        tool_calls: Sequence[ToolCall] = (),
        channels: Mapping[str, str] | None = None,
    ) -> Self:
        return cls(Role.MODEL, contents, tool_calls, channels)

    @classmethod
    def tool(cls, contents: Contents) -> Self:
        return cls(Role.TOOL, contents)

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """The message that `data` is, equal to it. Reads what `message_json` reads; raises MessageError."""
        message = cls(Role.MODEL)
        message.clear()
        message.update(data)
        _ = message.role, message.contents, message.tool_calls, message.channels
        return message

    def __str__(self) -> str:
        return str(self.contents)

    def __repr__(self) -> str:
        return (
            f"Message(role={self.role!r}, contents={self.contents!r}, "
            f"tool_calls={self.tool_calls!r}, channels={self.channels!r})"
        )


def normalize_message(message: str | Contents | Message | Json) -> Json:
    """Any form of a message as JSON; text and contents alone are the user's."""
    if isinstance(message, str):
        return {"role": "user", "content": message}
    if isinstance(message, Contents):
        return {"role": "user", "content": message.to_json()}
    if isinstance(message, Message):
        return message.to_json()
    if isinstance(message, Mapping):
        return message
    raise MessageError(f"a message is {type(message).__name__}, expected str, Contents, Message or a mapping; wrap it")


def read_message(message: str | Contents | Message | Json) -> dict[str, Any]:
    """Any form of a message in the form that prompts are made of. Raises MessageError."""
    return sendable_message(normalize_message(message))


def _contents(text_or_contents: str | Contents) -> Contents:
    return text_or_contents if isinstance(text_or_contents, Contents) else Contents.of(text_or_contents)


def _read_contents(content: object) -> Contents:
    if content is None or content == "":
        return Contents()
    standard = standard_content(content, "assistant")
    return Contents([Text(standard)] if isinstance(standard, str) else [_part(part) for part in standard])


def _read_calls(calls: object) -> list[ToolCall]:
    if calls is None:
        return []
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise MessageError(f"tool_calls of a message is {type(calls).__name__}, expected a list; put it in one")
    return [ToolCall.from_json(call) for call in calls]


def _read_channels(channels: object) -> dict[str, str]:
    if channels is not None and not isinstance(channels, Mapping):
        raise MessageError(f"channels of a message is {type(channels).__name__}, expected a mapping; leave it out")
    return dict(channels or {})


def _write_calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [call.to_json() for call in calls]


def _part(item: Json) -> Content:
    """One part in standard form."""
    match item["type"], item:
        case "text", {"text": text}:
            return Text("" if text is None else str(text))
        case "image", {"path": path}:
            return ImageFile(path)
        case "image", {"blob": blob}:
            return ImageBytes(base64_bytes(blob))
        case "audio", {"path": path}:
            return AudioFile(path)
        case "audio", {"blob": blob}:
            return AudioBytes(base64_bytes(blob))
    return ToolResponse(item.get("name", ""), item.get("response"))
