"""Gemma 3's and 3n's notation: `def get_weather(city: str) -> dict:` in, `get_weather(city="Paris")` in a fence out."""

import json
from collections.abc import Mapping
from typing import Any

from gemma_edge.runtime.chat.tool_syntax import Call, Scanner, ToolSyntax, ToolSyntaxError

_TYPES = {"boolean": "bool", "integer": "int", "number": "float", "string": "str", "object": "dict"}
_CONSTANTS = {"True": True, "False": False, "None": None}
_CLASS_KEY = "__type__"  # where LiteRT-LM keeps the name of a constructor call used as a value


def _declare(tool: Mapping[str, Any]) -> str:
    function = tool.get("function", tool)
    parameters = function.get("parameters", {})
    properties = parameters.get("properties")
    lines = ""
    if properties is not None:
        required = set(parameters.get("required", ()))
        lines = "\n" + "\n".join(f"    {k}: {_type(v, k in required)}," for k, v in properties.items()) + "\n"
    return f"def {function['name']}({lines}) -> dict:\n{_docstring(function)}"


def _type(schema: Mapping[str, Any], required: bool) -> str:
    kind = schema.get("type", "")
    if kind == "array":
        items = schema.get("items")
        name = f"list[{_type(items, required=True)}]" if isinstance(items, Mapping) else "list[Any]"
    else:
        name = _TYPES.get(kind, "Any")
    return name if required else f"{name} | None = None"


def _docstring(function: Mapping[str, Any]) -> str:
    text = f"{function['description']}\n" if "description" in function else ""
    properties = function.get("parameters", {}).get("properties")
    if properties is not None:
        text += "\n  Args:\n"
        for name, schema in properties.items():
            # Without a description LiteRT-LM ends no line here; the model was served such prompts, so they stay.
            text += f"    {name}: {schema['description']}\n" if "description" in schema else f"    {name}"
    return f'  """{text}  """\n' if text else ""


def _value(value: Any) -> str:
    match value:
        case None:
            return "None"
        case bool():
            return "True" if value else "False"
        case str():
            return f'"{value}"'  # LiteRT-LM escapes nothing, here and when it parses
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case {"type": str(name), **arguments}:
            return f"{name}({', '.join(f'{key}={_value(item)}' for key, item in arguments.items())})"
        case Mapping():
            return "{" + ", ".join(f'"{key}": {_value(item)}' for key, item in value.items()) + "}"
    return json.dumps(value)


def _response(part: Mapping[str, Any]) -> str:
    return _value(part.get("tool_response", part.get("response", part)))


def _parse(text: str) -> list[Call]:
    scanner = Scanner(text, blank=r"\s*")
    calls: list[Call] = []
    while not scanner.at_end():
        if scanner.take(r"\[") is not None:
            scanner.items(r"\]", lambda: calls.append(_call(scanner)), trailing_comma=True)
        else:
            calls.append(_call(scanner))
        scanner.take(";")
    return calls


def _call(scanner: Scanner) -> Call:
    name = scanner.expect(r"[^\W\d][\w.]*")
    scanner.expect(r"\(")
    if name == "print":  # print(call()) is what a model trained on notebooks writes
        call = _call(scanner)
        scanner.expect(r"\)")
        return call
    return Call(name, _arguments(scanner))


def _arguments(scanner: Scanner) -> dict[str, Any]:
    arguments: dict[str, Any] = {}

    def argument() -> None:
        key = scanner.expect(r"[^\W\d]\w*")
        scanner.expect("=")
        if key in arguments:
            raise ToolSyntaxError(f"argument {key!r} is given twice")
        arguments[key] = _literal(scanner)

    scanner.items(r"\)", argument, trailing_comma=True)
    return arguments


def _literal(scanner: Scanner) -> Any:
    quoted = scanner.take(r'"(\\.|[^"\\])*"|' + r"'(\\.|[^'\\])*'")
    if quoted is not None:
        return quoted[1:-1]
    number = scanner.number()
    if number is not None:
        return number
    if scanner.take(r"\[") is not None:
        values: list[Any] = []
        scanner.items(r"\]", lambda: values.append(_literal(scanner)), trailing_comma=True)
        return values
    if scanner.take(r"\{") is not None:
        return _dictionary(scanner)
    name = scanner.expect(r"[^\W\d][\w.]*")
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    scanner.expect(r"\(")
    return {_CLASS_KEY: name, **_arguments(scanner)}


def _dictionary(scanner: Scanner) -> dict[str, Any]:
    values: dict[str, Any] = {}

    def entry() -> None:
        key = _literal(scanner)
        if not isinstance(key, str):
            raise ToolSyntaxError(f"dictionary key {key!r} is not text")
        scanner.expect(":")
        values[key] = _literal(scanner)

    scanner.items(r"\}", entry, trailing_comma=True)
    return values


PYTHON_SYNTAX = ToolSyntax("```tool_code\n", "\n```", _declare, _value, _response, _parse)
