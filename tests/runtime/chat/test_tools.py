"""Tools: their descriptions against litert_lm's, running them, and what goes wrong."""

import asyncio
import dataclasses
import datetime
import decimal
import enum
import functools
import itertools
import logging
import pathlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import litert_lm
import numpy as np
import pydantic
import pytest

from gemma_edge.runtime.chat.tools import Tool, ToolBox, ToolError, ToolEventHandler, tool_from_function
from gemma_edge.runtime.kv.waiting import InLoop


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


def bare(a, b: Sequence[int], c: object, *, d: list[str] = ()):  # type: ignore[no-untyped-def,assignment]
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
    assert theirs["function"]["description"] == "Gets the weather."
    assert ours["function"].pop("description") == "Gets the weather.\nMore about it."
    del theirs["function"]["description"]
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
        """Adds."""
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


class Colour(enum.Enum):
    RED = "r"


@dataclasses.dataclass
class Booking:
    at: datetime.date
    seats: set[int]


class Model(pydantic.BaseModel):
    at: datetime.date


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
        (decimal.Decimal("1.10"), "1.10"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset(["b", "a"]), ["a", "b"]),
        (Booking(datetime.date(2026, 1, 2), {4}), {"at": "2026-01-02", "seats": [4]}),
        (Model(at=datetime.date(2026, 1, 2)), {"at": "2026-01-02"}),
        ([Colour.RED, {Colour.RED: 1, (1, 2): 2}], ["r", {"Colour.RED": 1, "(1, 2)": 2}]),
        (float("nan"), "nan"),
        (range(3), [0, 1, 2]),
        ((number * 2 for number in (1, 2)), [2, 4]),
        (zip("ab", (1, 2), strict=True), [["a", 1], ["b", 2]]),
        ({"b": 1, "a": 2}.items(), [["b", 1], ["a", 2]]),
        (itertools.count(), [*range(1000), "more than 1000 results"]),
        ({"x": float("inf")}, {"x": "inf"}),
        (b"text", "text"),
        (b"\xff\x00", "/wA="),
        (np.float32(1.5), 1.5),
        (np.arange(3), [0, 1, 2]),
        ({True: 1, None: 2}, {"true": 1, "null": 2}),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        ({"a": 1}.keys(), ["a"]),
        (ValueError("broken"), "broken"),
        (CIRCLE, "Error: nested more than 100 deep"),
    ],
)
def test_a_result_that_is_no_json_is_told_all_the_same(result: Any, told: Any) -> None:
    """Its work is done: to refuse it would have the model do it again."""
    assert ToolBox([returning(result)]).answer([call("tell")]) == [answer("tell", told)]


def returning(result: Any) -> Callable[[], Any]:
    def tell() -> Any:
        return result

    return tell


class Shop:
    """A shop."""

    def __call__(self, item: str) -> str:
        """Tells a price."""
        return f"price of {item}"


def two(first: int, second: int = 2, /, *rest: int, third: int = 3, **more: int) -> list[Any]:
    return [first, second, rest, third, more]


@pytest.mark.parametrize(
    ("tool", "name", "text", "parameters", "required", "arguments", "result"),
    [
        (Shop(), "Shop", "Tells a price.", ["item"], ["item"], {"item": "tea"}, "price of tea"),
        (Shop().__call__, "__call__", "Tells a price.", ["item"], ["item"], {"item": "tea"}, "price of tea"),
        (functools.partial(two, 5), "two", "", ["second", "third"], [], {"third": 1}, [5, 2, [], 1, {}]),
        (functools.partial(bare, 1, c=2), "bare", "", ["b", "c", "d"], ["b"], {"b": []}, [1, [], 2, []]),
        (two, "two", "", ["first", "second", "third"], ["first"], {"first": 1, "x": 4}, [1, 2, [], 3, {"x": 4}]),
        (len, "len", "Return the number of items in a container.", ["obj"], ["obj"], {"obj": "abc"}, 3),
        (Add.execute.__get__(Add()), "execute", "Adds.", ["param"], ["param"], {"param": {"a": 1, "b": 2}}, 3),
    ],
)
def test_tools_that_are_no_plain_functions(
    tool: Callable[..., Any],
    name: str,
    text: str,
    parameters: list[str],
    required: list[str],
    arguments: dict[str, Any],
    result: Any,
) -> None:
    tools = ToolBox([tool])
    function = tools.descriptions[0]["function"]
    assert (function["name"], function["description"]) == (name, text)
    assert list(function["parameters"]["properties"]) == parameters
    assert function["parameters"]["required"] == required
    assert tools.answer([call(name, **arguments)]) == [answer(name, result)]


def test_what_is_no_tool() -> None:
    with pytest.raises(ToolError) as caught:
        ToolBox([lambda x: x])
    assert str(caught.value) == "a tool is a lambda, expected a function with a name to call it by; write it with def"
    with pytest.raises(ToolError) as caught:
        ToolBox([no_arguments, no_arguments])
    assert str(caught.value) == "two tools are called no_arguments, the model could not choose; rename one"
    with pytest.raises(ToolError, match=r"^<built-in function iter> does not tell its parameters \(.*\); wrap it in a"):
        ToolBox([iter])


async def later(item: str) -> str:
    await asyncio.sleep(0)
    return item * 2


class Later(Add):
    async def execute(self, param: Mapping[str, Any]) -> Any:
        return await later(param["item"])


@pytest.mark.parametrize("tool", [later, functools.partial(later), Later()])
def test_async_tools(tool: Any) -> None:
    tools = ToolBox([tool])
    name = tools.descriptions[0]["function"]["name"]
    wanted = [answer(name, "aa")]
    assert tools.answer([call(name, item="a")]) == wanted

    async def within_a_loop() -> None:
        assert tools.answer([call(name, item="a")]) == wanted

    asyncio.run(within_a_loop())


def test_an_async_tool_runs_in_the_loop_that_waits_for_it() -> None:
    """Where its sessions and locks belong."""

    async def serve() -> None:
        lock = asyncio.Lock()
        await lock.acquire()
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, lock.release)

        async def waits() -> bool:
            async with lock:
                return asyncio.get_running_loop() is loop

        tools = ToolBox([waits])
        answers = await InLoop().call(lambda: tools.answer([call("waits")]))
        assert answers == [answer("waits", True)]

    asyncio.run(serve())


def test_a_tool_without_a_name() -> None:
    class Nameless(Add):
        def get_tool_description(self) -> dict[str, Any]:
            return {"name": "add"}

    with pytest.raises(ToolError) as caught:
        ToolBox([Nameless()])
    assert str(caught.value) == (
        "the description of Nameless has no ['function']['name'], found {'name': 'add'}; add one"
    )
