"""The prompts that transformers makes of conversations: the checkpoint's chat template in plain Jinja2.

As in transformers 5.23: utils/chat_template_utils.py says how a template is rendered, tokenization_utils_base.py where
it is looked for and which one is taken where there are several.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import meta, nodes, parser
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.prompts.checkpoint_files import read_object, read_template, special_tokens

Messages = Sequence[Mapping[str, Any]]

# What google/gemma-3-1b-it and google/gemma-3n-E2B-it write for text, where a checkpoint has no template of its own.
GEMMA_TEMPLATE: Final = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}
    {%- set system = system if system is string else system[0]['text'] -%}
    {%- set before, turns = system + '\\n\\n', messages[1:] -%}
{%- else -%}
    {%- set before, turns = '', messages -%}
{%- endif -%}
{%- for message in turns -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {{- before if loop.first else '' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

# The same of Gemma 4, as ai.google.dev/gemma/docs/core/prompt-formatting-gemma4 shows it: a system turn of its own.
GEMMA4_TEMPLATE: Final = """{{ bos_token }}
{%- for message in messages -%}
    {{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<turn|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|turn>model\\n' }}{%- endif -%}
"""


@dataclass(frozen=True)
class ExpectedPrompts:
    """default, tool_use: compiled templates; the same where the checkpoint has one only."""

    default: jinja2.Template
    tool_use: jinja2.Template
    mentions_tools: bool
    special: Mapping[str, str]

    @classmethod
    def open(cls, checkpoint: Path) -> "ExpectedPrompts":
        """Raises VerifyError: a file that cannot be read, a template with an error in it, none that is the default."""
        named = _templates(checkpoint) or {"default": _usual(checkpoint)}
        if "default" not in named:
            raise VerifyError(
                f"{checkpoint}: found the chat templates {', '.join(sorted(named))}, expected one named default; "
                "name it so"
            )
        environment = _environment()
        try:
            compiled = {name: environment.from_string(source) for name, source in named.items()}
            source = named.get("tool_use", named["default"])
            mentions_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise VerifyError(
                f"{checkpoint}: its chat template has an error in line {error.lineno}: {error.message}; correct it"
            ) from error
        return cls(
            compiled["default"],
            compiled.get("tool_use", compiled["default"]),
            mentions_tools,
            special_tokens(checkpoint),
        )

    def render(self, messages: Messages, tools: Sequence[Any] | None = None, generation: bool = True) -> str | None:
        """The prompt as text; None where the template refuses the conversation, such as one with a system message."""
        template = self.default if tools is None else self.tool_use
        try:
            return template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=generation, **self.special
            )
        except Exception:  # a template is a program: whatever it does with content that it does not expect
            return None


def _usual(checkpoint: Path) -> str:
    """What Google's own models of that family write."""
    kind = read_object(checkpoint / "config.json").get("model_type")
    return GEMMA4_TEMPLATE if "gemma4" in str(kind) else GEMMA_TEMPLATE


def _templates(checkpoint: Path) -> dict[str, str]:
    """By name. Files of their own come before tokenizer_config.json, and that before a processor's chat_template.json.

    Raises VerifyError for what is no template.
    """
    found = {
        path.stem: read_template(path) for path in sorted((checkpoint / "additional_chat_templates").glob("*.jinja"))
    }
    if (path := checkpoint / "chat_template.jinja").exists():
        found["default"] = read_template(path)
    for name in ("tokenizer_config.json", "chat_template.json"):
        value = read_object(checkpoint / name).get("chat_template")
        if found or value is None:
            continue
        if isinstance(value, str):
            return {"default": value}
        if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
            value = {entry.get("name"): entry.get("template") for entry in value}
        if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
            raise VerifyError(
                f"{checkpoint / name}: chat_template is {str(value)[:40]!r}, expected a text or a list of named ones; "
                "download the file again"
            )
        found = value
    return found


class _Generation(Extension):
    """{% generation %} marks what the model writes, for training; it prints what is inside."""

    tags = {"generation"}  # noqa: RUF012  # Jinja2 reads it so

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja2's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now(UTC).strftime(layout)  # of UTC, as the runtime's: only the day may differ from local time
