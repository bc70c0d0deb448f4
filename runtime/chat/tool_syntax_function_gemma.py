"""FunctionGemma's notation: `declaration:get_weather{...}` in, `call:get_weather{city:<escape>Paris<escape>}` out."""

import json
from collections.abc import Mapping
from typing import Any

from gemma_edge.runtime.chat.tool_syntax import Call, Scanner, ToolSyntax

_ESCAPE = "<escape>"  # around text, which may hold anything but this
_NAME = r"[\w.\-]+"
_CONSTANTS = {"true": True, "false": False, "null": None}


def _declare(tool: Mapping[str, Any]) -> str:
    function = dict(tool.get("function", tool))
    name = function.pop("name")
    return f"declaration:{name}{_value(_upper_types(function))}"


def _upper_types(value: Any) -> Any:
    """The schema with its types in capitals, as FunctionGemma was trained on them."""
    if isinstance(value, Mapping):
        return {
            key: item.upper() if key == "type" and isinstance(item, str) else _upper_types(item)
            for key, item in value.items()
        }
    return [_upper_types(item) for item in value] if isinstance(value, list) else value


def _value(value: Any) -> str:
    match value:
        case str():
            return f"{_ESCAPE}{value}{_ESCAPE}"
        case list() | tuple():
            return f"[{','.join(map(_value, value))}]"
        case Mapping():
            return "{" + ",".join(f"{key}:{_value(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def _response(part: Mapping[str, Any]) -> str:
    response = dict(part.get("tool_response", part) if isinstance(part.get("tool_response"), Mapping) else part)
    name = response.get("name", response.get("tool_name"))
    if not isinstance(name, str):
        return _value(response)
    for key in ("response", "value"):
        if isinstance(response.get(key), Mapping):
            return name + _value(response[key])
    return name + _value({key: item for key, item in response.items() if key not in ("name", "tool_name")})


def _parse(text: str) -> list[Call]:
    scanner = Scanner(text)
    calls: list[Call] = []
    while not scanner.at_end():
        scanner.expect("call:")
        name = scanner.expect(_NAME)
        calls.append(Call(name, _object(scanner) if scanner.take(r"\{") is not None else {}))
    return calls


def _object(scanner: Scanner) -> dict[str, Any]:
    values: dict[str, Any] = {}

    def entry() -> None:
        key = scanner.expect(_NAME)
        scanner.expect(":")
        values.setdefault(key, _literal(scanner))  # of two the first counts, as in LiteRT-LM

    scanner.items(r"\}", entry, trailing_comma=False)
    return values


def _literal(scanner: Scanner) -> Any:
    text = scanner.take(f"{_ESCAPE}.*?{_ESCAPE}")
    if text is not None:
        return text.removeprefix(_ESCAPE).removesuffix(_ESCAPE)
    number = scanner.number()
    if number is not None:
        return number
    if scanner.take(r"\[") is not None:
        values: list[Any] = []
        scanner.items(r"\]", lambda: values.append(_literal(scanner)), trailing_comma=False)
        return values
    if scanner.take(r"\{") is not None:
        return _object(scanner)
    return _CONSTANTS[scanner.expect("true|false|null")]


FUNCTION_GEMMA_SYNTAX = ToolSyntax("<start_function_call>", "<end_function_call>", _declare, _value, _response, _parse)
