"""The prompts that transformers makes: what a bundle's template is proved equal to, and the text that is parsed for it.

As in transformers 5.23, utils/chat_template_utils.py: a sandboxed Jinja2 with trim_blocks and lstrip_blocks, loop
controls, `{% generation %}` (which marks the model's own words for training, and prints what is inside) and a `tojson`
that is json.dumps.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, parser
from jinja2.ext import Extension

from gemma_edge.converter.tokenizer.template_files import DEFAULT, TOOL_USE, ChatTemplateError
from gemma_edge.runtime.formats import bounded_jinja
from gemma_edge.runtime.formats.bounded_jinja import BoundedEnvironment, BoundsError

Messages = Sequence[Mapping[str, Any]]


class Generation(Extension):
    """{% generation %}...{% endgeneration %} is what is inside."""

    tags = {"generation"}  # noqa: RUF012  # Jinja2 reads it so

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class Reference:
    """The checkpoint's own templates. mentions_tools: whether what is rendered can depend on tools or calls."""

    def __init__(
        self, named: Mapping[str, str], special: Mapping[str, str], finalize: Callable[[Any], Any] | None = None
    ) -> None:
        """finalize: sees each value that is printed, or made text of. Raises jinja2.TemplateSyntaxError."""
        self.special = dict(special)
        self._sources = dict(named)
        jinja = environment(finalize)
        self.parsed = {name: jinja.parsed(source) for name, source in named.items()}
        self._compiled = {name: jinja.compiled(source) for name, source in named.items()}
        self.mentions_tools = TOOL_USE in named or any(
            word in source for source in named.values() for word in ("tools", "tool_call")
        )

    def mentions(self, variable: str) -> bool:
        """Whether a template may read that variable."""
        return any(node.name == variable for tree in self.parsed.values() for node in tree.find_all(nodes.Name))

    def prints_values(self, probes: Iterable[tuple[Messages, Sequence[Any] | None, Mapping[str, Any]]]) -> bool:
        """Whether any of these conversations (messages, tools, more) makes it print what is neither text nor number."""
        found = False

        def look(value: Any) -> Any:
            nonlocal found
            found = found or value is None or isinstance(value, bool | list | tuple | Mapping)
            return value

        looking = Reference(self._sources, self.special, look)
        for messages, tools, more in probes:
            looking.render(messages, tools, **more)
        return found

    def render(
        self, messages: Messages, tools: Sequence[Any] | None = None, generation: bool = True, **more: Any
    ) -> str | None:
        """The prompt; None where the template refuses the conversation, such as one with a system message.

        Raises ChatTemplateError: it has no end, or makes more than any prompt needs.
        """
        name = TOOL_USE if tools is not None and TOOL_USE in self._compiled else DEFAULT
        context = {**self.special, **more, "messages": messages, "tools": tools, "documents": None}
        try:
            context["add_generation_prompt"] = generation
            return bounded_jinja.render(self._compiled[name], context, len(messages))
        except BoundsError as error:
            raise ChatTemplateError(
                f"the chat template does not end well: {error}; correct chat_template.jinja"
            ) from error
        except Exception:  # a template is a program: whatever it does with content that it does not expect
            return None


def environment(finalize: Callable[[Any], Any] | None = None) -> BoundedEnvironment:
    """Jinja2 as transformers sets it up, with an end. finalize: sees each value that is printed, or that the filter
    `string` makes text of, and says what is.
    """
    made = BoundedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
        finalize=finalize,
    )
    if finalize is not None:
        made.filters["string"] = lambda value: str(finalize(value))
    made.filters["tojson"] = _to_json
    made.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now(UTC).strftime(layout)  # of UTC, as LiteRT-LM's: only the day may differ from local time
