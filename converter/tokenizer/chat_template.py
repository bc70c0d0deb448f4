"""Which chat template goes into the bundle.

LiteRT-LM renders prompts with minijinja (runtime/components/rust/minijinja_template.rs), a Rust engine without most of
Python's methods: a template that calls `message.get("role")` parses, is packed, and renders nothing at the user's first
message. A bundle therefore gets
- our template, where the checkpoint's renders the same prompts: it is Gemma's own, and ours adds tools and audio;
- the checkpoint's, where it renders other prompts (a fine-tune with a format of its own) and minijinja can render it;
- nothing otherwise: the conversion stops and says which construct to replace.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma_edge.profiles.errors import GemmaEdgeError

# Where LiteRT-LM 0.18.1 differs from Jinja2 (found by asking it, which a test repeats). It carries a few Python methods
# over; join() is not among them: it is accepted and yields the separator.
MISSING_FILTERS = frozenset(
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
MISSING_TESTS = frozenset(["callable"])
MISSING_FUNCTIONS = frozenset(["cycler", "joiner", "lipsum"])
METHODS = frozenset(["endswith", "items", "lstrip", "replace", "rstrip", "split", "startswith", "strip"])

# A template is Gemma's if it renders these as ours does.
_PARTS = [{"type": "text", "text": " Look. "}, {"type": "text", "text": "Well?\n"}]
_TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": " Hi,\n\nyou "},
    {"role": "assistant", "content": "Hello. "},
    {"role": "user", "content": _PARTS},
]
_SYSTEM: dict[str, Any] = {"role": "system", "content": "Be brief."}
_SYSTEM_PARTS: dict[str, Any] = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
PROBES = (_TURNS[:1], _TURNS[:2], _TURNS, [_SYSTEM, *_TURNS[:1]], [_SYSTEM_PARTS, *_TURNS])


class ChatTemplateError(GemmaEdgeError):
    """The checkpoint's chat template cannot be used on the device."""


def gemma_template() -> str:
    """The template of templates/gemma.jinja."""
    return (files("gemma_edge.converter.tokenizer") / "templates" / "gemma.jinja").read_text("utf-8")


def bundle_template(checkpoint: Path) -> str:
    """The Jinja source for the bundle; see the module's first lines.

    Raises ChatTemplateError: a syntax error, a construct that LiteRT-LM cannot render, an unreadable file.
    """
    ours, theirs = gemma_template(), checkpoint_template(checkpoint)
    if theirs is None:
        return ours
    try:
        if all(render(theirs, probe) == render(ours, probe) for probe in PROBES):
            return ours
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"{checkpoint}: chat template, line {error.lineno}: {error.message}; correct chat_template.jinja"
        ) from error
    except Exception:  # whatever it does with content it does not expect: Gemma's own renders every probe
        pass
    _check_portable(theirs, checkpoint)
    return theirs


def render(template: str, messages: list[dict[str, Any]], generation: bool = True) -> str:
    """The prompt that a template makes of a conversation, as LiteRT-LM renders it (no start token)."""

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateRuntimeError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, loader=jinja2.DictLoader({})
    )
    environment.globals.update(raise_exception=refuse, strftime_now=lambda layout: layout)
    compiled = environment.from_string(template)
    return compiled.render(messages=messages, bos_token="", eos_token="", add_generation_prompt=generation)


def checkpoint_template(checkpoint: Path) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's chat_template (a string, or a list with one named default)."""
    try:
        if (path := checkpoint / "chat_template.jinja").exists():
            return path.read_text("utf-8")
        if not (path := checkpoint / "tokenizer_config.json").exists():
            return None
        template = json.loads(path.read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ChatTemplateError(f"{path}: unreadable ({error}); download the file again") from error
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    if not isinstance(template, str | None):
        raise ChatTemplateError(
            f"{path}: chat_template is {str(template)[:40]!r}, expected a text, or a list of named ones; "
            "download the file again"
        )
    return template


def _check_portable(template: str, checkpoint: Path) -> None:
    """Raises ChatTemplateError at the first construct that Jinja2 has and LiteRT-LM's minijinja has not."""

    def refuse(node: nodes.Node, what: str, advice: str) -> NoReturn:
        raise ChatTemplateError(
            f"{checkpoint}: chat template, line {node.lineno}: {what} is unknown to LiteRT-LM's minijinja; {advice}"
        )

    kinds = (nodes.Filter, nodes.Test, nodes.Call, nodes.Import, nodes.FromImport, nodes.Include, nodes.Extends)
    for node in jinja2.Environment().parse(template).find_all(kinds):
        match node:
            case nodes.Filter(name=name) if name in MISSING_FILTERS:
                refuse(node, f"the filter {name!r}", "use another filter")
            case nodes.Filter(name="tojson", args=args, kwargs=kwargs) if args or kwargs:
                refuse(node, "an argument of the filter 'tojson'", "leave it out")
            case nodes.Test(name=name) if name in MISSING_TESTS:
                refuse(node, f"the test {name!r}", "use another test")
            case nodes.Call(node=nodes.Getattr(attr=name)) if name not in METHODS:
                refuse(node, f"the method .{name}()", "use a filter or an index")
            case nodes.Call(node=nodes.Name(name=name)) if name in MISSING_FUNCTIONS:
                refuse(node, f"the function {name}()", "do without it")
            case nodes.Import() | nodes.FromImport() | nodes.Include() | nodes.Extends():
                refuse(node, "loading another template", "put all of it into one template")
