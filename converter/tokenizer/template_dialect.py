"""A parsed Jinja2 template written again for LiteRT-LM's minijinja, statement by statement.

minijinja has none of Python's methods, no `continue` and `break`, no arguments for `tojson`, and some tests of the same
name that mean something else. Each of these has another spelling that Jinja2 and minijinja read alike; what has none is
refused by name. The result uses no construct that LiteRT-LM edits (see minijinja.py): attributes are indexed, every
expression stands in brackets, and text is written as constants, so that no whitespace rule applies.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

from jinja2 import nodes

from gemma_edge.converter.tokenizer.template_files import ChatTemplateError
from gemma_edge.converter.tokenizer.template_jumps import without_jumps
from gemma_edge.converter.tokenizer.template_macros import JSON, STR

# Where LiteRT-LM 0.18.1 differs from Jinja2 (found by asking it, which a test repeats).
MISSING_FILTERS: Final = frozenset(
    (
        "center",
        "filesizeformat",
        "forceescape",
        "random",
        "striptags",
        "truncate",
        "urlencode",
        "urlize",
        "wordcount",
        "wordwrap",
        "xmlattr",
    )
)
MISSING_TESTS: Final = frozenset(["callable"])
MISSING_FUNCTIONS: Final = frozenset(["cycler", "joiner", "lipsum"])

# Python's methods by the filter that does the same, with the number of arguments that it takes.
_METHODS: Final = {
    "capitalize": ("capitalize", (0,)),
    "items": ("items", (0,)),
    "keys": ("list", (0,)),
    "lower": ("lower", (0,)),
    "lstrip": ("lstrip", (0, 1)),
    "replace": ("replace", (2,)),
    "rstrip": ("rstrip", (0, 1)),
    "strip": ("trim", (0, 1)),
    "title": ("title", (0,)),
    "upper": ("upper", (0,)),
}
_PREFIXES: Final = {"startswith": "startingwith", "endswith": "endingwith"}
_OPERATORS: Final = {
    nodes.Add: "+",
    nodes.And: "and",
    nodes.Div: "/",
    nodes.FloorDiv: "//",
    nodes.Mod: "%",
    nodes.Mul: "*",
    nodes.Or: "or",
    nodes.Pow: "**",
    nodes.Sub: "-",
}
_COMPARISONS: Final = {
    "eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in", "notin": "not in",
}  # fmt: skip
_ARGUMENTS: Final = {  # of filters whose arguments minijinja takes by place only
    "d": ("default_value", "boolean"),
    "default": ("default_value", "boolean"),
    "indent": ("width", "first", "blank"),
    "join": ("d", "attribute"),
    "trim": ("chars",),
}


def rewritten(
    template: nodes.Template, constants: Mapping[str, str], dropped: str = "", prints_python: bool = False
) -> str:
    """Jinja source for LiteRT-LM.

    constants: text for variables that it does not know, such as "eos_token". dropped: text that is left out wherever
    the template spells it. prints_python: print lists, mappings, booleans and None as Python does.

    Raises ChatTemplateError: "line 3: the method .format() ..." for what has no other spelling.
    """
    writer = _Writer(constants, dropped, prints_python)
    lines = list(writer.statements(without_jumps(template.body), 0))
    return (STR if prints_python else "") + (JSON if writer.needs_json else "") + "\n".join(lines) + "\n"


def refuse(node: nodes.Node, what: str, advice: str) -> NoReturn:
    raise ChatTemplateError(f"line {node.lineno or 1}: {what} is unknown to LiteRT-LM's minijinja; {advice}")


class _Writer:
    """Statements and expressions to text. needs_json: whether what was written calls `_json`."""

    def __init__(self, constants: Mapping[str, str], dropped: str, prints_python: bool) -> None:
        self._constants = constants
        self._prints_python = prints_python
        self._dropped = dropped
        self.needs_json = False

    # ------------------------------------------------------------ statements

    def statements(self, body: Sequence[nodes.Node], depth: int) -> Iterator[str]:
        for node in body:
            yield from self._statement(node, depth)

    def _statement(self, node: nodes.Node, depth: int) -> Iterator[str]:
        pad = "    " * depth

        def block(opening: str, body: Sequence[nodes.Node], closing: str) -> Iterator[str]:
            yield f"{pad}{{%- {opening} -%}}"
            yield from self.statements(body, depth + 1)
            if closing:
                yield f"{pad}{{%- {closing} -%}}"

        match node:
            case nodes.Output():
                for part in node.nodes:
                    yield f"{pad}{{{{- {self._printed(part)} -}}}}"
            case nodes.If():
                yield from block(f"if {self.value(node.test)}", node.body, "")
                for other in node.elif_:
                    yield from block(f"elif {self.value(other.test)}", other.body, "")
                if node.else_:
                    yield from block("else", node.else_, "")
                yield f"{pad}{{%- endif -%}}"
            case nodes.For():
                if node.recursive:
                    refuse(node, "a recursive loop", "use a macro")
                condition = f" if {self.value(node.test)}" if node.test else ""
                yield from block(f"for {_target(node.target)} in {self.value(node.iter)}{condition}", node.body, "")
                if node.else_:
                    yield from block("else", node.else_, "")
                yield f"{pad}{{%- endfor -%}}"
            case nodes.Assign():
                yield f"{pad}{{%- set {_target(node.target)} = {self.value(node.node)} -%}}"
            case nodes.AssignBlock():
                target = _target(node.target)
                yield from block(f"set {target}", node.body, "endset")
                if node.filter is not None:
                    yield f"{pad}{{%- set {target} = {self._filter(node.filter, target)} -%}}"
            case nodes.FilterBlock():
                yield from block("set _filtered", node.body, "endset")
                yield f"{pad}{{{{- {self._filter(node.filter, '_filtered')} -}}}}"
            case nodes.Macro():
                yield from block(f"macro {node.name}({self._parameters(node)})", node.body, "endmacro")
            case nodes.CallBlock():
                given = f"({self._parameters(node)})" if node.args else ""
                yield from block(f"call{given} {self.value(node.call)}", node.body, "endcall")
            case nodes.With():
                pairs = zip(node.targets, node.values, strict=True)
                values = ", ".join(f"{_target(target)} = {self.value(value)}" for target, value in pairs)
                yield from block(f"with {values}", node.body, "endwith")
            case nodes.Block():
                yield from self.statements(node.body, depth)
            case nodes.Import() | nodes.FromImport() | nodes.Include() | nodes.Extends():
                refuse(node, "loading another template", "put all of it into one template")
            case _:
                refuse(node, f"the statement {type(node).__name__.lower()!r}", "do without it")

    def _parameters(self, node: nodes.Macro | nodes.CallBlock) -> str:
        plain = len(node.args) - len(node.defaults)
        names = [argument.name for argument in node.args]
        defaults = [f" = {self.value(value)}" for value in node.defaults]
        return ", ".join(names[:plain] + [a + b for a, b in zip(names[plain:], defaults, strict=True)])

    # ------------------------------------------------------------ expressions

    def value(self, node: nodes.Node | None) -> str:
        """An expression, in brackets where it is not one word."""
        match node:
            case nodes.Const(value=str() as text) | nodes.TemplateData(data=text):
                return _text(text.replace(self._dropped, "") if self._dropped else text)
            case nodes.Const():
                return str(node.value).lower()  # true, false, none, a number
            case nodes.Name(name="varargs" | "kwargs"):
                refuse(node, f"{node.name} of a macro", "name its arguments")
            case nodes.Name():
                return _text(self._constants[node.name]) if node.name in self._constants else node.name
            case nodes.List() | nodes.Tuple():
                return f"[{', '.join(map(self.value, node.items))}]"
            case nodes.Dict():
                pairs = (f"{self.value(pair.key)}: {self.value(pair.value)}" for pair in node.items)
                return "{" + ", ".join(pairs) + "}"
            case nodes.Getattr():
                return f"{self.value(node.node)}[{_text(node.attr)}]"
            case nodes.Getitem():
                return f"{self.value(node.node)}[{self._index(node.arg)}]"
            case nodes.Concat():
                return f"({' ~ '.join(map(self._printed, node.nodes))})"
            case nodes.CondExpr():
                otherwise = f" else {self.value(node.expr2)}" if node.expr2 is not None else ""
                return f"({self.value(node.expr1)} if {self.value(node.test)}{otherwise})"
            case nodes.Not():
                return f"(not {self.value(node.node)})"
            case nodes.Neg():
                return f"(-{self.value(node.node)})"
            case nodes.Pos():
                return self.value(node.node)
            case nodes.Mod(left=nodes.Const(value=str())) | nodes.Mod(left=nodes.TemplateData()):
                refuse(node, "formatting with '%'", "join the parts with ~")
            case nodes.BinExpr():
                return f"({self.value(node.left)} {_OPERATORS[type(node)]} {self.value(node.right)})"
            case nodes.Compare():
                return self._comparison(node)
            case nodes.Filter(node=nodes.Node()):
                return self._filter(node, self.value(node.node))
            case nodes.Test():
                return self._test(node)
            case nodes.Call():
                return self._call(node)
        assert node is not None
        refuse(node, f"the expression {type(node).__name__.lower()!r}", "do without it")

    def _printed(self, node: nodes.Node) -> str:
        """A value where it becomes text."""
        is_text = isinstance(node, nodes.Const | nodes.TemplateData | nodes.Concat)
        return f"_str({self.value(node)})" if self._prints_python and not is_text else self.value(node)

    def _index(self, node: nodes.Node) -> str:
        if not isinstance(node, nodes.Slice):
            return self.value(node)
        parts = ["" if part is None else self.value(part) for part in (node.start, node.stop)]
        return ":".join(parts) + ("" if node.step is None else f":{self.value(node.step)}")

    def _comparison(self, node: nodes.Compare) -> str:
        left, terms = self.value(node.expr), []
        for operand in node.ops:
            right = self.value(operand.expr)
            terms.append(f"({left} {_COMPARISONS[operand.op]} {right})")
            left = right
        return terms[0] if len(terms) == 1 else f"({' and '.join(terms)})"

    def _test(self, node: nodes.Test) -> str:
        value = self.value(node.node)
        match node.name:
            case "none":  # LiteRT-LM's own holds for what is undefined, and not for null
                return f"({value} == none)"
            case "iterable":  # to minijinja null is one, of nothing
                return f"({value} is iterable and {value} != none)"
            case "sequence":  # to Jinja2 text and mappings are, too
                return f"({value} is sequence or {value} is string or {value} is mapping)"
            case name if name in MISSING_TESTS:
                refuse(node, f"the test {name!r}", "use another test")
        arguments = self._arguments(node, node.args, node.kwargs)
        return f"({value} is {node.name}{_in_brackets(arguments)})"

    def _filter(self, node: nodes.Filter, value: str) -> str:
        if node.name in MISSING_FILTERS:
            refuse(node, f"the filter {node.name!r}", "use another filter")
        if node.name == "string" and self._prints_python:
            return f"_str({value})"
        if node.name == "tojson" and (node.args or node.kwargs):
            return self._to_json(node, value)
        args, kwargs = list(node.args), list(node.kwargs)
        for name in _ARGUMENTS.get(node.name, ())[len(args) :]:
            found = next((pair for pair in kwargs if pair.key == name), None)
            if found is None:
                break
            args.append(found.value)
            kwargs.remove(found)
        if node.name in ("default", "d") and 1 <= len(args) <= 2 and not kwargs:
            other = self.value(args[0])
            if len(args) == 1:
                return _default(value, other)
            return f"(({value} or {other}) if {self.value(args[1])} else {_default(value, other)})"
        arguments = self._arguments(node, args, kwargs)
        return f"({value} | {node.name}{_in_brackets(arguments)})"

    def _to_json(self, node: nodes.Filter, value: str) -> str:
        names = ("ensure_ascii", "indent", "separators")
        given: dict[str, nodes.Node] = dict(zip(names, node.args, strict=False))
        given |= _named(node)
        plain = nodes.Const(None)
        ascii_only = given.pop("ensure_ascii", nodes.Const(False))
        indent, separators = given.pop("indent", plain), given.pop("separators", plain)
        if given or node.dyn_args or node.dyn_kwargs or getattr(ascii_only, "value", True):
            refuse(node, f"the argument {next(iter(given), 'ensure_ascii')!r} of the filter 'tojson'", "leave it out")
        is_plain = isinstance(indent, nodes.Const) and indent.value is None
        comma, colon = _text(", " if is_plain else ","), _text(": ")
        if isinstance(separators, nodes.Tuple | nodes.List) and len(separators.items) == 2:
            comma, colon = map(self.value, separators.items)
        elif not (isinstance(separators, nodes.Const) and separators.value is None):
            refuse(node, "the argument 'separators' of the filter 'tojson'", "give two texts")
        self.needs_json = True
        return f"_json({value}, {self.value(indent)}, 0, {comma}, {colon})"

    def _call(self, node: nodes.Call) -> str:
        match node.node:
            case nodes.Name(name=name) if name in MISSING_FUNCTIONS:
                refuse(node, f"the function {name}()", "do without it")
            case nodes.Name(name=name):
                return f"{name}({self._arguments(node, node.args, node.kwargs)})"
            case nodes.Getattr(node=nodes.Name(name="loop"), attr="cycle"):
                return f"loop.cycle({self._arguments(node, node.args, node.kwargs)})"
            case nodes.Getattr(node=subject, attr=method):
                return self._method(node, self.value(subject), method)
        refuse(node, "calling a value", "call a macro or a function")

    def _method(self, node: nodes.Call, value: str, method: str) -> str:
        args = [self.value(argument) for argument in node.args]
        known = not (node.kwargs or node.dyn_args or node.dyn_kwargs)
        if known and method == "get" and len(args) in (1, 2):
            return _default(f"{value}[{args[0]}]", args[1] if len(args) == 2 else "none")
        if known and method in _PREFIXES and len(args) == 1:
            return f"({value} is {_PREFIXES[method]}({args[0]}))"
        if known and method == "join" and len(args) == 1:
            return f"({args[0]} | join({value}))"
        if known and method == "split" and len(args) <= 2:
            return f"({value} | split({', '.join(args)}) | list)"
        if known and method == "values" and not args:
            return f"({value} | items | map('last') | list)"
        if known and method in _METHODS and len(args) in _METHODS[method][1]:
            return f"({value} | {_METHODS[method][0]}{_in_brackets(', '.join(args))})"
        if known and method in _METHODS:
            refuse(node, f"the method .{method}() with {len(args)} arguments", "use a filter")
        refuse(node, f"the method .{method}()", "use a filter or an index")

    def _arguments(self, node: Any, args: Sequence[nodes.Node], kwargs: Sequence[Any]) -> str:
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            refuse(node, "unpacking arguments", "write them out")
        named = [f"{pair.key} = {self.value(pair.value)}" for pair in kwargs]
        return ", ".join([*map(self.value, args), *named])


def _named(node: Any) -> dict[str, nodes.Node]:
    """The arguments given by name."""
    return {pair.key: pair.value for pair in node.kwargs}


def _default(value: str, other: str) -> str:
    """Without the filter, which takes `none` for no argument in LiteRT-LM's minijinja."""
    return f"({value} if {value} is defined else {other})"


def _in_brackets(arguments: str) -> str:
    return f"({arguments})" if arguments else ""


def _target(node: nodes.Node) -> str:
    match node:
        case nodes.Name():
            return str(node.name)
        case nodes.NSRef():
            return f"{node.name}.{node.attr}"
        case nodes.Tuple():
            return ", ".join(map(_target, node.items))
    refuse(node, "this kind of assignment", "assign to a name")


_EDITED: Final = re.compile(r"\.(?=(?:startswith|endswith|replace|split|join|[lr]?strip|items)\()|\{(?=[%{#])")


def _text(text: str) -> str:
    """A constant that Jinja2 and minijinja read alike, and that LiteRT-LM's edits do not touch."""
    return _EDITED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))
