"""The bundle's chat template, rendered by Jinja2 to the text that LiteRT-LM's minijinja renders.

The two engines print some values differently, and LiteRT-LM adds filters and one odd test of its own
(runtime/components/rust/minijinja_template.rs); what differs is set up here, and the tests compare both engines.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.formats import bounded_jinja
from gemma_edge.runtime.formats.bounded_jinja import BoundedEnvironment

# Rust's char::is_whitespace. Python's str.strip() also takes U+001C to U+001F off.
_WHITESPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a" + (
    "\u2028\u2029\u202f\u205f\u3000"
)


# Methods, filters and tests whose arguments are looked for in a text.
_SEARCHES = frozenset(
    (
        "count", "endingwith", "endswith", "find", "index", "partition", "removeprefix", "removesuffix", "replace",
        "rpartition", "rsplit", "split", "startingwith", "startswith",
    )
)  # fmt: skip


class TemplateError(GemmaEdgeError, RuntimeError):
    """The chat template is not valid Jinja, or it refused what it was given."""


class ChatTemplate:
    """A Jinja chat template. Immutable; runs sandboxed and within bounds: someone else may have made its file."""

    def __init__(self, source: str) -> None:
        environment = BoundedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            finalize=_printed,
            extensions=[_Generation],
        )
        environment.filters.update(
            tojson=_to_json, string=_as_text, trim=_trim, lstrip=_lstrip, rstrip=_rstrip, split=_split
        )
        environment.tests.update(
            startingwith=_is_starting_with, endingwith=_is_ending_with
        )  # as split, minijinja's own
        # LiteRT-LM replaces minijinja's `none` by one that holds for what is undefined, and not for null.
        environment.tests["none"] = lambda value: isinstance(value, jinja2.Undefined)
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self._source, self._environment = source, environment
        try:
            self._template = environment.compiled(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"the chat template has an error in line {error.lineno}: {error.message}; "
                "pass another chat_template or convert the model again"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None,
        add_generation_prompt: bool,
        extra_context: Mapping[str, Any],
    ) -> str:
        """The prompt text. bos_token and eos_token are empty: the session adds the start token as a token.

        tools: None leaves the variable undefined. extra_context: further variables; they win over the others.
        """
        context = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": "",
            "eos_token": "",
        }
        if tools is not None:
            context["tools"] = tools
        try:
            return bounded_jinja.render(self._template, {**context, **extra_context}, len(messages))
        except Exception as error:  # a template is a program of someone else's
            raise TemplateError(
                f"the chat template refuses these messages: {_first_line(error)}; "
                "change their order or form, or pass another chat_template"
            ) from error

    def replies_words(self, names: Iterable[str]) -> frozenset[str]:
        """Those of the names that are a reply's own and no mark of the template's: it looks for them in what is said,
        as for "</think>", or has them nowhere.
        """
        written, wanted = self._words
        return frozenset(name for name in names if name in wanted or name not in written)

    @cached_property
    def _words(self) -> tuple[str, str]:
        """All constant text; of that, what it looks for in others."""
        tree = self._environment.parsed(self._source)
        written = [*(found.value for found in tree.find_all(nodes.Const)),
                   *(found.data for found in tree.find_all(nodes.TemplateData))]  # fmt: skip
        return "\n".join(map(str, written)), "\n".join(_wanted(tree))


def _wanted(tree: nodes.Template) -> Iterator[str]:
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
        parts: Sequence[nodes.Node] = ()
        match node:
            case nodes.Compare(expr=expr, ops=ops) if any(operand.op in ("in", "notin") for operand in ops):
                parts = [expr]
            case nodes.Call(node=nodes.Getattr(attr=name), args=args) if name in _SEARCHES:
                parts = args
            case nodes.Filter(name=name, args=args) | nodes.Test(name=name, args=args) if name in _SEARCHES:
                parts = args
        for part in parts:
            yield from (str(found.value) for found in nodes.List([part]).find_all(nodes.Const))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


class _Generation(Extension):
    """{% generation %} marks for training what the assistant says; a prompt is the same without."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _printed(value: object) -> object:
    """What {{ value }} prints, for values that Python prints in another way than minijinja."""
    if value is None or isinstance(value, bool | float | list | tuple | dict):
        return _as_text(value)
    return value


def _as_text(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case float():
            return np.format_float_positional(value, trim="0")  # Rust prints no exponent
        case list() | tuple():
            return f"[{', '.join(map(_element, value))}]"
        case dict():
            return "{" + ", ".join(f"{_element(key)}: {_element(item)}" for key, item in value.items()) + "}"
    return str(value)


def _element(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else _as_text(value)


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _trim(text: object, characters: str = _WHITESPACE) -> str:
    return _as_text(text).strip(characters)


def _lstrip(text: object, characters: str = _WHITESPACE) -> str:
    return _as_text(text).lstrip(characters)


def _rstrip(text: object, characters: str = _WHITESPACE) -> str:
    return _as_text(text).rstrip(characters)


def _split(text: str, separator: str | None = None, splits: int = -1) -> list[str]:
    return str(text).split(separator, splits)


def _is_starting_with(text: str, start: str) -> bool:
    return str(text).startswith(start)


def _is_ending_with(text: str, end: str) -> bool:
    return str(text).endswith(end)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now(UTC).strftime(pattern)
