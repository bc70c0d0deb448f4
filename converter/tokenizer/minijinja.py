"""What LiteRT-LM makes of a template: its edits of the source, then minijinja, the same engine from its own package.

Found in LiteRT-LM 0.18.1, runtime/components/prompt_template.cc (the edits) and rust/minijinja_template.rs (settings,
filters, the odd test `none`); the tests compare with the engine itself.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

Messages = Sequence[Mapping[str, Any]]

# Methods that LiteRT-LM rewrites into filters and tests before minijinja sees them. A pattern ends at the first ")".
_EDITS = (
    (r"\.startswith\((.*?)\)", r" is startingwith \1"),
    (r"\.endswith\((.*?)\)", r" is endingwith \1"),
    (r"\.replace\((.*?),(.*?)\)", r" | replace(\1,\2)"),
    (r"\.split\((.*?)\)\[0\]", r" | split(\1) | first"),
    (r"\.split\((.*?)\)\[-1\]", r" | split(\1) | last"),
    (r"\.split\((.*?)\)", r" | split(\1)"),
    (r"\.join\((.*?)\)", r" | join(\1)"),
    (r"\.lstrip\(\)", r" | lstrip"),
    (r"\.lstrip\((.*?)\)", r" | lstrip(\1)"),
    (r"\.rstrip\(\)", r" | rstrip"),
    (r"\.rstrip\((.*?)\)", r" | rstrip(\1)"),
    (r"\.strip\(\)", r" | trim"),
    (r"\.strip\((.*?)\)", r" | trim(\1)"),
    (r"\.items\(\)", r" | items"),
    (r"{% generation %}", ""),
    (r"{% endgeneration %}", ""),
)


_FUEL = 20_000_000  # instructions of one rendering; a fifth of a second


class LitertTemplate:
    """A template as LiteRT-LM renders it."""

    def __init__(self, source: str) -> None:
        for pattern, replacement in _EDITS:
            source = re.sub(pattern, replacement, source, flags=re.DOTALL)
        self._source = source
        self._environment = _environment()

    def render(
        self, messages: Messages, tools: Sequence[Any] | None = None, generation: bool = True, **more: Any
    ) -> str:
        """The text, without the start token. Raises ValueError with minijinja's reason in one line."""
        context = {**more, "messages": messages, "add_generation_prompt": generation, "bos_token": "", "eos_token": ""}
        if tools is not None:
            context["tools"] = tools
        # As constants of the template, since Python's own objects would keep their methods and print as Python does.
        # trim_blocks takes the line's end away again.
        given = "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in context.items())
        try:
            return str(self._environment.render_str(f"{given}\n{self._source}"))
        except Exception as error:  # minijinja's own, and what our functions raise through it
            raise ValueError(str(error).partition("\n")[0]) from error


def _environment() -> Any:
    import minijinja

    made: Any = minijinja
    environment = made.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.pycompat = False
    environment.fuel = _FUEL
    environment.auto_escape_callback = _no_escapes
    environment.add_function("raise_exception", _refuse)
    environment.add_function("strftime_now", _strftime_now)
    environment.add_filter("tojson", _to_json)
    environment.add_filter("lstrip", _lstrip)
    environment.add_filter("rstrip", _rstrip)
    return environment


def _literal(value: Any) -> str:
    match value:
        case bool() | None:
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False)
        case Mapping():
            return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return f"[{', '.join(map(_literal, value))}]"
    return repr(value)


def _no_escapes(_name: str) -> bool:
    return False


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _lstrip(text: str, characters: str | None = None) -> str:
    return text.lstrip(characters)


def _rstrip(text: str, characters: str | None = None) -> str:
    return text.rstrip(characters)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now(UTC).strftime(layout)
