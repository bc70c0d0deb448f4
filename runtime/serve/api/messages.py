"""OpenAI's messages as ours. Images and sound come in as bytes that a message has; no path and no address is opened."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_edge.runtime.chat.message_json import Json, MessageError, standard_message
from gemma_edge.runtime.serve.errors import Code, RefusedError

_ROLES = {"developer": "system"}


def read_messages(messages: Sequence[Json], media_bytes: int, *, reads_results: bool = True) -> list[Json]:
    """Messages in LiteRT-LM's form. messages: as `schemas.MESSAGE` has them. media_bytes: of one image or recording.
    reads_results: whether a tool's answer that is JSON is read as that; else it stays the text that was sent.

    Raises RefusedError: a part that cannot be read, an address, a message without content.
    """
    names: dict[str, str] = {}  # of functions, by the id of their call
    found: list[Json] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        try:
            found.append(_message(message, names, where, media_bytes, reads_results))
        except MessageError as error:
            raise RefusedError(400, Code.VALIDATION_ERROR, f"{where}: {error}", param=where) from error
    return found


def _message(message: Json, names: dict[str, str], where: str, media_bytes: int, reads_results: bool) -> Json:
    said = {key: value for key, value in message.items() if value is not None and key != "annotations"}
    role, content = said["role"], said.get("content")
    if isinstance(content, list):
        content = [_part(part, f"{where}.content[{i}]", media_bytes) for i, part in enumerate(content)]
    if role == "tool":
        return _tool_answer(said, content, names, where, reads_results)
    for key in ("name", "tool_call_id"):
        if key in said:
            raise RefusedError(
                400,
                Code.UNSUPPORTED_PARAMETER,
                f"{where}.{key}: the model has no place for it in a message of the role {role}; leave it out",
                param=f"{where}.{key}",
            )
    if role != "assistant":
        for key in ("tool_calls", "refusal"):
            if said.get(key):
                raise _wrong(where, key, f"a message of the role {role} has {key}; only the assistant has")
        if content is None:
            raise _wrong(where, "content", f"a message of the role {role} has no content; give it text or parts")
    result: dict[str, Any] = {"role": _ROLES.get(role, role)}
    if content is not None:
        result["content"] = content
    elif "refusal" in said:
        result["content"] = said["refusal"]
    calls = [_call(call, names) for call in said.get("tool_calls") or ()]
    if calls:
        result["tool_calls"] = calls
    elif role == "assistant" and "content" not in result:
        raise _wrong(where, "content", "a message of the assistant has neither content nor tool_calls")
    return standard_message(result)


def _call(call: Json, names: dict[str, str]) -> Json:
    """With its id: Gemma's templates show none, those of some fine-tunes do."""
    if isinstance(call.get("id"), str):
        names[call["id"]] = call["function"]["name"]
    return {key: value for key, value in call.items() if key != "index"}


def _tool_answer(said: Json, content: Any, names: Mapping[str, str], where: str, reads_results: bool) -> Json:
    if content is None:
        raise _wrong(where, "content", "a tool's answer has no content; give it text")
    text = content if isinstance(content, str) else _joined(content, where)
    name = said.get("name") or names.get(said.get("tool_call_id", ""))
    if name is None:
        raise _wrong(where, "tool_call_id", "answers no call of an earlier message; send the assistant's call too")
    response = _value(text) if reads_results else text
    answer = {"role": "tool", "content": [{"type": "tool_response", "name": name, "response": response}]}
    return answer | ({"tool_call_id": said["tool_call_id"]} if "tool_call_id" in said else {})


def _value(text: str) -> Any:
    """A result that is JSON's object or list, as such; all else as the text it is."""
    if text[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _joined(parts: Sequence[Json], where: str) -> str:
    if any(part["type"] != "text" for part in parts):
        raise _wrong(where, "content", "a tool's answer has a part that is no text; put it into a user's message")
    return "".join(part["text"] for part in parts)


def _part(part: Json, where: str, media_bytes: int) -> Json:
    kind = part["type"]
    key = {"image_url": "image_url", "input_audio": "input_audio", "refusal": "refusal"}.get(kind, "text")
    if key not in part:
        raise RefusedError(422, Code.VALIDATION_ERROR, f"{where}: a part of type {kind} has no {key}", param=where)
    others = set(part) - {"type", key}
    if others:
        what = f"{where}: a part of type {kind} has {sorted(others)[0]!r} too; send two parts"
        raise RefusedError(422, Code.VALIDATION_ERROR, what, param=where)
    if key in ("text", "refusal"):
        return {"type": "text", "text": part[key]}
    if key == "input_audio":
        return {"type": "audio", "blob": _bytes(part[key]["data"], "audio", f"{where}.{key}", media_bytes)}
    return {"type": "image", "blob": _bytes(part[key]["url"], "image", f"{where}.{key}.url", media_bytes)}


def _bytes(data: str, medium: str, where: str, media_bytes: int) -> str:
    """base64 of a data: URL, or by itself for sound."""
    if data.startswith("data:"):
        header, comma, data = data.partition(",")
        said = header[5:].partition(";")[0].lower()
        if not comma or not header.endswith(";base64"):
            raise _media(where, f"the {medium} is a data: URL without base64; encode its bytes")
        if said.partition("/")[0] not in ("", medium, "application"):
            raise _media(where, f"the data: URL holds {said[:60]!r}, expected {medium}")
    elif medium == "image":
        raise _media(where, f"{data[:60]!r} is not fetched: this server opens no address and no file; send a data: URL")
    if len(data) * 3 // 4 > media_bytes:
        raise RefusedError(
            413, Code.TOO_LARGE, f"{where}: has {len(data) * 3 // 4} bytes, at most {media_bytes} are read", param=where
        )
    return data


def _media(where: str, message: str) -> RefusedError:
    return RefusedError(400, Code.VALIDATION_ERROR, f"{where}: {message}", param=where)


def _wrong(where: str, key: str, message: str) -> RefusedError:
    return RefusedError(422, Code.VALIDATION_ERROR, f"{where}.{key}: {message}", param=f"{where}.{key}")
