"""What a tool returned, as JSON: the model reads nothing else."""

import base64
import dataclasses
import datetime
import enum
import json
import math
from collections import deque
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Set, ValuesView
from itertools import islice
from typing import Any

_MOST_LEVELS = 100  # a result that contains itself would have no end
_MOST_ITEMS = 1000


def json_result(result: Any, _level: int = 0) -> Any:
    """The result in JSON's types: what json.dumps writes as it writes it; dates, sets, dataclasses and others beside.

    A tool has done its work when it returns. What JSON has no form for is therefore told as text, not refused. A set is
    put in order, so that the same result gives the same prompt. Raises ValueError: nested more than 100 deep.
    """
    if _level > _MOST_LEVELS:
        raise ValueError(f"nested more than {_MOST_LEVELS} deep")

    def within(value: Any) -> Any:
        return json_result(value, _level + 1)

    match result:
        case enum.Enum():
            return within(result.value)
        case None | bool() | int() | str():
            return result
        case float():
            return result if math.isfinite(result) else str(result)
        case Mapping():
            return {_key(key): within(value) for key, value in result.items()}
        case Set() if not isinstance(result, KeysView | ItemsView):
            return [within(value) for value in sorted(result, key=lambda value: (type(value).__name__, str(value)))]
        case list() | tuple() | deque() | range() | KeysView() | ValuesView() | ItemsView():
            return [within(value) for value in result]
        case Iterator():  # a generator, which may have no end
            first = [within(value) for value in islice(result, _MOST_ITEMS)]
            return [*first, *(f"more than {_MOST_ITEMS} results" for _ in islice(result, 1))]
        case bytes() | bytearray():
            return _text(bytes(result))
        case datetime.date() | datetime.time():  # a datetime is a date
            return result.isoformat()
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {field.name: within(getattr(result, field.name)) for field in dataclasses.fields(result)}
    if hasattr(result, "model_dump") and not isinstance(result, type):  # pydantic
        return within(result.model_dump(mode="json"))
    if hasattr(result, "tolist"):  # numpy
        return within(result.tolist())
    return str(result)


def _key(key: Any) -> str:
    """A key as json.dumps writes it, where it does."""
    if isinstance(key, str):
        return str(key.value) if isinstance(key, enum.Enum) else key
    return json.dumps(key) if key is None or isinstance(key, bool | int | float) else str(key)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()
