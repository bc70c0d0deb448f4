"""What is said in a conversation: messages, their contents, tool calls. Names and JSON form are litert_lm's."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, overload

from gemma_edge.profiles.errors import GemmaEdgeError

Json = Mapping[str, Any]  # a message as JSON: {"role": "user", "content": "Hello"}


class MessageError(GemmaEdgeError, TypeError):
    """Something that is not a message was sent. Also a TypeError, which is what litert_lm raises."""


class Role(Enum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    MODEL = "assistant"
    TOOL = "tool"


@dataclass(frozen=True)
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
        function = data.get("function", data)
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except json.JSONDecodeError:
                arguments = {}
        if not isinstance(arguments, Mapping):
            arguments = {}
        return cls(function.get("name", ""), dict(arguments), data.get("id"), data.get("type", "function"))


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


@dataclass(frozen=True)
class Text(Content):
    text: str

    def to_json(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ImageBytes(Content):
    bytes: bytes

    def to_json(self) -> dict[str, Any]:
        return {"type": "image", "blob": base64.b64encode(self.bytes).decode()}


@dataclass(frozen=True)
class ImageFile(Content):
    absolute_path: str

    def to_json(self) -> dict[str, Any]:
        return {"type": "image", "path": self.absolute_path}


@dataclass(frozen=True)
class AudioBytes(Content):
    bytes: bytes

    def to_json(self) -> dict[str, Any]:
        return {"type": "audio", "blob": base64.b64encode(self.bytes).decode()}


@dataclass(frozen=True)
class AudioFile(Content):
    absolute_path: str

    def to_json(self) -> dict[str, Any]:
        return {"type": "audio", "path": self.absolute_path}


@dataclass(frozen=True)
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


class Contents(Sequence[Content]):
    """The parts of a message, in order. `str` gives the text parts joined."""

    def __init__(self, contents: Sequence[Content] = ()) -> None:
        self._parts = tuple(contents)

    @classmethod
    def empty(cls) -> "Contents":
        return cls()

    @classmethod
    def of(cls, *args: str | Content | Sequence[Content]) -> "Contents":
        """From texts and contents, or from one sequence of contents."""
        if len(args) == 1 and not isinstance(args[0], str | Content):
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
    def contents(self) -> list[Content]:
        return list(self._parts)

    def to_json(self) -> list[dict[str, Any]]:
        return [part.to_json() for part in self._parts]

    @overload
    def __getitem__(self, index: int) -> Content: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Content]: ...
    def __getitem__(self, index: int | slice) -> Content | Sequence[Content]:
        return self._parts[index]

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Content]:
        return iter(self._parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contents) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    def __str__(self) -> str:
        return "".join(part.text for part in self._parts if isinstance(part, Text))

    def __repr__(self) -> str:
        return f"Contents({list(self._parts)!r})"


@dataclass(frozen=True)
class Message:
    """One message. `str` gives its text.

    channels: what the model wrote outside its answer, by channel name, such as its reasoning.
    """

    role: Role
    contents: Contents = field(default_factory=Contents)
    tool_calls: Sequence[ToolCall] = ()
    channels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))

    @classmethod
    def system(cls, text_or_contents: str | Contents) -> "Message":
        return cls(Role.SYSTEM, _contents(text_or_contents))

    @classmethod
    def user(cls, text_or_contents: str | Contents) -> "Message":
        return cls(Role.USER, _contents(text_or_contents))

    @classmethod
    def model(
        cls,
        contents: Contents | None = None,
        tool_calls: Sequence[ToolCall] = (),
        channels: Mapping[str, str] | None = None,
    ) -> "Message":
        return cls(Role.MODEL, contents or Contents(), tool_calls, channels or {})

    @classmethod
    def tool(cls, contents: Contents) -> "Message":
        return cls(Role.TOOL, contents)

    def to_json(self) -> dict[str, Any]:
        """{"role", "content", "tool_calls", "channels"}; what is empty is left out."""
        message: dict[str, Any] = {"role": self.role.value}
        if self.contents:
            message["content"] = self.contents.to_json()
        if self.tool_calls:
            message["tool_calls"] = [call.to_json() for call in self.tool_calls]
        if self.channels:
            message["channels"] = dict(self.channels)
        return message

    @classmethod
    def from_json(cls, data: Json) -> "Message":
        """The reverse. Also takes content as plain text, "model" as a role, arguments as JSON text, and null."""
        name = data.get("role", "assistant")
        known = {role.value: role for role in Role} | {"model": Role.MODEL}
        content = data.get("content") or ()
        parts = [content] if isinstance(content, str | Mapping) else content
        return cls(
            known.get(name, Role.USER),
            Contents([part for part in map(_part, parts) if part is not None]),
            [ToolCall.from_json(call) for call in data.get("tool_calls") or ()],
            dict(data.get("channels") or {}),
        )

    def __str__(self) -> str:
        return str(self.contents)


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


def _contents(text_or_contents: str | Contents) -> Contents:
    return text_or_contents if isinstance(text_or_contents, Contents) else Contents.of(text_or_contents)


def _part(item: str | Json) -> Content | None:
    """One part of a JSON content; None for a kind this runtime does not know."""
    if isinstance(item, str):
        return Text(item)
    match item.get("type"), item:
        case "text", _:
            return Text(item.get("text", ""))
        case "image", {"path": str(path)}:
            return ImageFile(path)
        case "image", {"blob": str(blob)}:
            return ImageBytes(base64.b64decode(blob))
        case "audio", {"path": str(path)}:
            return AudioFile(path)
        case "audio", {"blob": str(blob)}:
            return AudioBytes(base64.b64decode(blob))
        case "tool_response", _:
            return ToolResponse(item.get("name", ""), item.get("response"))
    return None
