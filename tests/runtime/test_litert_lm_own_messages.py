"""What LiteRT-LM's messages_test and tool_test assert, said anew and asked of both modules.

What is left out, and why: test_litert_lm_own_tests.py.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import litert_lm as google
import pytest

from gemma_edge import runtime
from tests.runtime.programs import multiply


@pytest.fixture(scope="module", params=[runtime, google], ids=["ours", "litert_lm"])
def litert_lm(request: pytest.FixtureRequest) -> Any:
    request.param.set_min_log_severity(request.param.LogSeverity.FATAL)
    return request.param


# ---------------------------------------------------------------- messages


def test_roles(litert_lm: Any) -> None:
    roles = {role.name: role.value for role in litert_lm.Role}
    assert roles == {"SYSTEM": "system", "USER": "user", "MODEL": "assistant", "TOOL": "tool"}


def test_parts_as_json(litert_lm: Any) -> None:
    content = litert_lm.Content
    expected: list[tuple[Any, dict[str, Any]]] = [
        (content.Text(text="hello"), {"type": "text", "text": "hello"}),
        (content.ImageBytes(bytes=b"fake_image_data"), {"type": "image", "blob": "ZmFrZV9pbWFnZV9kYXRh"}),
        (content.ImageFile(absolute_path="/a/b.png"), {"type": "image", "path": "/a/b.png"}),
        (content.AudioBytes(bytes=b"fake_audio_data"), {"type": "audio", "blob": "ZmFrZV9hdWRpb19kYXRh"}),
        (content.AudioFile(absolute_path="/a/b.mp3"), {"type": "audio", "path": "/a/b.mp3"}),
        (
            content.ToolResponse(name="f", response="sunny"),
            {"type": "tool_response", "name": "f", "response": "sunny"},
        ),
    ]
    assert [part.to_json() for part, _ in expected] == [value for _, value in expected]
    assert str(content.Text("hello")) == "hello"


def test_contents_are_a_list(litert_lm: Any) -> None:
    one, two = litert_lm.Content.Text("hello"), litert_lm.Content.Text(" world")
    empty, several = litert_lm.Contents.empty(), litert_lm.Contents.of([one, two])
    assert (bool(empty), empty.to_json(), str(empty)) == (False, [], "")
    assert issubclass(litert_lm.Contents, list)
    assert several == [one, two] == litert_lm.Contents.of(one, " world")
    assert (several[1:], several.contents is several, str(several)) == ([two], True, "hello world")
    assert litert_lm.Contents.of("hello")[0].text == "hello"
    assert litert_lm.Contents.of("a") == litert_lm.Contents.of("a") != litert_lm.Contents.of("b")
    assert litert_lm.Contents.of("a") != "a"
    assert repr(litert_lm.Contents.of("a")).startswith("Contents(")


def test_messages_of_every_role(litert_lm: Any) -> None:
    message, contents = litert_lm.Message, litert_lm.Contents
    text = [{"type": "text", "text": "hi"}]
    made = [message.system("hi"), message.user("hi"), message.model(contents.of("hi")), message.tool(contents.of("hi"))]
    assert [m.role for m in made] == list(litert_lm.Role)
    assert [m.to_json() for m in made] == [
        {"role": role, "content": text} for role in ("system", "user", "assistant", "tool")
    ]
    call = litert_lm.ToolCall(name="f", arguments={"x": "y"})
    called = {"type": "function", "function": {"name": "f", "arguments": {"x": "y"}}}
    assert call.to_json() == called
    assert message.model(tool_calls=[call]).to_json() == {"role": "assistant", "tool_calls": [called]}
    thought = message.model(contents=contents.of("hi"), channels={"reasoning": "so"})
    assert thought.to_json() == {"role": "assistant", "content": text, "channels": {"reasoning": "so"}}


def test_a_message_is_a_dict(litert_lm: Any) -> None:
    raw: dict[str, Any] = {
        "role": "assistant",
        "content": [{"type": "text", "text": "hello world"}],
        "channels": {"thought": "reasoning"},
        "reasoning_content": "reasoning",
    }
    message = litert_lm.Message.from_json(raw)
    assert issubclass(litert_lm.Message, dict)
    assert (message.role, str(message), message.channels) == (litert_lm.Role.MODEL, "hello world", raw["channels"])
    assert (message.get("reasoning_content"), message.get("nonexistent"), len(message)) == ("reasoning", None, 4)
    assert "tool_calls" not in message
    assert (set(message.keys()), message == raw, raw == message, message.to_json() == raw) == (
        set(raw), True, True, True,
    )  # fmt: skip
    assert json.dumps(message) == json.dumps(raw)
    assert "Message(" in repr(message)


def test_a_message_is_changed_as_a_dict(litert_lm: Any) -> None:
    message = litert_lm.Message.model(litert_lm.Contents.of("before"))
    message["more"] = 1
    assert (message["more"], message.pop("more"), "more" in message) == (1, 1, False)
    message["role"] = "user"
    message["content"] = [{"type": "text", "text": "after"}]
    assert (message.role, str(message)) == (litert_lm.Role.USER, "after")
    del message["role"]
    assert "role" not in message
    message.role = litert_lm.Role.SYSTEM
    assert message["role"] == "system"
    message.role = "user"
    assert message["role"] == "user"
    message.update({"role": "assistant", "extra": 99})
    assert (message.role, message["extra"], message.setdefault("key", "value")) == (litert_lm.Role.MODEL, 99, "value")
    message.clear()
    assert (len(message), "role" in message) == (0, False)


def test_a_message_of_every_part(litert_lm: Any) -> None:
    raw = {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Here is an image:"},
            {"type": "image", "path": "/tmp/test.png"},
            {"type": "image", "blob": "ZmFrZV9pbWFnZV9kYXRh"},
            {"type": "audio", "path": "/tmp/test.mp3"},
            {"type": "audio", "blob": "ZmFrZV9hdWRpb19kYXRh"},
            {"type": "tool_response", "name": "calc", "response": 42},
        ],
        "tool_calls": [
            {"type": "function", "id": "call_1", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}},
        ],
    }
    message = litert_lm.Message.from_json(raw)
    kinds = ("Text", "ImageFile", "ImageBytes", "AudioFile", "AudioBytes", "ToolResponse")
    assert [type(part) for part in message.contents.contents] == [getattr(litert_lm.Content, kind) for kind in kinds]
    assert message.contents[2].bytes == b"fake_image_data"
    [call] = message.tool_calls
    assert (call.name, call.arguments, call.id) == ("get_weather", {"city": "Paris"}, "call_1")
    assert message.to_json() == raw


@pytest.mark.parametrize(("arguments", "expected"), [('{"city": "Tokyo"}', {"city": "Tokyo"}), (None, {})])
def test_arguments_as_text_and_none(litert_lm: Any, arguments: str | None, expected: dict[str, Any]) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    message = litert_lm.Message.from_json({"role": "assistant", "tool_calls": [call]})
    assert [call.arguments for call in message.tool_calls] == [expected]


# ---------------------------------------------------------------- tools


def greet(name: str, greeting: str = "Hello") -> str:
    """Greets a person."""
    return f"{greeting}, {name}!"


def get_weather(location: str) -> str:
    """Gets weather for a location.

    Args:
        location (str): The name of the city.
    """
    return f"Weather in {location} is sunny."


def get_time() -> str:
    """Returns the current time."""
    return "20:00"


def product(numbers: list[float]) -> float:
    """Multiplies.

    Args:
        numbers: What to multiply.
    """
    return numbers[0] * numbers[1]


def product_of_a_sequence(numbers: Sequence[float]) -> float:
    """Multiplies.

    Args:
        numbers: What to multiply.
    """
    return numbers[0] * numbers[1]


def fail(a: int) -> int:
    """Always fails."""
    raise ValueError(f"Planned failure {a}")


def of_no_json() -> object:
    """Returns what is no JSON."""
    return object


def test_a_function_is_described(litert_lm: Any) -> None:
    tool = litert_lm.tool_from_function(multiply)
    assert isinstance(tool, litert_lm.Tool)
    properties = {
        "a": {"type": "integer", "description": "The first integer."},
        "b": {"type": "integer", "description": "The second integer."},
    }
    assert tool.get_tool_description() == {
        "type": "function",
        "function": {
            "name": "multiply",
            "description": "Multiplies two integers.",
            "parameters": {"type": "object", "properties": properties, "required": ["a", "b"]},
        },
    }


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (greet, {"required": ["name"]}),
        (get_weather, {"properties": {"location": {"type": "string", "description": "The name of the city."}}}),
        (get_time, {"properties": {}}),
        *(
            (
                function,
                {
                    "properties": {
                        "numbers": {
                            "type": "array",
                            "items": {"type": "number"},
                            "description": "What to multiply.",
                        }
                    }
                },
            )
            for function in (product, product_of_a_sequence)
        ),
    ],
)
def test_parameters_are_described(litert_lm: Any, function: Callable[..., Any], parameters: dict[str, Any]) -> None:
    found = litert_lm.tool_from_function(function).get_tool_description()["function"]
    assert found["name"] == function.__name__
    assert parameters.items() <= found["parameters"].items()


def test_a_tool_is_run(litert_lm: Any) -> None:
    cases: list[tuple[Callable[..., Any], dict[str, Any], Any]] = [
        (multiply, {"a": 2, "b": 3}, 6),
        (greet, {"name": "Alice"}, "Hello, Alice!"),
        (greet, {"name": "Bob", "greeting": "Hi"}, "Hi, Bob!"),
        (get_weather, {"location": "London"}, "Weather in London is sunny."),
        (get_time, {}, "20:00"),
        (product, {"numbers": [2.0, 3.5]}, 7.0),
        (of_no_json, {}, object),
    ]
    for function, arguments, expected in cases:
        assert litert_lm.tool_from_function(function).execute(arguments) == expected
    with pytest.raises(ValueError, match="Planned failure 1"):
        litert_lm.tool_from_function(fail).execute({"a": 1})
