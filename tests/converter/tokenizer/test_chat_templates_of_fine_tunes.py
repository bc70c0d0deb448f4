"""Prompts of public fine-tunes' kinds: the token ids are apply_chat_template's, in LiteRT-LM and in our runtime."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import litert_lm
import pytest
import transformers

from gemma_edge.converter.convert import convert
from gemma_edge.converter.tokenizer.chat_template import BundleTemplate, ChatTemplateError, bundle_template
from gemma_edge.runtime.chat.prompt import Preface, PromptRenderer, as_received
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.formats.litertlm import Bundle
from tests.converter.tokenizer.chat_templates import TEMPLATES

Message = dict[str, Any]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def reply(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def call(name: str, **arguments: Any) -> Message:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def result(name: str, text: str) -> Message:
    return {"role": "tool", "name": name, "content": text}


TALKS: list[list[Message]] = [
    [user("In the beginning")],
    [user("  spaces around \n")],
    [system("Answer in verse."), user("Who art thou?")],
    [user("a"), reply("b"), user("c")],
    [system("s"), user("a"), reply("b\n"), user("c"), reply(" d"), user("e")],
    [user("")],
    [user("{{ messages }} {% if %} <b>&amp;</b> 'x' \"y\" \\n")],
    [user("def f(x):\n    return {\n\t'a': x,\n\t}\n\n\n")],
    [user("na\u00efve \u4e2d\u6587 \U0001f44d\U0001f3fd \u2028 end")],
    [user("first"), reply("```python\nprint('<think>')\n```"), user("second")],
    [user("q"), reply(""), user("again")],
    [system("# Rules\n\n1. Be brief.\n2. Be kind.\n"), user("one"), reply("two"), user("three")],
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather, \"now\" or 'then'.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "a town & <country>"},
                "days": {"type": "integer", "description": "how many"},
                "units": {"type": "array", "items": {"type": "string"}, "description": "of what"},
                "exact": {"type": "boolean", "default": False, "description": "whether"},
            },
            "required": ["place"],
        },
    },
}
NOW = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string", "description": "its name"}}},
    },
}
ASKED = call("get_weather", place="S\u00e3o Paulo", days=3, units=["C", "mm"])
TOOL_TALKS: list[list[Message]] = [
    [user("Rain?")],
    [system("Use tools."), user("Rain?")],
    [user("Rain?"), {"role": "assistant", "tool_calls": [ASKED]}, result("get_weather", "dry")],
    [
        user("Rain?"),
        {"role": "assistant", "tool_calls": [call("get_weather", place="here", days=None, exact=True)]},
        result("get_weather", "dry"),
    ],
    [
        user("Rain?"),
        {"role": "assistant", "tool_calls": [ASKED, call("now", zone="CET")]},
        result("get_weather", '{"rain": 0.5}'),
        result("now", "12:30"),
        reply("A little."),
        user("And now?"),
    ],
]


@pytest.fixture(scope="module")
def checkpoint(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_gemma3, tmp_path_factory.mktemp("fine-tune") / "checkpoint"))


class Bundles:
    """An engine for each kind of metadata; the template itself is passed to it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[tuple[object, ...], tuple[litert_lm.Engine, TextModel]] = {}

    def of(self, checkpoint: Path, template: BundleTemplate) -> tuple[litert_lm.Engine, TextModel]:
        kind = (template.shows_tools and not template.is_gemmas, template.written, template.starts)
        if kind not in self._made:
            path = self._directory / f"{len(self._made)}.litertlm"
            convert("custom-int4", checkpoint, path, context=256, prefill=(16,), measure=False)
            engine = litert_lm.Engine(str(path), litert_lm.Backend.CPU(thread_count=1))
            self._made[kind] = engine, TextModel(Bundle.open(path))
        return self._made[kind]

    def close(self) -> None:
        for engine, _ in self._made.values():
            engine.close()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundles]:
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    made = Bundles(tmp_path_factory.mktemp("bundles"))
    yield made
    made.close()


class Described(litert_lm.Tool):  # type: ignore[misc]
    """A tool that is its description."""

    def __init__(self, description: Message) -> None:
        self._description = description

    def get_tool_description(self) -> Message:
        return self._description

    def execute(self, param: Message) -> str:
        return str(param)


def put(checkpoint: Path, template: str | dict[str, str]) -> None:
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    if isinstance(template, dict):
        template_list = [{"name": name, "template": source} for name, source in template.items()]
        config["chat_template"] = template_list
    else:
        config["chat_template"] = template
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))


def with_content(tokenizer: Any, talk: Sequence[Message], tools: list[Message] | None) -> list[Message] | None:
    """The talk as transformers takes it, None where the template refuses. A call without words has no content, or "",
    or None.
    """
    for missing in ({}, {"content": ""}, {"content": None}):
        told = [message if "content" in message else {**message, **missing} for message in talk]
        try:
            tokenizer.apply_chat_template(told, tools=tools, add_generation_prompt=True)
        except Exception:  # a template is a program
            continue
        return told
    return None


def expected_ids(tokenizer: Any, talk: Sequence[Message], tools: list[Message] | None) -> list[int] | None:
    """transformers' ids; None where the template refuses."""
    told = with_content(tokenizer, talk, tools)
    if told is None:
        return None
    return list(tokenizer.apply_chat_template(told, tools=tools, add_generation_prompt=True)["input_ids"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_transformers_token_by_token(name: str, checkpoint: Path, bundles: Bundles) -> None:
    put(checkpoint, TEMPLATES[name])
    template = bundle_template(checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    engine, model = bundles.of(checkpoint, template)
    source = template.source
    shows_tools = template.shows_tools and not template.is_gemmas
    talks = [(talk, None) for talk in TALKS] + [(talk, [WEATHER, NOW]) for talk in TOOL_TALKS if shows_tools]
    compared = 0
    for talk, tools in talks:
        expected = expected_ids(tokenizer, talk, tools)
        if expected is None:
            continue
        compared += 1
        *before, last = talk
        start = [] if engine.bos_token_id is None else [engine.bos_token_id]
        described = [Described(tool) for tool in tools] if tools else None
        with engine.create_conversation(messages=before, tools=described, chat_template=source) as conversation:
            text = conversation.render_message_to_string(last)
        assert [*start, *engine.tokenize(text)] == expected, tokenizer.decode(expected)
        renderer = PromptRenderer(type(model.template)(source), model.tool_syntax, Preface(before, tools or ()))
        ours = renderer.turn([], [as_received(last)], {})
        assert [*model.start_tokens, *model.tokenizer.encode(ours)] == expected, tokenizer.decode(expected)
    assert compared >= 8


def test_there_are_thirty_of_them() -> None:
    assert len(TEMPLATES) >= 30


def test_tools_that_run_by_themselves_are_answered_as_transformers_writes_it(
    checkpoint: Path, bundles: Bundles
) -> None:
    """LiteRT-LM sends all results of a reply in one message of parts; Hermes' template has a message for each."""
    put(checkpoint, TEMPLATES["Hermes: tools and calls as JSON"])
    template = bundle_template(checkpoint)
    engine, _ = bundles.of(checkpoint, template)
    calls = {"role": "assistant", "tool_calls": [ASKED, call("now", zone="CET")]}
    results = [
        {"type": "tool_response", "name": "get_weather", "response": {"rain": 0.5}},
        {"type": "tool_response", "name": "now", "response": "12:30"},
    ]
    with engine.create_conversation(
        messages=[user("Rain?"), calls], tools=[Described(WEATHER)], chat_template=template.source
    ) as conversation:
        text = conversation.render_message_to_string({"role": "tool", "content": results})
    assert text.endswith(
        '\n<|im_start|>user\n<tool_response>\n{"rain": 0.5}\n</tool_response>\n<tool_response>\n12:30\n'
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_calls_are_read_as_the_template_writes_them(checkpoint: Path) -> None:
    expected = {
        "Hermes: tools and calls as JSON": ("\n<tool_call>\n", "\n</tool_call>", "json"),
        "FunctionGemma": ("<start_function_call>", "<end_function_call>", "fc"),
        "Gemma 4": ("<|tool_call>", "<tool_call|>", "fc"),
        "Gemma: tools as indented JSON, calls as Python": ("```tool_code\n", "\n```", "python"),
    }
    for name, fence in expected.items():
        put(checkpoint, TEMPLATES[name])
        syntax = bundle_template(checkpoint).calls
        assert syntax is not None
        assert (syntax.start, syntax.end, syntax.notation) == fence


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ '{}'.format(messages[0].content) }}",
            r"line 1: the method \.format\(\) is unknown to LiteRT-LM's minijinja",
        ),
        ("{{ messages[0].content }}{{ messages | map('truncate') }}", "LiteRT-LM"),
        (
            "{% for m in messages %}{% if loop.last %}Last: {% endif %}{{ m.content }}\n{% endfor %}",
            "it changes earlier turns when a message is added, and LiteRT-LM keeps what it has read; let it",
        ),
        ("Hello", "it does not write what a user says; correct chat_template.jinja"),
        ("", "it does not write what a user says; correct chat_template.jinja"),
        (
            "{{ bos_token if messages[0].role == 'system' }}{% for m in messages %}{{ m.content }}\n{% endfor %}",
            "some prompts begin with <bos> and some do not; begin all of them with it, or none",
        ),
    ],
)
def test_what_cannot_be_written_alike_is_refused(template: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ChatTemplateError, match=message) as refusal:
        bundle_template(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path}: chat template, ")
    assert "\n" not in str(refusal.value)
