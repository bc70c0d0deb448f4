"""Gemma 3's and 3n's notation: `def get_weather(city: str) -> dict:` in, `get_weather(city="Paris")` in a fence out."""

import json
from collections.abc import Mapping
from typing import Any

from gemma_edge.runtime.chat.calls.python_calls import python_calls
from gemma_edge.runtime.chat.calls.syntax import ToolSyntax

_TYPES = {"boolean": "bool", "integer": "int", "null": "None", "number": "float", "string": "str", "object": "dict"}


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
    if isinstance(kind, list):  # of several types, null among them for instance
        name = " | ".join(dict.fromkeys(_type({**schema, "type": one}, required=True) for one in kind)) or "Any"
    elif not isinstance(kind, str):
        name = "Any"
    elif kind == "array":
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
            return json.dumps(value, ensure_ascii=False)  # LiteRT-LM escapes nothing, and lets text out of its quotes
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case {"type": str(name), **arguments} if name.isidentifier() and all(map(_is_name, arguments)):
            return f"{name}({', '.join(f'{key}={_value(item)}' for key, item in arguments.items())})"
        case Mapping():
            return "{" + ", ".join(f"{_value(str(key))}: {_value(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def _is_name(key: object) -> bool:
    return isinstance(key, str) and key.isidentifier()


def _response(part: Mapping[str, Any]) -> str:
    return _value(part.get("tool_response", part.get("response", part)))


PYTHON_SYNTAX = ToolSyntax("```tool_code", "```", True, _declare, _value, _response, python_calls)
