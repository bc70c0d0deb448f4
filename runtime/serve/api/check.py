"""Bodies read with care: bounded in size, depth and number of values, and checked against a schema."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

from gemma_edge.runtime.serve.api.schemas import Schema
from gemma_edge.runtime.serve.errors import Code, RefusedError

MOST_VALUES = 200_000
"""Of one body. Each takes 60 bytes and more, however few it has in the text."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def parsed(body: bytes, most_levels: int) -> dict[str, Any]:
    """A JSON object. Raises RefusedError: no JSON, no object, nested too deep, too many values, a key twice."""
    if sum(map(body.count, (b",", b":", b"[", b"{"))) > MOST_VALUES:
        raise RefusedError(413, Code.TOO_LARGE, f"the body has more than {MOST_VALUES} values; send fewer")
    try:
        value = json.loads(body.decode(), object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_number)
    except RefusedError:
        raise
    except RecursionError:
        raise _bad(f"the body is nested too deep, at most {most_levels} levels are read") from None
    except UnicodeDecodeError as error:
        raise _bad(f"the body is no UTF-8 (byte {error.start}); encode it") from None
    except ValueError as error:
        raise _bad(f"the body is no JSON ({error}); send a JSON object") from None
    if not isinstance(value, dict):
        raise _bad(f"the body is a JSON {type(value).__name__}, expected an object")
    _check_levels(value, most_levels)
    return value


def _check_levels(value: Any, most: int) -> None:
    level = [value]
    for _ in range(most):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str) and (found := _SURROGATE.search(item)):
                raise _bad(f"a text has {found[0]!r}, which is half a character; send whole ones")
            if isinstance(item, dict):
                below += item
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    raise _bad(f"the body is nested too deep, at most {most} levels are read")


def _bad(message: str) -> RefusedError:
    return RefusedError(400, Code.VALIDATION_ERROR, message)


def _pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _bad(f"the body has {twice[:60]!r} twice in one object; send it once")
    return found


def _number(text: str) -> int | float:
    """2.0 is 2 to JSON, and a number of tokens may come so."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return int(value) if value.is_integer() and abs(value) < 1 << 53 else value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


class Checker:
    """Checks requests of one kind."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def checked(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The request without what is null, which says what leaving it out says; within messages and options, too.

        Raises RefusedError: a parameter that is not known, or has another type or value than it may.
        """
        request: dict[str, Any] = _without_null(body, self._schema)
        unknown = next((name for name in request if name not in self._schema["properties"]), None)
        if unknown is not None:
            raise RefusedError(
                400,
                Code.UNSUPPORTED_PARAMETER,
                f"{unknown[:60]!r} is not supported here, and would not be honoured; leave it out",
                param=unknown[:60],
            )
        import jsonschema

        error = jsonschema.exceptions.best_match(self._validator.iter_errors(request))
        if error is not None:
            where = _path(error.absolute_path)
            message = error.message if len(error.message) <= 200 else error.message[:197] + "..."
            text = f"{where or 'the body'}: {message}"
            raise RefusedError(422, Code.VALIDATION_ERROR, text, param=where or None)
        return request

    @cached_property
    def _validator(self) -> Any:
        import jsonschema

        return jsonschema.Draft202012Validator(self._schema)


def _without_null(value: Any, schema: Schema) -> Any:
    """Of objects whose keys are all listed; a JSON schema, which may have any, stays as it is."""
    schemas = schema.get("anyOf", [schema])
    if isinstance(value, list):
        items: Schema = next((found["items"] for found in schemas if "items" in found), {})
        return [_without_null(item, items) for item in value]
    listed = next((found["properties"] for found in schemas if found.get("additionalProperties") is False), None)
    if not isinstance(value, Mapping) or listed is None:
        return value
    return {name: _without_null(item, listed.get(name, {})) for name, item in value.items() if item is not None}


def _path(parts: Iterable[str | int]) -> str:
    """messages[0].content"""
    found = ""
    for part in parts:
        found += f"[{part}]" if isinstance(part, int) else f".{part}" if found else part
    return found[:120]
