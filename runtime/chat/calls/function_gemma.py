"""FunctionGemma's notation: `declaration:get_weather{...}` in, `call:get_weather{city:<escape>Paris<escape>}` out."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from gemma_edge.runtime.chat.calls.syntax import Call, ToolSyntax, ToolSyntaxError

_ESCAPE = "<escape>"  # around text, which may hold anything but this
_QUOTED = rf"""{_ESCAPE}.*?{_ESCAPE}|<\|"\|>.*?<\|"\|>"""  # Gemma 4 writes the latter; LiteRT-LM reads both in both
_QUOTES = re.compile(rf"""^(?:{_ESCAPE}|<\|"\|>)|(?:{_ESCAPE}|<\|"\|>)$""")
_NAME = r"[\w.\-]+"
_EXPECTED = {"call:": "call:NAME{...}", _NAME: "a name", r"\}": "a closing brace", r"\]": "a closing bracket"}
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


class _Scanner:
    """A text and a place in it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def take(self, pattern: str) -> str | None:
        """What matches here, after blanks; None and no move where nothing does."""
        match = re.compile(rf"\s*(?:{pattern})", re.DOTALL).match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        return match[0].lstrip()

    def expect(self, pattern: str) -> str:
        """As `take`, but something must match."""
        found = self.take(pattern)
        if found is None:
            raise ToolSyntaxError(f"at {self._text[self._at :][:20]!r}: {_EXPECTED.get(pattern, pattern)} expected")
        return found

    def at_end(self) -> bool:
        return self.take(r"\Z") is not None

    def items(self, close: str, item: Callable[[], None]) -> None:
        """Comma-separated items up to `close`."""
        if self.take(close) is not None:
            return
        while True:
            item()
            if self.take(close) is not None:
                return
            self.expect(",")

    def number(self) -> int | float | None:
        found = self.take(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
        if found is None:
            return None
        return int(found) if re.fullmatch(r"[+-]?\d+", found) else float(found)


def _parse(text: str) -> list[Call]:
    scanner = _Scanner(text)
    calls: list[Call] = []
    while not scanner.at_end():
        scanner.expect("call:")
        name = scanner.expect(_NAME)
        calls.append(Call(name, _object(scanner) if scanner.take(r"\{") is not None else {}))
    return calls


def _object(scanner: _Scanner) -> dict[str, Any]:
    values: dict[str, Any] = {}

    def entry() -> None:
        key = scanner.expect(_NAME)
        scanner.expect(":")
        values.setdefault(key, _literal(scanner))  # of two the first counts, as in LiteRT-LM

    scanner.items(r"\}", entry)
    return values


def _literal(scanner: _Scanner) -> Any:
    text = scanner.take(_QUOTED)
    if text is not None:
        return _QUOTES.sub("", text)
    number = scanner.number()
    if number is not None:
        return number
    if scanner.take(r"\[") is not None:
        values: list[Any] = []
        scanner.items(r"\]", lambda: values.append(_literal(scanner)))
        return values
    if scanner.take(r"\{") is not None:
        return _object(scanner)
    return _CONSTANTS[scanner.expect("true|false|null")]


FUNCTION_GEMMA_SYNTAX = ToolSyntax(
    "<start_function_call>", "<end_function_call>", False, _declare, _value, _response, _parse
)
