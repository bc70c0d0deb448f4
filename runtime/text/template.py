"""The bundle's chat template, rendered by Jinja2 to the text that LiteRT-LM's minijinja renders.

The two engines print some values differently, and LiteRT-LM adds filters and one odd test of its own
(runtime/components/rust/minijinja_template.rs); what differs is set up here, and the tests compare both engines.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma_edge.profiles.errors import GemmaEdgeError

# Rust's char::is_whitespace. Python's str.strip() also takes U+001C to U+001F off.
_WHITESPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a" + (
    "\u2028\u2029\u202f\u205f\u3000"
)


class TemplateError(GemmaEdgeError):
    """The chat template is not valid Jinja, or it refused what it was given."""


class ChatTemplate:
    """A Jinja chat template. Immutable; runs sandboxed, since it comes from a file someone else may have made."""

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=_printed
        )
        environment.filters.update(tojson=_to_json, string=_as_text, trim=_trim, lstrip=_lstrip, rstrip=_rstrip)
        # LiteRT-LM replaces minijinja's `none` by one that holds for what is undefined, and not for null.
        environment.tests["none"] = lambda value: isinstance(value, jinja2.Undefined)
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(source)
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
            return self._template.render({**context, **extra_context})
        except (jinja2.TemplateError, TypeError, LookupError) as error:
            raise TemplateError(
                f"the chat template refuses these messages: {error}; "
                "change their order or form, or pass another chat_template"
            ) from error


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


def _trim(text: str, characters: str = _WHITESPACE) -> str:
    return str(text).strip(characters)


def _lstrip(text: str, characters: str = _WHITESPACE) -> str:
    return str(text).lstrip(characters)


def _rstrip(text: str, characters: str = _WHITESPACE) -> str:
    return str(text).rstrip(characters)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now(UTC).strftime(pattern)
