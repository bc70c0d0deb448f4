"""Annotations of tools: what the model is told of them, and what the function then gets."""

import dataclasses
import datetime
import decimal
import enum
import pathlib
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict, Union

import pydantic
import pytest

from gemma_edge.runtime.chat.calls.docstring import docstring_of
from gemma_edge.runtime.chat.calls.schema import schema_of, value_of
from gemma_edge.runtime.chat.tools import ToolBox

Celsius = NewType("Celsius", float)


class Unit(enum.Enum):
    C = "c"
    F = "f"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Shape(enum.Enum):
    ROUND = (1, 2)
    FLAT = (3, 4)


@dataclasses.dataclass
class Place:
    city: str
    unit: Unit = Unit.C
    inner: "Place | None" = None


class Options(TypedDict, total=False):
    days: typing.Required[int]
    tags: list[str]


class Point(NamedTuple):
    x: int
    y: int = 0


class Model(pydantic.BaseModel):
    days: int = pydantic.Field(description="How many.")
    at: datetime.date


SCHEMAS: list[tuple[Any, dict[str, Any]]] = [
    (Literal["c", "f"], {"type": "string", "enum": ["c", "f"], "description": "One of 'c', 'f'."}),
    (Literal[1, "a"], {"enum": [1, "a"], "description": "One of 1, 'a'."}),
    (Unit, {"type": "string", "enum": ["c", "f"], "description": "One of 'c', 'f'."}),
    (Level, {"type": "integer", "enum": [1, 2], "description": "One of 1, 2."}),
    (Shape, {"type": "string", "enum": ["ROUND", "FLAT"], "description": "One of 'ROUND', 'FLAT'."}),
    (Annotated[int, "how many"], {"type": "integer", "description": "how many"}),
    (Annotated[int, pydantic.Field(description="how many")], {"type": "integer", "description": "how many"}),
    (dict, {"type": "object"}),
    (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
    (Mapping[str, Any], {"type": "object"}),
    (typing.Dict, {"type": "object"}),  # noqa: UP006
    (list, {"type": "array"}),
    (typing.List, {"type": "array"}),  # noqa: UP006
    (typing.List[int], {"type": "array", "items": {"type": "integer"}}),  # noqa: UP006
    (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
    (tuple[int, str], {"type": "array"}),
    (set[str], {"type": "array", "items": {"type": "string"}}),
    (Sequence[Sequence[float]], {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
    (Optional[int], {"type": "integer"}),  # noqa: UP045  as people write it
    (int | None, {"type": "integer"}),
    (Union[int, str, None], {"anyOf": [{"type": "integer"}, {"type": "string"}]}),  # noqa: UP007
    (None, {"type": "string"}),
    (Any, {}),
    (Celsius, {"type": "number"}),
    (datetime.date, {"type": "string", "format": "date"}),
    (datetime.datetime, {"type": "string", "format": "date-time"}),
    (decimal.Decimal, {"type": "number"}),
    (pathlib.Path, {"type": "string"}),
    (complex, {"type": "string"}),
    ("Unknown", {"type": "string"}),
    ({"unhashable": 1}, {"type": "string"}),
    (Point, {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}, "required": ["x"]}),
    (
        Options,
        {
            "type": "object",
            "properties": {"days": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
            "required": ["days"],
        },
    ),
    (
        Place,
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["c", "f"], "description": "One of 'c', 'f'."},
                "inner": {"type": "object"},  # itself
            },
            "required": ["city"],
        },
    ),
    (Model, Model.model_json_schema()),
]


@pytest.mark.parametrize(("annotation", "schema"), SCHEMAS, ids=[str(annotation) for annotation, _ in SCHEMAS])
def test_schemas(annotation: Any, schema: dict[str, Any]) -> None:
    assert schema_of(annotation) == schema


@pytest.mark.parametrize(
    ("annotation", "given", "value"),
    [
        (Unit, "f", Unit.F),
        (Unit, "F", Unit.F),  # by name, as Unit.F in a call comes
        (Level, 2, Level.HIGH),
        (Shape, "FLAT", Shape.FLAT),
        (Literal["c", 1], 1, 1),
        (Optional[Unit], None, None),  # noqa: UP045
        (Optional[Unit], "c", Unit.C),  # noqa: UP045
        (int | Unit, 3, 3),
        (str | Unit, "x", "x"),
        (list[Unit], ["c", "f"], [Unit.C, Unit.F]),
        (set[int], [1, 2, 2], {1, 2}),
        (tuple[Unit, ...], ["c"], (Unit.C,)),
        (dict[str, Unit], {"a": "c"}, {"a": Unit.C}),
        (Annotated[Unit, "x"], "c", Unit.C),
        (Place, {"city": "Bath", "unit": "f"}, Place("Bath", Unit.F)),
        (Place, {"__type__": "Place", "city": "B", "inner": {"city": "A"}}, Place("B", inner=Place("A"))),
        (Point, {"x": 1}, Point(1)),
        (Options, {"days": 1}, {"days": 1}),
        (Model, {"days": 1, "at": "2026-01-02"}, Model(days=1, at=datetime.date(2026, 1, 2))),
        (datetime.date, "2026-01-02", datetime.date(2026, 1, 2)),
        (datetime.time, "03:04", datetime.time(3, 4)),
        (decimal.Decimal, 1.1, decimal.Decimal("1.1")),
        (uuid.UUID, "0" * 31 + "5", uuid.UUID(int=5)),
        (pathlib.Path, "/a", pathlib.Path("/a")),
        (int, "3", "3"),
        (Any, {"a": 1}, {"a": 1}),
    ],
)
def test_values(annotation: Any, given: Any, value: Any) -> None:
    found = value_of(annotation, given)
    assert found == value
    assert type(found) is type(value)


def weather(unit: Unit, on: datetime.date, kind: Literal["rain", "sun"] = "sun", where: Place | None = None) -> str:
    return f"{unit.name} {on.year} {kind} {where and where.city}"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"unit": "c", "on": "2026-01-02"}, "C 2026 sun None"),
        ({"unit": "c", "on": "2026-01-02", "where": {"city": "Bath"}}, "C 2026 sun Bath"),
        ({"unit": "k", "on": "2026-01-02"}, "Error: argument unit: 'k' is none of 'c', 'f'"),
        ({"unit": "c", "on": "2026-01-02", "kind": "x"}, "Error: argument kind: 'x' is none of 'rain', 'sun'"),
        ({"unit": "c", "on": "soon"}, "Error: argument on: Invalid isoformat string: 'soon'"),
        ({"unit": "c"}, "Error: weather() missing 1 required positional argument: 'on'"),
        (
            {"unit": "c", "on": "2026-01-02", "x": 1},
            "Error: weather() got an unexpected keyword argument 'x'",
        ),
    ],
)
def test_the_model_is_told_what_was_wrong_with_its_arguments(arguments: dict[str, Any], told: str) -> None:
    call = {"function": {"name": "weather", "arguments": arguments}}
    assert ToolBox([weather]).answer([call])[0]["content"][0]["response"] == told


def google() -> None:
    """Does this
    and that, at length.

    And more.

    Args:
        x: The x,
            continued.
        *rest: More of them.
        y (int): The y: with a colon.

    Returns:
        z: nothing
    """


def sphinx() -> None:
    """Does this.

    :param x: The x,
        continued.
    :param int y: The y.
    :returns: nothing
    """


def numpy() -> None:
    """Does this.

    Parameters
    ----------
    x : int
    """


def prose() -> None:
    """Note: this is text. Returns: nothing special.
    Args are few."""


@pytest.mark.parametrize(
    ("function", "text", "parameters"),
    [
        (
            google,
            "Does this and that, at length.\nAnd more.",
            {"x": "The x, continued.", "rest": "More of them.", "y": "The y: with a colon."},
        ),
        (sphinx, "Does this.", {"x": "The x, continued.", "y": "The y."}),
        (numpy, "Does this.", {}),
        (prose, "Note: this is text. Returns: nothing special. Args are few.", {}),
    ],
)
def test_docstrings(function: Callable[..., Any], text: str, parameters: dict[str, str]) -> None:
    found = docstring_of(function)
    assert (found.text, found.parameters) == (text, parameters)
