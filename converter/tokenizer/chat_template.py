"""Which chat template goes into the bundle, proved to write what transformers writes.

LiteRT-LM renders prompts with minijinja, a Rust engine without Python's methods, and hands content over as a list of
parts: a template that joins `'<|im_start|>' + message['content']` is packed and then renders nothing, or worse,
`[{"type": "text", ...` is what the model reads. A bundle therefore gets
- our template, where the checkpoint's renders the same prompts and shows no tools: it is Gemma's own, and ours adds
  tools and audio;
- the checkpoint's, where LiteRT-LM renders it as transformers does;
- the checkpoint's written again (template_dialect.py), behind lines that make content text again where that helps;
- nothing otherwise: the conversion stops and says what differs.
Each is tried on the conversations of template_probes.py, by minijinja itself.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2 import nodes

from gemma_edge.converter.tokenizer.minijinja import LitertTemplate
from gemma_edge.converter.tokenizer.template_dialect import MISSING_FILTERS, MISSING_FUNCTIONS, MISSING_TESTS, rewritten
from gemma_edge.converter.tokenizer.template_elsewhere import spelled_for_all, unlike
from gemma_edge.converter.tokenizer.template_files import (
    DEFAULT,
    TOOL_USE,
    ChatTemplateError,
    checkpoint_templates,
    special_tokens,
)
from gemma_edge.converter.tokenizer.template_probes import ABSENT, Probe, absent, probes
from gemma_edge.converter.tokenizer.template_reference import Reference
from gemma_edge.converter.tokenizer.template_turns import GEMMA_TURNS, CallSyntax, Turns, call_syntax, turns
from gemma_edge.runtime.formats.tool_calls import CallFences

__all__ = [
    "BundleTemplate",
    "ChatTemplateError",
    "bundle_template",
    "gemma_template",
    "gemma_text_template",
    "onnx_template",
    "programs_unlike",
]

METHODS: Final = frozenset(["endswith", "items", "lstrip", "replace", "rstrip", "split", "startswith", "strip"])
"""Python's methods that LiteRT-LM rewrites by itself. join() is not among them: it yields the separator."""

_PLACEHOLDERS: Final = {
    "image": ("<start_of_image>", "<|image|>", "<image_soft_token>"), "audio": ("<|audio|>", "<audio_soft_token>"),
}  # fmt: skip


@dataclass(frozen=True)
class BundleTemplate:
    """What a bundle says about prompts.

    source: Jinja for LiteRT-LM. is_gemmas: whether it is ours. shows_tools: whether it shows tools; other templates
    than ours need them as they are, JSON objects. calls: how the model writes calls, where that is known.
    thinks: whether it asks for thoughts (`enable_thinking`).
    starts: whether prompts begin with the start token, which source leaves out. written: control tokens that its
    prompts spell, such as "<eos>". turns: what stands around a message.
    """

    source: str
    is_gemmas: bool = False
    shows_tools: bool = True
    calls: CallSyntax | None = None
    thinks: bool = False
    starts: bool = True
    written: frozenset[str] = frozenset()
    turns: Turns = GEMMA_TURNS


def gemma_template(name: str = "gemma") -> str:
    """The template of templates/NAME.jinja."""
    return _template(f"{name}.jinja")


def gemma_text_template() -> str:
    """For programs with tools of their own: it shows none."""
    return _template("gemma_text.jinja")


def _template(name: str) -> str:
    return (files("gemma_edge.converter.tokenizer") / "templates" / name).read_text("utf-8")


def bundle_template(checkpoint: Path, media: Sequence[str] = (), usual: str = "gemma") -> BundleTemplate:
    """The template for the bundle; see the module's first lines.

    media: "image", "audio": what the model takes beside text. usual: ours, where the checkpoint has none.
    Raises ChatTemplateError: a syntax error, prompts that LiteRT-LM would write otherwise, an unreadable file.
    """
    ours = BundleTemplate(gemma_template(), is_gemmas=True)
    named = checkpoint_templates(checkpoint)
    if not named and usual == "gemma":
        return ours
    named = named or {DEFAULT: gemma_template(usual)}
    special = special_tokens(checkpoint)
    try:
        reference = Reference(named, special)
        gemmas = Reference({DEFAULT: ours.source}, special)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"{checkpoint}: chat template, line {error.lineno}: {error.message}; correct chat_template.jinja"
        ) from error
    if not reference.mentions_tools and _are_equal(reference, gemmas):
        return ours
    return _proved(_Case(checkpoint, named, reference, tuple(media)))


def onnx_template(checkpoint: Path, usual: str = "gemma") -> str | list[dict[str, str]]:
    """For transformers.js and onnxruntime-genai, whose engines have Python's methods: the checkpoint's, else ours.

    A text, or a list of named ones as the checkpoint has it. Spelled so that each of them writes what transformers
    does, where that can be; `programs_unlike` names what cannot.
    """
    named = checkpoint_templates(checkpoint) or {DEFAULT: gemma_template(usual)}
    shows_tools = Reference(named, special_tokens(checkpoint)).mentions_tools
    named = {name: spelled_for_all(source, shows_tools) for name, source in named.items()}
    if len(named) == 1:
        return named[DEFAULT]
    return [{"name": name, "template": source} for name, source in named.items()]


def programs_unlike(checkpoint: Path, usual: str = "gemma") -> dict[str, list[str]]:
    """By program, what in the checkpoint's template it does not render as transformers does."""
    named = checkpoint_templates(checkpoint) or {DEFAULT: gemma_template(usual)}
    return unlike(Reference(named, special_tokens(checkpoint)))


def _are_equal(theirs: Reference, ours: Reference) -> bool:
    """Whether two templates write the same, where the first does not refuse (as Gemma 2's does system messages)."""
    rendered = [
        (theirs.render(probe.messages, None, probe.generation), ours.render(probe.messages, None, probe.generation))
        for probe in probes(theirs, ABSENT)
        if "developer" not in probe.what
    ]
    return any(their is not None for their, _ in rendered) and all(their in (our, None) for their, our in rendered)


# ---------------------------------------------------------------- the checkpoint's own


@dataclass(frozen=True)
class _Case:
    """A checkpoint's templates and what they are held against."""

    checkpoint: Path
    named: dict[str, str]
    reference: Reference
    media: tuple[str, ...]

    def expected(self) -> list[tuple[Probe, str]]:
        """Each probe with transformers' prompt. What the template refuses is left out, as LiteRT-LM's refuses too."""
        found = [*probes(self.reference, absent(self.reference)), *self._parts()]
        rendered = ((p, self.reference.render(p.messages, p.tools, p.generation, **p.context)) for p in found)
        return [(probe, text) for probe, text in rendered if text is not None]

    @property
    def takes_parts(self) -> bool:
        """Whether the template itself reads content in parts, all of them."""
        text = self.reference.render([_PARTS_MESSAGE]) or ""
        return all(word in text for word in ("0451", "0452")) and "'type'" not in text and '"type"' not in text

    def _parts(self) -> Iterator[Probe]:
        joined = {"role": "user", "content": "".join(part["text"] for part in _PARTS_MESSAGE["content"])}
        yield Probe("content in parts", [_PARTS_MESSAGE if self.takes_parts else joined], [_PARTS_MESSAGE])
        for kind in self.media:
            message = {"role": "user", "content": [{"type": kind}, {"type": "text", "text": "Well?"}]}
            yield Probe(f"an {kind}", [message], [message])

    def refused(self, why: str) -> ChatTemplateError:
        return ChatTemplateError(f"{self.checkpoint}: chat template, {why}")


_PARTS_MESSAGE: Final[dict[str, Any]] = {
    "role": "user",
    "content": [{"type": "text", "text": "It is 0451. "}, {"type": "text", "text": "Not 0452"}],
}


def _proved(case: _Case) -> BundleTemplate:
    """The first spelling that renders every probe as transformers does."""
    expected = case.expected()
    _check_use(case, expected)
    start = case.reference.special["bos_token"]
    starts = {text.startswith(start) for probe, text in expected}
    if len(starts) > 1:
        raise case.refused(f"some prompts begin with {start} and some do not; begin all of them with it, or none")
    wanted = [(probe, text.removeprefix(start)) for probe, text in expected]
    failure = ""
    for source in _spellings(case, repeats_start=any(start in text for _, text in wanted)):
        failure = _difference(source, wanted)
        if not failure:
            controls = {case.reference.special.get(key, "") for key in ("bos_token", "eos_token", "pad_token")} - {""}
            return BundleTemplate(
                source,
                shows_tools=case.reference.mentions_tools,
                calls=call_syntax(case.reference) if case.reference.mentions_tools else None,
                thinks=case.reference.mentions("enable_thinking"),
                starts=starts == {True},
                written=frozenset(token for token in controls if any(token in text for _, text in wanted)),
                turns=turns(case.reference),
            )
    raise case.refused(failure)


def _check_use(case: _Case, expected: Sequence[tuple[Probe, str]]) -> None:
    """Raises ChatTemplateError for a template that no conversation can be held with."""
    said = case.reference.render([{"role": "user", "content": "0451"}])
    if said is None or "0451" not in said:
        raise case.refused("it does not write what a user says; correct chat_template.jinja")
    for kind in case.media:
        text = next((text for probe, text in expected if probe.what == f"an {kind}"), "")
        if sum(text.count(word) for word in _PLACEHOLDERS[kind]) != 1:
            raise case.refused(
                f"it writes no {_PLACEHOLDERS[kind][-1]} for an {kind}; correct it, or leave {kind}s out: "
                "--modalities text"
            )
    for what in ("two turns", "a system message and two turns"):
        talk = next((probe for probe, _ in expected if probe.what == what and probe.generation), None)
        if talk is None:
            continue
        before = case.reference.render(talk.messages[:-1], generation=False)
        if before is None or not (case.reference.render(talk.messages) or "").startswith(before):
            raise case.refused(
                "it changes earlier turns when a message is added, and LiteRT-LM keeps what it has read; "
                "let it only append"
            )


def _spellings(case: _Case, repeats_start: bool) -> Iterator[str]:
    """Ways to write the template for LiteRT-LM, the plainest first."""
    trees = case.reference.parsed
    # Beside images and sound, only our runtime reads calls, and LiteRT-LM's metadata has no place for their fences.
    said = ""
    if case.media and case.reference.mentions_tools:
        calls = call_syntax(case.reference)
        said = (CallFences() if calls is None else CallFences(calls.start, calls.end, calls.notation)).comment()
    if len(trees) == 1 and _is_portable(trees[DEFAULT], case.named[DEFAULT]):
        yield said + case.named[DEFAULT]
    missing = absent(case.reference)
    for prints_python in (False, True):
        body = _rewritten(case, repeats_start, prints_python)
        yield said + _HEAD + body
        yield said + _HEAD + _as_text(joins=not case.takes_parts, missing=missing) + body


def _rewritten(case: _Case, repeats_start: bool, prints_python: bool) -> str:
    """The checkpoint's templates in LiteRT-LM's dialect. Raises ChatTemplateError naming what it has no word for."""
    trees, start = case.reference.parsed, case.reference.special["bos_token"]
    constants = {**case.reference.special, "bos_token": start if repeats_start else ""}
    try:
        bodies = {
            name: rewritten(trees[name], constants, "" if repeats_start else start, prints_python)
            for name in (DEFAULT, TOOL_USE)
            if name in trees
        }
    except ChatTemplateError as error:
        raise case.refused(str(error)) from None
    body = bodies[DEFAULT]
    if TOOL_USE in bodies:
        body = f"{{%- if tools -%}}\n{bodies[TOOL_USE]}{{%- else -%}}\n{body}{{%- endif -%}}\n"
    if repeats_start:  # LiteRT-LM writes the first one itself
        body = f"{{%- set _all -%}}\n{body}{{%- endset -%}}\n{{{{- _all[{len(start)}:] -}}}}\n"
    return _UNSET + body


_HEAD: Final = "{#- The checkpoint's chat template, written for LiteRT-LM by gemma-edge. -#}\n"
_UNSET: Final = "".join(
    f"{{%- set {name} = {name} if {name} is defined else none -%}}\n" for name in ("tools", "documents")
)

_AS_TEXT: Final = """\
{%- set _told = namespace(messages=[], text="", plain=true) -%}
{%- for message in messages -%}
    {%- if message["content"] is not defined -%}
        {%- set _told.messages = _told.messages + [MISSING] -%}
    {%- elif message["content"] is string or message["content"] is mapping or message["content"] is not iterable -%}
        {%- set _told.messages = _told.messages + [message] -%}
    {%- elif message["role"] == "tool" and message["content"] and message["content"][0]["type"] != "text" -%}
        {%- for part in message["content"] -%}
            {%- set result = part["tool_response"] if part["tool_response"] is defined else part -%}
            {%- set result = part["response"] if part["response"] is defined else result -%}
            {%- set result = result if result is string else (result | tojson) -%}
            {%- set named = dict(message, name=part["name"]) if part["name"] is defined else message -%}
            {%- set _told.messages = _told.messages + [dict(named, content=result)] -%}
        {%- endfor -%}
    {%- else -%}
        {%- set _told.text = "" -%}
        {%- set _told.plain = true -%}
        {%- for part in message["content"] -%}
            {%- if part["type"] == "text" -%}
                {%- set _told.text = _told.text ~ part["text"] -%}
            {%- else -%}
                {%- set _told.plain = false -%}
            {%- endif -%}
        {%- endfor -%}
        {%- if PLAIN -%}
            {%- set _told.messages = _told.messages + [dict(message, content=_told.text)] -%}
        {%- else -%}
            {%- set _told.messages = _told.messages + [OTHER] -%}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- set messages = _told.messages -%}
"""


def _as_text(joins: bool, missing: Any) -> str:
    """Lines that give the template messages as transformers does. joins: several parts become one text, too."""
    refusal = "raise_exception('this chat template takes text only')"
    content = "none" if missing is None else '""'
    words = {
        "MISSING": "message" if missing is ABSENT else f"dict(message, content={content})",
        "PLAIN": "_told.plain" if joins else '_told.plain and (message["content"] | length) < 2',
        "OTHER": refusal if joins else "message",
    }
    return re.sub("|".join(words), lambda found: words[found[0]], _AS_TEXT)


_GENERATION: Final = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")


def _is_portable(tree: nodes.Template, source: str) -> bool:
    """Whether LiteRT-LM's minijinja has all of a template's constructs, with Jinja2's meaning."""
    if _GENERATION.search(source):
        return False
    for node in tree.find_all((nodes.Filter, nodes.Test, nodes.Call, nodes.Stmt)):
        match node:
            case nodes.Filter(name=name) if name in MISSING_FILTERS:
                return False
            case nodes.Filter(name="tojson", args=args, kwargs=kwargs) if args or kwargs:
                return False
            case nodes.Test(name=name) if name in MISSING_TESTS | {"none", "sequence"}:
                return False
            case nodes.Call(node=nodes.Getattr(attr=name)) if name not in METHODS:
                return False
            case nodes.Call(node=nodes.Name(name=name)) if name in MISSING_FUNCTIONS:
                return False
            case nodes.Import() | nodes.FromImport() | nodes.Include() | nodes.Extends():
                return False
            case nodes.Continue() | nodes.Break():
                return False
    return True


def _difference(source: str, wanted: Sequence[tuple[Probe, str]]) -> str:
    """Where a spelling first differs from transformers, for people; "" where it never does."""
    template = LitertTemplate(source)
    for probe, text in wanted:
        try:
            found = template.render(probe.received, probe.tools, probe.generation, **probe.context)
        except ValueError as error:
            return f"for {probe.what}: LiteRT-LM's minijinja says {error}; write it without"
        if found != text:
            at = next(i for i, pair in enumerate(zip_longest(text, found)) if pair[0] != pair[1])
            return (
                f"for {probe.what}, after {text[max(0, at - 24) : at]!r} LiteRT-LM would write "
                f"{found[at : at + 24]!r}, transformers writes {text[at : at + 24]!r}; write that expression otherwise"
            )
    return ""
