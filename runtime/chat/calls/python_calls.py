"""Reads calls in Python's notation, as Gemma writes them, with Python's own parser. Nothing is ever run.

Around calls, models write what they would in a notebook: comments, `result = f(...)`, print(f(...)), lists of calls,
JSON. All of it is read. What has no value here (a variable, a calculation, a loop) is a ToolSyntaxError that says so.
"""

import ast
import json
import keyword
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemma_edge.runtime.chat.calls.syntax import Call, ToolSyntaxError
from gemma_edge.runtime.chat.message_json import MessageError, standard_arguments

_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
_CONSTRUCTOR = "__type__"  # where LiteRT-LM keeps the name of a constructor call used as a value
_ARGUMENTS = ("arguments", "parameters", "args")  # of a call in JSON

# A string (which may run over lines, as models let it), a comment, or one other character or word.
_TOKEN = re.compile(
    r"""(?P<triple>\b[rRbBuUfF]{0,2}(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''))"""
    r"""|(?P<raw>\b[bBuUfF]?[rR][bBuUfF]?)?(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
    r"""|(?P<comment>\#[^\n]*)"""
    r"""|(?P<word>[^\W\d][\w]*(?:-[^\W\d]\w*)*)(?P<after>\s*[=(](?!=))?""",
    re.DOTALL,
)
# An escape; `bad` where Python has none, so that the backslash is meant as it stands.
_ESCAPE = re.compile(
    r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}|[\\'\"abfnrtv0-7\n]|(?P<bad>.))",
    re.DOTALL,
)
_DASH, _KEYWORD = "__dash__", "__keyword__"


def python_calls(text: str) -> list[Call]:
    """The calls in a text, in order. Raises ToolSyntaxError: something else, or no call."""
    calls = json_calls(text)
    if calls is None:
        try:
            body = _tree(text).body
            calls = [call for statement in body for call in _in_statement(statement, _results(body))]
        except RecursionError:
            raise ToolSyntaxError("it is nested too deep") from None
    if not calls:
        raise ToolSyntaxError("there is no call in it")
    return calls


def json_calls(text: str) -> list[Call] | None:
    """Calls written in JSON, {"name": ..., "arguments": ...} or a list of those; None where it is no JSON.

    Raises ToolSyntaxError: JSON that is no call.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    items = found if isinstance(found, list) else [found]
    return [_json_call(item) for item in items] if all(isinstance(item, dict) for item in items) else None


def _json_call(item: Mapping[str, Any]) -> Call:
    function = item.get("function", item)
    if isinstance(function, str):  # {"function": "f", "arguments": ...}
        function = {**item, "name": function}
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ToolSyntaxError("a call in JSON has a name and arguments")
    try:
        return Call(name, standard_arguments(name, next((function[key] for key in _ARGUMENTS if key in function), {})))
    except MessageError as error:
        raise ToolSyntaxError(str(error)) from error


def _tree(text: str) -> ast.Module:
    try:
        return ast.parse(textwrap.dedent(_TOKEN.sub(_for_python, text)).strip())
    except SyntaxError as error:
        raise ToolSyntaxError(f"line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ToolSyntaxError(str(error) or "it is nested too deep") from None


def _for_python(token: re.Match[str]) -> str:
    """What Python's parser would refuse and litert_lm reads: new lines in strings, names that are no identifiers."""
    if token["string"] and not token["raw"]:
        text = token["string"]
        if any(escape["bad"] for escape in _ESCAPE.finditer(text)):  # a path or a pattern: none is an escape
            text = re.sub(r"\\(.)", lambda e: e[0] if e[1] in "\"'\\" else "\\" + e[0], text, flags=re.DOTALL)
        return re.sub(r"(?<!\\)((?:\\\\)*)\n", r"\1\\n", text.replace("\r", "\\r"))
    if token["word"] and token["after"]:
        is_keyword = keyword.iskeyword(token["word"]) and token["after"].strip() == "="
        return (_KEYWORD if is_keyword else "") + token["word"].replace("-", _DASH) + token["after"]
    return token[0]


def _name(text: str) -> str:
    """The name as it was written."""
    return text.replace(_DASH, "-").removeprefix(_KEYWORD)


def _results(body: Sequence[ast.stmt]) -> frozenset[str]:
    """The names that results of calls are given, as in `r = f()`; to look at one of them is to look at nothing here."""
    given = (s for s in body if isinstance(s, ast.Assign | ast.AnnAssign) and isinstance(s.value, ast.Call | ast.Await))
    targets = (target for s in given for target in (s.targets if isinstance(s, ast.Assign) else [s.target]))
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))


def _in_statement(statement: ast.stmt, results: frozenset[str]) -> Iterator[Call]:
    if isinstance(statement, ast.Expr) and _looks_at(statement.value, results):
        return
    if isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign | ast.Return) and statement.value is not None:
        yield from _in_expression(statement.value)
    elif not isinstance(statement, ast.Pass | ast.Import | ast.ImportFrom):
        raise ToolSyntaxError(f"line {statement.lineno}: only calls are run here, no {type(statement).__name__}")


def _looks_at(node: ast.expr, results: frozenset[str]) -> bool:
    """Whether this is `r` or `print(r)`, or `print("It is", r)`, of a result that no call is given."""
    match node:
        case ast.Name(id=name):
            return name in results
        case ast.Call(func=ast.Name(id="print"), args=[_, *_] as args):
            return all(isinstance(item, ast.Constant) or _looks_at(item, results) for item in args)
    return False


def _in_expression(node: ast.expr) -> Iterator[Call]:
    match node:
        case ast.Await(value=value):
            yield from _in_expression(value)
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Call(func=ast.Name(id="print"), args=items) if items:
            for item in items:
                yield from _in_expression(item)
        case ast.Call(func=function):
            yield Call(_dotted(function), _keywords(node), tuple(map(_value, node.args)))
        case ast.Dict():
            yield _json_call(_dict(node))
        case _:
            raise ToolSyntaxError(f"{_source(node)} is no call")


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return _name(name)
        case ast.Attribute(value=value, attr=name):
            return f"{_dotted(value)}.{_name(name)}"
    raise ToolSyntaxError(f"{_source(node)} is no name of a function")


def _keywords(call: ast.Call) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for given in call.keywords:
        found = _value(given.value)
        values = found if given.arg is None else {_name(given.arg): found}  # None: **{...}
        if not isinstance(values, Mapping):
            raise ToolSyntaxError(f"**{_source(given.value)} is no dictionary")
        twice = [key for key in values if key in arguments]
        if twice:
            raise ToolSyntaxError(f"argument {twice[0]!r} is given twice")
        arguments |= values
    return arguments


def _value(node: ast.expr) -> Any:
    """What an expression is worth, in JSON's types."""
    match node:
        case ast.Constant(value=bool() | None | str() | int() as value):
            return value
        case ast.Constant(value=float() as value) if math.isfinite(value):
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)):
            return -value if isinstance(sign, ast.USub) else value
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_value(item) for item in items]
        case ast.Dict():
            return _dict(node)
        case ast.JoinedStr(values=parts) if all(isinstance(part, ast.Constant) for part in parts):
            return "".join(_value(part) for part in parts)
        case ast.Name(id=name) if name.lower() in _CONSTANTS:
            return _CONSTANTS[name.lower()]
        case ast.Attribute():  # a member of an Enum
            return _dotted(node).rpartition(".")[2]
        case ast.Call(args=[]):
            return {_CONSTRUCTOR: _dotted(node.func), **_keywords(node)}
    raise ToolSyntaxError(f"{_source(node)} is no value; write the value itself")


def _dict(node: ast.Dict) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        found = None if key is None else _value(key)
        if not isinstance(found, str | int | float):
            raise ToolSyntaxError(f"{'**' if key is None else _source(key)} is no key of a dictionary; write text")
        values[found if isinstance(found, str) else json.dumps(found)] = _value(value)
    return values


def _source(node: ast.expr) -> str:
    text = _name(ast.unparse(node))
    return text if len(text) <= 40 else text[:37] + "..."
