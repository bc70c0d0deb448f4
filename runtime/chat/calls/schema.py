"""From Python annotations to JSON schema, and from JSON back to what an annotation promises.

litert_lm knows int, float, bool, str and lists; everything else it calls a string. Here a function gets what it says it
takes: a member of its Enum, its dataclass, a date.
"""

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import inspect
import pathlib
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Any

Schema = dict[str, Any]

_SIMPLE: Mapping[Any, str] = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}
_ARRAYS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Set,
           collections.abc.Collection, collections.abc.MutableSequence)  # fmt: skip
_OBJECTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_WRITTEN: Mapping[Any, tuple[Schema, Callable[[Any], Any]]] = {
    datetime.datetime: ({"type": "string", "format": "date-time"}, datetime.datetime.fromisoformat),
    datetime.date: ({"type": "string", "format": "date"}, datetime.date.fromisoformat),
    datetime.time: ({"type": "string", "format": "time"}, datetime.time.fromisoformat),
    uuid.UUID: ({"type": "string", "format": "uuid"}, uuid.UUID),
    decimal.Decimal: ({"type": "number"}, lambda value: decimal.Decimal(str(value))),
    pathlib.Path: ({"type": "string"}, pathlib.Path),
}
_CONSTRUCTOR = "__type__"  # where LiteRT-LM keeps the name of a constructor that a call's value was written with


def schema_of(annotation: Any, _within: tuple[Any, ...] = ()) -> Schema:
    """The JSON schema of an annotation; a string where there is none, or none of a known kind, as in litert_lm."""
    annotation, description = _plain(annotation)
    if not _is_hashable(annotation):
        return {"type": "string"}
    schema = {"type": "object"} if annotation in _within else _schema(annotation, (*_within, annotation))
    return {**schema, "description": description} if description else schema


def _schema(annotation: Any, within: tuple[Any, ...]) -> Schema:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    kind = origin or annotation
    if annotation is Any:
        return {}
    if annotation in _SIMPLE:
        return {"type": _SIMPLE[annotation]}
    if annotation in _WRITTEN:
        return dict(_WRITTEN[annotation][0])
    if origin in (typing.Union, types.UnionType):
        known = [argument for argument in arguments if argument is not type(None)]
        return schema_of(known[0], within) if len(known) == 1 else {"anyOf": [schema_of(a, within) for a in known]}
    if origin is typing.Literal:
        return _choice(list(arguments))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _choice([_shown(member) for member in annotation])
    if hasattr(annotation, "model_json_schema"):
        return {**annotation.model_json_schema()}
    if (fields := _fields(annotation)) is not None:
        properties = {name: schema_of(field, within) for name, (field, _) in fields.items()}
        required = [name for name, (_, is_required) in fields.items() if is_required]
        return {"type": "object", "properties": properties, "required": required}
    if kind in _ARRAYS:
        items = [argument for argument in arguments if argument is not ...]
        return {"type": "array", **({"items": schema_of(items[0], within)} if len(items) == 1 else {})}
    if kind in _OBJECTS:
        values = schema_of(arguments[1], within) if len(arguments) == 2 else {}
        return {"type": "object", **({"additionalProperties": values} if values else {})}
    return {"type": "string"}


def value_of(annotation: Any, value: Any) -> Any:
    """A JSON value as the annotation promises it. Raises ValueError or TypeError where it is none of the kind.

    Numbers, text and what is not described stay as they are: the function itself knows best what it takes.
    """
    annotation, _ = _plain(annotation)
    if not _is_hashable(annotation):
        return value
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    kind = origin or annotation
    if annotation in _WRITTEN:
        return value if value is None else _WRITTEN[annotation][1](value)
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, value)
    if origin is typing.Literal:
        return _chosen({argument: argument for argument in arguments}, value)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        by_name = {member.name: member for member in annotation}
        return by_name.get(value) or _chosen({_shown(member): member for member in annotation}, value)
    if hasattr(annotation, "model_validate"):
        return annotation.model_validate(_fields_only(value))
    fields = _fields(annotation)
    if fields is not None and isinstance(value, Mapping):
        given = {n: value_of(fields[n][0], v) if n in fields else v for n, v in _fields_only(value).items()}
        return annotation(**given)
    if kind in _ARRAYS and isinstance(value, list):
        inner = arguments[0] if len(set(arguments) - {...}) == 1 else Any
        items = [value_of(inner, item) for item in value]
        return kind(items) if kind in (tuple, set, frozenset) else items
    if kind in _OBJECTS and isinstance(value, Mapping) and len(arguments) == 2:
        return {key: value_of(arguments[1], item) for key, item in value.items()}
    return value


def _plain(annotation: Any) -> tuple[Any, str]:
    """What stands inside Annotated, NewType and `type` aliases, and what Annotated says about it."""
    description = ""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            notes = annotation.__metadata__
            said = [note if isinstance(note, str) else getattr(note, "description", None) for note in notes]
            description = description or next((text for text in said if isinstance(text, str)), "")
            annotation = annotation.__origin__
        elif typing.get_origin(annotation) in (typing.Required, typing.NotRequired):  # of a TypedDict's field
            annotation = typing.get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":  # Python 3.12
            annotation = annotation.__value__
        elif annotation in (typing.List, typing.Dict, typing.Tuple, typing.Set):  # noqa: UP006  bare, as people write them
            annotation = typing.get_origin(annotation)
        else:
            return annotation, description


def _is_hashable(annotation: Any) -> bool:
    """What is none is no type either: some write what they please as an annotation."""
    try:
        hash(annotation)
    except TypeError:
        return False
    return True


def _fields(annotation: Any) -> dict[str, tuple[Any, bool]] | None:
    """The fields of a dataclass, TypedDict or NamedTuple: annotation, and whether it must be given."""
    if not isinstance(annotation, type):
        return None
    hints = _hints(annotation)
    if dataclasses.is_dataclass(annotation):
        missing = dataclasses.MISSING
        return {
            field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
            for field in dataclasses.fields(annotation)
            if field.init
        }
    if typing.is_typeddict(annotation):
        required: frozenset[str] = annotation.__required_keys__  # type: ignore[attr-defined]  # of typing's own class
        return {name: (hint, name in required) for name, hint in hints.items()}
    if issubclass(annotation, tuple) and hasattr(annotation, "_field_defaults"):
        return {name: (hint, name not in annotation._field_defaults) for name, hint in hints.items()}
    return None


def _hints(annotation: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(annotation, include_extras=True)
    except NameError:
        return inspect.get_annotations(annotation)


def _choice(values: list[Any]) -> Schema:
    """One of several values, which are said twice: prompts in LiteRT-LM's form show only type and description."""
    kinds = {_SIMPLE.get(type(value)) for value in values}
    kind = {"type": kinds.pop()} if len(kinds) == 1 else {}
    return {**kind, "enum": values, "description": f"One of {', '.join(map(repr, values))}."}


def _shown(member: enum.Enum) -> Any:
    return member.value if type(member.value) in _SIMPLE else member.name


def _chosen(choices: Mapping[Any, Any], value: Any) -> Any:
    for shown, choice in choices.items():
        if shown == value and type(shown) is type(value):
            return choice
    raise ValueError(f"{value!r} is none of {', '.join(map(repr, choices))}")


def _one_of(annotations: tuple[Any, ...], value: Any) -> Any:
    """The first of a Union that takes the value; a plain type that it already has wins."""
    if any(annotation in _SIMPLE and type(value) is annotation for annotation in annotations):
        return value
    errors = []
    for annotation in annotations:
        if annotation not in _SIMPLE:
            try:
                return value_of(annotation, value)
            except (ValueError, TypeError) as error:
                errors.append(error)
    if errors and all(annotation not in _SIMPLE or annotation is type(None) for annotation in annotations):
        raise errors[0]
    return value


def _fields_only(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != _CONSTRUCTOR} if isinstance(value, Mapping) else value
