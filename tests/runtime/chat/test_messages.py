"""Messages and their JSON form, which is litert_lm's."""

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import litert_lm
import pytest

from gemma_edge.runtime.chat import messages
from gemma_edge.runtime.chat.message_json import MessageError
from gemma_edge.runtime.chat.messages import Content, Contents, Message, Role, ToolCall, normalize_message

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
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": None}, {"name": "g"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "assistant", "content": "text", "tool_calls": None, "channels": None},
        {"role": "user", "content": None, "custom": 1},
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


@pytest.mark.parametrize(
    "data",
    [
        {"role": "narrator", "content": "a"},
        {"role": "user", "content": [{"type": "video"}]},
        {"role": "user", "content": [{"type": "image", "blob": "!"}]},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "not json"}]},
        {"role": "assistant", "channels": "thought"},
    ],
)
def test_what_litert_lm_reads_as_something_else_or_not_at_all(data: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        Message.from_json(data)


def test_channels_of_another_kind() -> None:
    with pytest.raises(MessageError) as caught:
        Message.from_json({"role": "assistant", "channels": 3})
    assert str(caught.value) == "channels of a message is int, expected a mapping; leave it out"


@pytest.mark.parametrize("module", [messages, litert_lm], ids=["ours", "theirs"])
def test_a_message_is_its_json_and_its_values_at_once(module: Any) -> None:
    """Each line holds for litert_lm too."""
    message = module.Message.user("a")
    assert message == {"role": "user", "content": [{"type": "text", "text": "a"}]}
    assert json.loads(json.dumps(message)) == message
    assert (message["role"], message.get("channels"), len(message)) == ("user", None, 2)
    message.contents = module.Contents.of("b")
    assert message["content"] == [{"type": "text", "text": "b"}]
    message.contents.append(module.Content.Text("c"))
    assert message.to_json()["content"] == [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    message.update(role="assistant", content="d", extra=1)
    assert (message.role, str(message), message["extra"]) == (module.Role.MODEL, "d", 1)
    message.tool_calls = [module.ToolCall("f", {"x": 1})]
    message.tool_calls[0].arguments["x"] = 2
    assert message.to_json()["tool_calls"][0]["function"]["arguments"] == {"x": 2}
    message.channels = {"thought": "hm"}
    assert message.pop("channels") == {"thought": "hm"}
    assert message.channels == {}
    assert message.setdefault("content", "e") == "d"
    del message["content"]
    assert str(message) == ""
    message.clear()
    assert (message, message.to_json()) == ({}, {})
    message.role = "user"
    assert message == {"role": "user"}
    assert repr(module.Message.user("a")).startswith("Message(role=<Role.USER")


def test_messages_are_copied_and_pickled() -> None:
    message = Message.model(Contents.of("a"), [ToolCall("f", {})])
    message.finish_reason = "stop"
    for copied in (copy.copy(message), copy.deepcopy(message), pickle.loads(pickle.dumps(message))):
        assert copied == message
        assert (copied.contents, copied.tool_calls, copied.finish_reason) == (
            message.contents,
            message.tool_calls,
            "stop",
        )
    changed = copy.deepcopy(message)
    changed.contents.append(Content.Text("b"))
    assert (str(changed), str(message)) == ("ab", "a")


def test_contents_are_a_list() -> None:
    contents = Contents.of("a", Content.ImageFile("/b"), "c")
    assert (len(contents), str(contents), contents[0], list(contents)[2]) == (
        3,
        "ac",
        Content.Text("a"),
        Content.Text("c"),
    )
    assert contents.contents is contents
    assert contents[:1] == [Content.Text("a")]
    contents.extend([Content.Text("d")])
    assert str(contents) == "acd"
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
