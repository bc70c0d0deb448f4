"""Chat templates for transformers.js and onnxruntime-genai, which render them with Jinjas of their own.

What these read otherwise is spelled so that all read it alike, Jinja2 too: text as constants, since onnxruntime-genai
knows neither trim_blocks nor lstrip_blocks; loops over what may be missing; text that is looked for in text. What has
no such spelling is named. Found by asking transformers.js 4.3.1 and onnxruntime-genai 0.18, which a test repeats.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import jinja2
from jinja2 import nodes

from gemma_edge.converter.tokenizer.template_probes import absent, probes
from gemma_edge.converter.tokenizer.template_reference import Reference, environment

_Token = tuple[int, str, str]  # line, kind, text

# onnxruntime-genai hands tools over as they are to a template that has this text somewhere, and rewrites them otherwise
# (onnxruntime-extensions, NormalizeTools).
_TOOLS_AS_THEY_ARE: Final = "{#- tool.function -#}"


def spelled_for_all(source: str, shows_tools: bool) -> str:
    """The same template for all of them; as it is where nothing has to change. Raises jinja2.TemplateSyntaxError."""
    tokens = list(environment().lexer.tokeniter(source, None))
    changed = _without_generation(tokens)
    changed = [token for part in _parts(changed) for token in _alike(part)]
    is_plain = not any(kind == "raw_begin" for _, kind, _ in tokens)
    if is_plain and changed == tokens and _text_of(tokens) == _text_of(_untrimmed(source)):
        body = source
    else:
        body = "".join(map(_written, _parts(changed)))
    return (_TOOLS_AS_THEY_ARE if shows_tools and "tool.function" not in source else "") + body


def _untrimmed(source: str) -> list[_Token]:
    """As an engine without trim_blocks and lstrip_blocks reads it."""
    return list(jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).lexer.tokeniter(source, None))


def _text_of(tokens: Sequence[_Token]) -> list[str]:
    return [text for _, kind, text in tokens if kind == "data"]


def _without_generation(tokens: Sequence[_Token]) -> list[_Token]:
    """`{% generation %}`, which is for training, as `{% if true %}`."""
    names = {"generation": "if true", "endgeneration": "endif"}
    found = list(tokens)
    for part in _parts(tokens):
        words = [token for token in part if token[1] == "name"]
        if part[0][1] == "block_begin" and len(words) == 1 and words[0][2] in names:
            line, kind, text = words[0]
            found = [(line, kind, names[text]) if token is words[0] else token for token in found]
    return found


def _parts(tokens: Sequence[_Token]) -> list[list[_Token]]:
    """Statements, expressions and comments, each from its opening to its end, and text."""
    parts: list[list[_Token]] = []
    is_open = False
    for token in tokens:
        if is_open:
            parts[-1].append(token)
        else:
            parts.append([token])
        is_open = token[1].endswith("_begin") or (is_open and not token[1].endswith("_end"))
    return parts


def _written(part: Sequence[_Token]) -> str:
    """A part in which no whitespace rule applies."""
    kind = part[0][1]
    inside = "".join(text for _, _, text in part[1:-1]).strip()
    if kind in ("data", "raw_begin"):
        return f"{{{{- {json.dumps(''.join(_text_of(part)), ensure_ascii=False)} -}}}}"
    if kind == "block_begin":
        return f"{{%- {inside} -%}}"
    return f"{{{{- {inside} -}}}}" if kind == "variable_begin" else ""


def _alike(part: Sequence[_Token]) -> list[_Token]:
    """A part with the expressions spelled that the programs read otherwise."""
    tokens = _looked_for(part)
    words = [index for index, token in enumerate(tokens) if token[1] != "whitespace"]
    if part[0][1] != "block_begin" or len(words) < 2 or tokens[words[1]][2] != "for":
        return tokens
    start = next(index for index, token in enumerate(tokens) if token[1:] == ("name", "in")) + 1
    end = _end_of_expression(tokens, start)
    iterated = tokens[start:end]
    if not any(token[2] in (".", "[") for token in iterated):
        return tokens  # a variable that every program knows
    line = tokens[start][0]
    inside = "".join(text for _, _, text in iterated).strip()
    return [*tokens[:start], (line, "operator", f" ({inside}) or [] "), *tokens[end:]]


def _end_of_expression(tokens: Sequence[_Token], start: int) -> int:
    """Where what a loop runs over ends: at its `if` or `recursive`, or at the end of the statement."""
    depth = 0
    for index in range(start, len(tokens)):
        _, kind, text = tokens[index]
        depth += (text in ("(", "[", "{")) - (text in (")", "]", "}"))
        if depth == 0 and ((kind == "name" and text in ("if", "recursive")) or kind == "block_end"):
            return index
    return len(tokens)


def _looked_for(part: Sequence[_Token]) -> list[_Token]:
    """`"a" in message.content` with a spelling for text: onnxruntime-genai looks into lists and mappings only."""
    found: list[_Token] = []
    index = 0
    while index < len(part):
        words = [i for i in range(index, len(part)) if part[i][1] != "whitespace"][:3]
        is_search = [part[i][1] for i in words[:2]] == ["string", "name"] and part[words[1]][2] == "in"
        end = _end_of_chain(part, words[2]) if is_search and len(words) == 3 else 0
        if not end:
            found.append(part[index])
            index += 1
            continue
        wanted, searched = part[words[0]][2], "".join(text for _, _, text in part[words[2] : end])
        either = f"(({searched}.split({wanted}) | length > 1) if {searched} is string else ({wanted} in {searched}))"
        found.append((part[index][0], "operator", either))
        index = end
    return found


def _end_of_chain(part: Sequence[_Token], start: int) -> int:
    """Where `a.b["c"]` ends; 0 where something else begins there, or is called or filtered."""
    if part[start][1] != "name" or part[start][2] in ("not", "none"):
        return 0
    index, depth = start + 1, 0
    while index < len(part):
        text = part[index][2]
        depth += (text == "[") - (text == "]")
        if depth < 0 or (depth == 0 and text != "]" and text != "." and part[index - 1][2] != "."):
            break
        index += 1
    after = next((token for token in part[index:] if token[1] != "whitespace"), part[-1])
    return 0 if after[2] in ("(", "|", "~", "+") else index


# ---------------------------------------------------------------- what has no spelling


@dataclass(frozen=True)
class _Program:
    """What a program's Jinja does not have, or reads otherwise without a word."""

    filters: frozenset[str]
    tests: frozenset[str]
    methods: Mapping[str, tuple[int, ...]]  # those it has, with how many arguments
    statements: tuple[type[nodes.Node], ...]
    sole: frozenset[str]  # filters that need an argument more
    is_minja: bool = False  # onnxruntime-genai's


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TESTS = _words("divisibleby eq equalto escaped ge greaterthan gt in le lessthan lt ne sameas")
_PROGRAMS: Final = {
    "transformers.js": _Program(
        _words(
            "attr batch center count d e escape filesizeformat forceescape format groupby max min pprint random reject "
            "round select slice striptags sum truncate urlencode urlize wordcount wordwrap xmlattr"
        ),
        _TESTS | {"float"},
        {"capitalize": (0,), "endswith": (1,), "get": (1, 2), "items": (0,), "keys": (0,), "lower": (0,),
         "lstrip": (0,), "replace": (2, 3), "rstrip": (0,), "split": (0, 1, 2), "startswith": (1,), "strip": (0,),
         "title": (0,), "upper": (0,), "values": (0,)},
        (nodes.With, nodes.Block),
        _words("map"),
    ),
    "onnxruntime-genai": _Program(
        _words(
            "abs attr batch capitalize center d filesizeformat first float forceescape format groupby max min pprint "
            "random reject replace reverse round select slice striptags sum title truncate upper urlencode urlize "
            "wordcount wordwrap xmlattr"
        ),
        _TESTS | {"even", "lower", "odd", "sequence", "upper"},
        {"capitalize": (0,), "cycle": (1, 2, 3, 4), "endswith": (1,), "get": (1, 2), "items": (0,), "lstrip": (0, 1),
         "rstrip": (0, 1), "split": (1,), "startswith": (1,), "strip": (0, 1), "title": (0,)},
        (nodes.With, nodes.Block, nodes.CallBlock),
        _words("map selectattr rejectattr"),
        is_minja=True,
    ),
}  # fmt: skip


def unlike(reference: Reference) -> dict[str, list[str]]:
    """What each program does not render as transformers does, "line 3: the filter 'upper'", where there is anything."""
    trees = reference.parsed.values()
    found = {name: [what for tree in trees for what in _unlike(program, tree)] for name, program in _PROGRAMS.items()}
    asked = [(probe.messages, probe.tools, probe.context) for probe in probes(reference, absent(reference))]
    if reference.prints_values(asked):
        found = {name: [*what, "values other than text, which it prints as they are"] for name, what in found.items()}
    return {name: what for name, what in found.items() if what}


def _unlike(program: _Program, tree: nodes.Template) -> Iterator[str]:
    called = {id(call.node) for call in tree.find_all(nodes.Call)}
    for node in tree.find_all(nodes.Node):
        what = _what(program, node)
        if isinstance(node, nodes.Getattr) and id(node) not in called and node.attr in ("items", "keys", "values"):
            what = f"the attribute .{node.attr}, which is a method to Jinja2"
        if what:
            yield f"line {node.lineno}: {what}"


def _what(program: _Program, node: nodes.Node) -> str:
    match node:
        case nodes.Filter(name=name, args=args, kwargs=kwargs):
            if name in program.filters or (name in program.sole and len(args) < 2 and not kwargs):
                return f"the filter {name!r}"
            if name == "tojson" and program.is_minja and {pair.key for pair in kwargs} - {"indent"}:
                return f"the argument {kwargs[0].key!r} of the filter 'tojson'"
        case nodes.Test(name=name) if name in program.tests:
            return f"the test {name!r}"
        case nodes.Test(node=nodes.Name(name="tools"), name="none") if program.is_minja:
            return "'tools is none': it is an empty list there"
        case nodes.Macro(name=name) if program.is_minja and _calls(node, name):
            return f"the macro {name!r}, which calls itself"
        case nodes.Call(node=nodes.Getattr(attr=method), args=args):
            if len(args) not in program.methods.get(method, ()):
                return f"the method .{method}()" + (f" with {len(args)} arguments" if args else "")
        case nodes.Call(node=nodes.Name(name=name)) if name in ("dict", "cycler", "joiner", "lipsum"):
            return f"the function {name}()"
        case nodes.Mod(left=nodes.Const(value=str())):
            return "formatting with '%'"
        case nodes.Compare(ops=[_, _, *_]):
            return "a chain of comparisons"
        case _ if isinstance(node, program.statements):
            return f"the statement {type(node).__name__.lower()!r}"
    return ""


def _calls(macro: nodes.Macro, name: str) -> bool:
    """Whether a macro calls itself: onnxruntime-genai then loses its arguments."""
    return any(isinstance(call.node, nodes.Name) and call.node.name == name for call in macro.find_all(nodes.Call))
