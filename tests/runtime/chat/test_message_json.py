"""Messages as clients of other libraries write them: read, or refused by name. Nothing is left out in silence."""

import base64
from collections.abc import Callable
from typing import Any

import pytest

from gemma_edge.runtime.chat.message_json import MessageError, sendable_message, standard_message
from gemma_edge.runtime.chat.messages import Content, Message, Role, read_message
from gemma_edge.runtime.media.item import base64_bytes

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
B64 = base64.b64encode(PNG).decode()
URL = f"data:image/png;base64,{B64}"
WAV = base64.b64encode(b"RIFF....WAVE").decode()


def part(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": [fields]}


@pytest.mark.parametrize(
    ("given", "standard"),
    [
        ({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}, {"type": "image", "blob": B64}),
        ({"type": "image_url", "image_url": URL}, {"type": "image", "blob": B64}),
        ({"type": "input_image", "image_url": URL}, {"type": "image", "blob": B64}),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
            {"type": "image", "blob": B64},
        ),
        ({"type": "image", "base64": B64}, {"type": "image", "blob": B64}),
        ({"type": "image", "image": PNG}, {"type": "image", "blob": B64}),
        ({"type": "image", "path": "/a.png"}, {"type": "image", "path": "/a.png"}),
        ({"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}, {"type": "audio", "blob": WAV}),
        (
            {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{WAV}"}},
            {"type": "audio", "blob": WAV},
        ),
        ({"type": "file", "file": {"filename": "a.png", "file_data": URL}}, {"type": "image", "blob": B64}),
        (
            {"type": "input_file", "file_data": "data:text/plain;base64," + base64.b64encode("né".encode()).decode()},
            {"type": "text", "text": "né"},
        ),
        ({"type": "input_text", "text": "a"}, {"type": "text", "text": "a"}),
        ({"type": "output_text", "text": "a", "annotations": []}, {"type": "text", "text": "a"}),
        ({"type": "refusal", "refusal": "No."}, {"type": "text", "text": "No."}),
        ({"text": "a"}, {"type": "text", "text": "a"}),
        ("a", {"type": "text", "text": "a"}),
        (Content.Text("a"), {"type": "text", "text": "a"}),
        (Content.ImageBytes(PNG), {"type": "image", "blob": B64}),
    ],
)
def test_parts_of_other_clients(given: Any, standard: dict[str, Any]) -> None:
    message = {"role": "user", "content": ["Look:", given]}
    assert sendable_message(message)["content"] == [{"type": "text", "text": "Look:"}, standard]
    assert standard_message(standard_message(message)) == standard_message(message)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (
            {"type": "imge", "blob": "x"},
            "a part of a message has the type 'imge', expected text, image, audio or tool_response; send those",
        ),
        (
            {"type": "video_url", "video_url": {"url": "x"}},
            "a part of a message has the type 'video_url', expected text, image, audio or tool_response; send those",
        ),
        (
            {"type": ["text"]},
            "a part of a message has the type ['text'], expected text, image, audio or tool_response; send those",
        ),
        (
            {"blob": "x"},
            "a part of a message has no type (it has ['blob']), expected text, image, audio or tool_response; "
            "send those",
        ),
        (3, "a part of a message is int, expected text or a mapping with a type"),
        (None, "a part of a message is NoneType, expected text or a mapping with a type"),
        ({"type": "text"}, "a part of type text needs 'text', found nothing for it; give it text"),
        (
            {"type": "text", "text": {"value": "a"}},
            "a part of type text needs 'text', found dict for it; give it text",
        ),
        ({"type": "refusal"}, "a part of type refusal needs 'refusal', found nothing for it; give it text"),
        (
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            "a part of type image_url refers to 'https://example.com/a.png', which is not fetched; "
            "load it and send a data: URL, or pass a file of your own by path",
        ),
        (
            {"type": "image_url", "image_url": "/etc/passwd"},
            "a part of type image_url refers to '/etc/passwd', which is not fetched; "
            "load it and send a data: URL, or pass a file of your own by path",
        ),
        (
            {"type": "file", "file": {"file_id": "file-1"}},
            "a part of type file has ['file_id'], expected its bytes; send a data: URL, a blob or a path",
        ),
        (
            {"type": "input_image", "file_id": "file-1"},
            "a part of type input_image has ['file_id', 'type'], expected its bytes; "
            "send a data: URL, a blob or a path",
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}},
            "a part of type file holds 'application/pdf', expected image, audio or text; send its text",
        ),
        (
            {"type": "input_file", "file_data": "AAAA"},
            "a part of type input_file holds data of no known type, expected image, audio or text; send its text",
        ),
        (
            {"type": "image_url", "image_url": "data:audio/wav;base64,AAAA"},
            "a part of type image_url holds 'audio/wav', expected image; name its type",
        ),
        (
            {"type": "tool_response", "name": "f", "response": 1},
            "a message of the role user has a part of type tool_response; give it the role tool",
        ),
    ],
)
def test_parts_that_are_refused_by_name(given: Any, error: str) -> None:
    with pytest.raises(MessageError) as caught:
        read_message({"role": "user", "content": [given]})
    assert str(caught.value) == error


def test_content_of_another_kind() -> None:
    for content, found in ((3, "int"), (b"x", "bytes"), ({"a"}, "set")):
        with pytest.raises(MessageError) as caught:
            read_message({"role": "user", "content": content})
        assert str(caught.value) == f"the content of a message is {found}, expected text or a list of parts"


@pytest.mark.parametrize(
    ("given", "role"),
    [("developer", "system"), ("system", "system"), ("model", "assistant"), ("function", "tool"), ("user", "user")],
)
def test_roles_of_other_clients(given: str, role: str) -> None:
    assert read_message({"role": given, "content": "a"}) == {"role": role, "content": "a"}
    assert Message.from_json({"role": given}).role is Role(role)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": "a"}, "a message has no role, expected system, user, assistant or tool; say who speaks"),
        (
            {"role": None, "content": "a"},
            "a message has no role, expected system, user, assistant or tool; say who speaks",
        ),
        (
            {"role": "User", "content": "a"},
            "a message has the role 'User', expected system, user, assistant or tool; say who speaks",
        ),
        (
            {"role": "narrator", "content": "a"},
            "a message has the role 'narrator', expected system, user, assistant or tool; say who speaks",
        ),
        (
            {"role": ["user"], "content": "a"},
            "a message has the role ['user'], expected system, user, assistant or tool; say who speaks",
        ),
        ({"role": "user"}, "a message of the role user has no content; give it text or parts"),
        (
            {"role": "user", "content": "x", "images": ["aGk="]},
            "a message has 'images' beside its content; put it among the parts of content",
        ),
        (
            {"role": "user", "parts": [{"text": "x"}]},
            "a message has 'parts' beside its content; put it among the parts of content",
        ),
        (
            {"role": "assistant", "content": "x", "audio": {"id": "a"}},
            "a message has 'audio' beside its content; put it among the parts of content",
        ),
        ({"role": "tool", "content": None}, "a message of the role tool has no content; give it text or parts"),
        (
            {"role": "system", "content": [{"type": "image", "path": "/a"}]},
            "a message of the role system has a part of type image, expected text; put it into a user's message",
        ),
        (
            {"role": "tool", "content": [{"type": "image_url", "image_url": URL}]},
            "a message of the role tool has a part of type image, expected text; put it into a user's message",
        ),
    ],
)
def test_messages_that_are_refused(message: dict[str, Any], error: str) -> None:
    with pytest.raises(MessageError) as caught:
        read_message(message)
    assert str(caught.value) == error


@pytest.mark.parametrize("arguments", [{"x": [1]}, '{"x": [1]}', ' {"x":[1]} '])
def test_arguments_as_json_text_are_the_mapping(arguments: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    wanted = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"x": [1]}}}
    assert read_message({"role": "assistant", "content": None, "tool_calls": [call]}) == {
        "role": "assistant",
        "tool_calls": [wanted],
    }
    flat = {"id": "call_1", "name": "f", "arguments": arguments}
    assert read_message({"role": "assistant", "tool_calls": [flat]})["tool_calls"] == [wanted]
    older = read_message({"role": "assistant", "function_call": {"name": "f", "arguments": arguments}})
    assert older == {"role": "assistant", "tool_calls": [{"type": "function", "function": wanted["function"]}]}


@pytest.mark.parametrize("nothing", [None, "", {}])
def test_a_call_without_arguments(nothing: Any) -> None:
    call = {"function": {"name": "f", "arguments": nothing}}
    assert read_message({"role": "assistant", "tool_calls": [call]})["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("calls", "error"),
    [
        (
            [{"function": {"name": "f", "arguments": "x=1"}}],
            "the arguments of the call of 'f' are 'x=1', expected a JSON object; send one",
        ),
        (
            [{"function": {"name": "f", "arguments": "[1]"}}],
            "the arguments of the call of 'f' are '[1]', expected a JSON object; send one",
        ),
        (
            [{"function": {"name": "f", "arguments": 3}}],
            "the arguments of the call of 'f' are 3, expected a JSON object; send one",
        ),
        ([{"function": {}}], "a tool call has no name ({}); say which function it calls"),
        (["f()"], "a tool call is 'f()', expected a mapping with name and arguments"),
        ([{"function": "f"}], "a tool call is {'function': 'f'}, expected a mapping with name and arguments"),
        ("f()", "tool_calls of a message is str, expected a list; put it in one"),
        ({"name": "f"}, "tool_calls of a message is dict, expected a list; put it in one"),
    ],
)
def test_calls_that_are_refused(calls: Any, error: str) -> None:
    message: dict[str, Any] = {"role": "assistant", "tool_calls": calls}
    reads: tuple[Callable[[Any], Any], ...] = (read_message, Message.from_json)
    for read in reads:
        with pytest.raises(MessageError) as caught:
            read(message)
        assert str(caught.value) == error


def test_a_reply_that_refuses() -> None:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": "I cannot.", "annotations": []}
    assert read_message(message)["content"] == "I cannot."


@pytest.mark.parametrize(
    "text",
    [
        base64.encodebytes(PNG).decode(),
        base64.encodebytes(PNG).decode().replace("\n", "\r\n"),
        f"data:image/png;base64,{B64}",
        f"data:;base64,{B64}",
        base64.urlsafe_b64encode(PNG).decode(),
        B64.rstrip("="),
        f"  {B64}\n",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
    ],
)
def test_base64_as_it_comes(text: str) -> None:
    assert base64_bytes(text) == PNG
    message = part(type="image", blob=text)
    assert read_message(message)["content"] == [{"type": "image", "blob": B64}]
    assert Message.from_json(message).contents == [Content.ImageBytes(PNG)]


@pytest.mark.parametrize("text", ["not base64!", "QUJD$", "A", "data:image/png;base64,?"])
def test_what_is_no_base64(text: str) -> None:
    reads: tuple[Callable[[Any], Any], ...] = (read_message, Message.from_json)
    for read in reads:
        with pytest.raises(MessageError, match=r"^the image of a message is no base64 \(.*\); encode its bytes$"):
            read(part(type="image", blob=text))
