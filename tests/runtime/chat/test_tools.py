"""Tools: their descriptions against litert_lm's, running them, and what goes wrong."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import litert_lm
import pytest

from gemma_edge.runtime.chat.tools import Tool, ToolBox, ToolError, ToolEventHandler, tool_from_function


def get_weather(city: str, days: int = 3, tags: list[str] | None = None, ratio: float = 1.0, ok: bool = True) -> None:
    """Gets the weather.

    More about it.

    Args:
        city: The city, for
            example "Paris".
        days (int): How many days ahead.

        tags: Not a description any more.
    Returns:
        nothing: really
    """


def bare(a, b: Sequence[int], c: dict[str, int], *, d: list = ()):  # type: ignore[no-untyped-def,assignment,type-arg]
    return a, b, c, d


def no_arguments() -> int:
    return 1


@pytest.mark.parametrize("function", [bare, no_arguments, len])
def test_descriptions_are_litert_lms(function: Callable[..., Any]) -> None:
    ours = tool_from_function(function).get_tool_description()
    assert ours == litert_lm.tool_from_function(function).get_tool_description()


def test_a_description_reads_annotations_and_docstring() -> None:
    ours = tool_from_function(get_weather).get_tool_description()
    theirs = litert_lm.tool_from_function(get_weather).get_tool_description()
    assert theirs["function"]["parameters"]["properties"]["tags"]["type"] == "string"  # for `list[str] | None`
    assert ours["function"]["parameters"]["properties"].pop("tags") == {
        "type": "array",
        "items": {"type": "string"},
        "description": "Not a description any more.",
    }
    del theirs["function"]["parameters"]["properties"]["tags"]
    assert ours == theirs


def test_annotations_that_are_text() -> None:
    def later(count: "int", other: "Unknown") -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    def known(count: "int") -> None:
        pass

    assert tool_from_function(known).get_tool_description()["function"]["parameters"]["properties"] == {
        "count": {"type": "integer"}
    }
    # One that cannot be looked up makes them all text, as they always are in litert_lm.
    assert tool_from_function(later).get_tool_description()["function"]["parameters"]["properties"] == {
        "count": {"type": "string"},
        "other": {"type": "string"},
    }


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def answer(name: str, response: Any) -> dict[str, Any]:
    return {"role": "tool", "content": [{"type": "tool_response", "name": name, "response": response}]}


class Add(Tool):
    def get_tool_description(self) -> dict[str, Any]:
        return {"type": "function", "function": {"name": "add"}}

    def execute(self, param: Mapping[str, Any]) -> Any:
        return param["a"] + param["b"]


def test_calls_are_run_and_answered_in_order() -> None:
    tools = ToolBox([no_arguments, Add()])
    assert [d["function"]["name"] for d in tools.descriptions] == ["no_arguments", "add"]
    assert tools.answer([call("add", a=1, b=2), call("no_arguments")]) == [answer("add", 3), answer("no_arguments", 1)]


def test_a_tool_that_raises_tells_the_model(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert ToolBox([Add()]).answer([call("add", a=1, b="x")]) == [
            answer("add", "Error: unsupported operand type(s) for +: 'int' and 'str'")
        ]
    assert caplog.records[0].getMessage() == "tool add failed"
    assert caplog.records[0].exc_info


def test_a_tool_that_does_not_exist_tells_the_model() -> None:
    assert ToolBox([Add(), no_arguments]).answer([call("subtract")]) == [
        answer("subtract", "Error: tool subtract not found, there are add, no_arguments")
    ]


class Handler(ToolEventHandler):
    def approve_tool_call(self, tool_call: dict[str, Any]) -> bool:
        return bool(tool_call["function"]["arguments"]["a"] < 10)

    def process_tool_response(self, tool_response: Any) -> Any:
        return {"sum": tool_response}


def test_a_handler_refuses_calls_and_rewrites_results() -> None:
    tools = ToolBox([Add()], Handler())
    assert tools.answer([call("add", a=1, b=2), call("add", a=10, b=2)]) == [answer("add", {"sum": 3})]


def test_results_are_what_json_keeps_of_them() -> None:
    """As litert_lm sends them."""
    assert ToolBox([Add()]).answer([call("add", a=(1,), b=(2,))]) == [answer("add", [1, 2])]
    tools = ToolBox([returning({1: "one", "two": 2})])
    assert tools.answer([call("tell")]) == [answer("tell", {"1": "one", "two": 2})]


def test_a_result_that_is_not_json() -> None:
    with pytest.raises(ToolError) as caught:
        ToolBox([returning({3})]).answer([call("tell")])
    assert str(caught.value) == (
        "tool tell returned what is not JSON (Object of type set is not JSON serializable); "
        "return text, numbers, lists or dicts of them"
    )


def returning(result: Any) -> Callable[[], Any]:
    def tell() -> Any:
        return result

    return tell


def test_a_tool_without_a_name() -> None:
    class Nameless(Add):
        def get_tool_description(self) -> dict[str, Any]:
            return {"name": "add"}

    with pytest.raises(ToolError) as caught:
        ToolBox([Nameless()])
    assert str(caught.value) == (
        "the description of Nameless has no ['function']['name'], found {'name': 'add'}; add one"
    )
