"""Messages and their JSON form, which is litert_lm's."""

from collections.abc import Callable
from typing import Any

import litert_lm
import pytest

from gemma_edge.runtime.chat import messages
from gemma_edge.runtime.chat.messages import Content, Contents, Message, MessageError, Role, ToolCall, normalize_message

# The same message built with each library.
BUILDERS: list[Callable[[Any], Any]] = [
    lambda m: m.Message.user("Hello"),
    lambda m: m.Message.system("Be brief."),
    lambda m: m.Message.model(m.Contents.of("a", "b"), [m.ToolCall("f", {"x": 1}, id="7")], {"thought": "hm"}),
    lambda m: m.Message.tool(m.Contents.of(m.Content.ToolResponse("f", {"y": None}))),
    lambda m: m.Message.user(m.Contents.of([m.Content.ImageBytes(b"\x00\xff"), m.Content.ImageFile("/a.png")])),
    lambda m: m.Message.user(m.Contents.of(m.Content.AudioBytes(b"riff"), m.Content.AudioFile("/a.wav"), "say")),
    lambda m: m.Message(m.Role.MODEL),
]


@pytest.mark.parametrize("build", BUILDERS)
def test_json_and_text_are_litert_lms(build: Callable[[Any], Any]) -> None:
    ours, theirs = build(messages), build(litert_lm)
    assert ours.to_json() == theirs.to_json()
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("build", BUILDERS)
def test_round_trip(build: Callable[[Any], Any]) -> None:
    message = build(messages)
    assert Message.from_json(message.to_json()) == message


@pytest.mark.parametrize(
    "data",
    [
        {"role": "user", "content": "text"},
        {"role": "model", "content": [{"type": "text", "text": "a"}, "b"]},
        {"content": []},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": [1]}'}}]},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "not json"}, {"name": "g"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "assistant", "content": "text", "tool_calls": None, "channels": None},
        {"role": "narrator", "content": [{"type": "video"}, {"type": "text"}]},
    ],
)
def test_reading_json_as_litert_lm_does(data: dict[str, Any]) -> None:
    ours, theirs = Message.from_json(data), litert_lm.Message.from_json(data)
    assert ours.role.value == theirs.role.value
    assert str(ours) == str(theirs)
    assert [call.to_json() for call in ours.tool_calls] == [call.to_json() for call in theirs.tool_calls]


def test_every_form_of_a_message() -> None:
    assert normalize_message("hi") == {"role": "user", "content": "hi"}
    assert normalize_message(Contents.of("hi")) == {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    assert normalize_message(Message.model(Contents.of("hi")))["role"] == "assistant"
    assert normalize_message({"role": "tool", "x": 1}) == {"role": "tool", "x": 1}


def test_contents_are_a_sequence() -> None:
    contents = Contents.of("a", Content.ImageFile("/b"), "c")
    assert (len(contents), str(contents), contents[0], list(contents)[2]) == (
        3,
        "ac",
        Content.Text("a"),
        Content.Text("c"),
    )
    assert contents == Contents(contents.contents)
    assert Contents.of() == Contents.empty()


def test_messages_are_values() -> None:
    assert Message.user("a") == Message(Role.USER, Contents.of("a"))
    assert ToolCall("f", {"x": 1}) == ToolCall("f", {"x": 1})


def test_what_is_no_message() -> None:
    with pytest.raises(MessageError) as caught:
        normalize_message(3)  # type: ignore[arg-type]
    assert str(caught.value) == "a message is int, expected str, Contents, Message or a mapping; wrap it"
    with pytest.raises(MessageError) as caught:
        Contents.of("a", 3)  # type: ignore[arg-type]
    assert str(caught.value) == "Contents.of got int, expected str or Content; wrap it in one"
    assert isinstance(caught.value, TypeError)
