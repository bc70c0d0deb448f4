"""Messages as clients write them, brought into the one form that templates, media and tools read: LiteRT-LM's.

Parts of OpenAI, Anthropic and Hugging Face are read where they mean one of ours. Everything else is a MessageError that
names it, since a part that is left out in silence is answered as if it had been seen. Files are opened only where a
part says `path`: a server can forbid that one word.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.media.item import base64_bytes

Json = Mapping[str, Any]  # a message as JSON: {"role": "user", "content": "Hello"}

_ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",  # Gemma's own name
    "tool": "tool",
    "function": "tool",  # OpenAI's older name
}
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_MEDIA = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
}
_ENCODED = ("data", "base64", "file_data")  # keys whose text is base64 where it is no data: URL
_LINKED = ("url", "image_url", "audio_url", "image", "audio")  # keys whose text must be a data: URL
_NESTED = ("image_url", "audio_url", "input_audio", "source", "file")


class MessageError(GemmaEdgeError, TypeError, ValueError):
    """What was sent is no message, or has a part that cannot be read. litert_lm raises TypeError for the first."""


# Where other interfaces put what is said (Ollama, Gemini, the AI SDK): a template would leave it out.
_BESIDE = ("images", "audio", "audios", "videos", "files", "attachments", "experimental_attachments", "parts")


def standard_message(message: Json) -> dict[str, Any]:
    """The same message in LiteRT-LM's form: one of four roles, parts of four types, calls with mappings as arguments.

    Content stays text where it is text. Keys that are not known stay as they are. Raises MessageError.
    """
    result = {**message, "role": standard_role(message.get("role"))}
    beside = next((key for key in _BESIDE if message.get(key)), None)
    if beside is not None:
        raise MessageError(f"a message has {beside!r} beside its content; put it among the parts of content")
    content = message.get("content")
    if content is None:
        result.pop("content", None)
        if isinstance(message.get("refusal"), str):  # OpenAI's reply that refuses has nothing else
            result["content"] = result.pop("refusal")
    else:
        result["content"] = standard_content(content, result["role"])
    calls = message.get("tool_calls")
    if calls is None and message.get("function_call") is not None:  # OpenAI's older form of one call
        calls = [result.pop("function_call")]
    result.pop("tool_calls", None)
    if calls:
        if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
            raise MessageError(f"tool_calls of a message is {type(calls).__name__}, expected a list; put it in one")
        result["tool_calls"] = [standard_call(call) for call in calls]
    return result


def sendable_message(message: Json) -> dict[str, Any]:
    """As `standard_message`, for one that goes into a prompt: nothing in it may be lost on the way."""
    result = standard_message(message)
    role, content = result["role"], result.get("content")
    if content is None and role != "assistant":
        raise MessageError(f"a message of the role {role} has no content; give it text or parts")
    for part in content if isinstance(content, list) else ():
        kind = part.get("type")
        if kind == "tool_response" and role != "tool":
            raise MessageError(f"a message of the role {role} has a part of type tool_response; give it the role tool")
        if kind in ("image", "audio") and role in ("system", "tool"):
            raise MessageError(
                f"a message of the role {role} has a part of type {kind}, expected text; put it into a user's message"
            )
    return result


def standard_role(role: object) -> str:
    """Raises MessageError for one that no template of a chat model knows."""
    if not isinstance(role, str) or role not in _ROLES:
        what = "has no role" if role is None else f"has the role {_short(role)}"
        raise MessageError(f"a message {what}, expected system, user, assistant or tool; say who speaks")
    return _ROLES[role]


def standard_content(content: object, role: str) -> str | list[dict[str, Any]]:
    """Text, or a list of parts with types. Raises MessageError."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping) or hasattr(content, "to_json"):
        content = content.to_json() if hasattr(content, "to_json") else content
        content = [content] if isinstance(content, Mapping) else content
    if isinstance(content, Sequence) and not isinstance(content, str | bytes | bytearray):
        return [standard_part(part, role) for part in content]
    raise MessageError(f"the content of a message is {type(content).__name__}, expected text or a list of parts")


def standard_part(part: object, role: str = "user") -> dict[str, Any]:
    """One part: text, image, audio or tool_response; of a tool also any mapping without a type, its result."""
    if hasattr(part, "to_json"):
        part = part.to_json()
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise MessageError(f"a part of a message is {type(part).__name__}, expected text or a mapping with a type")
    kind = part.get("type")
    if kind is None and role == "tool":
        return dict(part)
    if kind is None and isinstance(part.get("text"), str):
        return {"type": "text", **part}
    if kind == "tool_response":
        return dict(part)
    if isinstance(kind, str) and kind in _TEXTS:
        return _text(kind, part)
    if isinstance(kind, str) and kind in _MEDIA:
        return _media(kind, part)
    if kind in ("file", "input_file"):
        return _file(kind, part)
    what = f"no type (it has {_short(sorted(map(str, part)))})" if kind is None else f"the type {_short(kind)}"
    raise MessageError(f"a part of a message has {what}, expected text, image, audio or tool_response; send those")


def _text(kind: str, part: Json) -> dict[str, Any]:
    key = _TEXTS[kind]
    if key not in part or not (part[key] is None or isinstance(part[key], str | int | float)):
        found = f"{type(part[key]).__name__} for it" if key in part else "nothing for it"
        raise MessageError(f"a part of type {kind} needs {key!r}, found {found}; give it text")
    return dict(part) if kind == "text" else {"type": "text", "text": part[key]}


def _media(kind: str, part: Json) -> dict[str, Any]:
    """An image or a recording: by path, or by its bytes."""
    medium = _MEDIA[kind]
    if isinstance(part.get("path"), str):
        return {**part, "type": medium}
    if isinstance(part.get("blob"), str):
        return {**part, "type": medium, "blob": _clean(part["blob"], medium)}
    data = _data(kind, part)
    said = _media_type(data)
    if said.partition("/")[0] not in ("", medium, "application"):
        raise MessageError(f"a part of type {kind} holds {_short(said)}, expected {medium}; name its type")
    return {"type": medium, "blob": _clean(data, medium)}


def _file(kind: str, part: Json) -> dict[str, Any]:
    """A file that says what it is: OpenAI's `file_data` is a data: URL."""
    data = _data(kind, part)
    said = _media_type(data)
    medium = said.partition("/")[0]
    if medium in ("image", "audio"):
        return {"type": medium, "blob": _clean(data, medium)}
    if medium == "text":
        return {"type": "text", "text": base64_bytes(data).decode("utf-8", "replace")}
    found = _short(said) if said else "data of no known type"
    raise MessageError(f"a part of type {kind} holds {found}, expected image, audio or text; send its text")


def _media_type(data: str) -> str:
    """What a data: URL says it holds, such as "image/png"; "" for bare base64."""
    return data[5:100].partition(",")[0].partition(";")[0].lower() if data.startswith("data:") else ""


def _data(kind: str, part: Json) -> str:
    """The encoded bytes that a part carries, as a data: URL or base64."""
    for key in _NESTED:
        if isinstance(part.get(key), Mapping):
            return _data(kind, part[key])
    for key in (*_ENCODED, *_LINKED):
        value = part.get(key)
        if isinstance(value, bytes | bytearray):
            return base64.b64encode(value).decode()
        if isinstance(value, str) and (key in _ENCODED or value.startswith("data:")):
            return value
        if isinstance(value, str):
            raise MessageError(
                f"a part of type {kind} refers to {_short(value)}, which is not fetched; "
                "load it and send a data: URL, or pass a file of your own by path"
            )
    found = _short(sorted(map(str, part)))
    raise MessageError(f"a part of type {kind} has {found}, expected its bytes; send a data: URL, a blob or a path")


def _clean(blob: str, medium: str) -> str:
    """Base64 as LiteRT-LM decodes it: the plain alphabet on one line."""
    try:
        base64.b64decode(blob, validate=True)
    except ValueError:
        try:
            return base64.b64encode(base64_bytes(blob)).decode()
        except ValueError as error:
            raise MessageError(f"the {medium} of a message is no base64 ({error}); encode its bytes") from error
    return blob


def standard_call(call: object) -> dict[str, Any]:
    """{"type": "function", "function": {"name", "arguments"}}; a call without `function` around it is read too."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise MessageError(f"a tool call is {_short(call)}, expected a mapping with name and arguments")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise MessageError(f"a tool call has no name ({_short(dict(function))}); say which function it calls")
    around = {"type": "function", **call} if "function" in call else {"type": "function"}
    if "id" in call:
        around["id"] = call["id"]
    if "arguments" not in function:
        return {**around, "function": {"name": name}}
    return {**around, "function": {"name": name, "arguments": standard_arguments(name, function["arguments"])}}


def standard_arguments(name: str, arguments: object) -> dict[str, Any]:
    """The arguments of a call: a mapping, the same as JSON text (OpenAI), or nothing. Raises MessageError."""
    if arguments is None or arguments == "":
        return {}
    found = arguments
    if isinstance(arguments, str):
        try:
            found = json.loads(arguments)
        except (ValueError, RecursionError):
            found = None
    if not isinstance(found, Mapping):
        raise MessageError(
            f"the arguments of the call of {_short(name)} are {_short(arguments)}, expected a JSON object; send one"
        )
    return dict(found)


def _short(value: object) -> str:
    """At most 60 characters: a message names what is wrong, it does not repeat an image."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
