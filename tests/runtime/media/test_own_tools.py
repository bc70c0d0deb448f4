"""A fine-tune that sees and hears, and shows tools in its own way: prompts are its template's, calls are read here."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litert_lm
import pytest
import transformers

from gemma_edge import runtime
from gemma_edge.converter.convert import convert
from gemma_edge.converter.tokenizer.chat_template import bundle_template
from gemma_edge.runtime.chat.calls.syntax import ReplyParser, joined
from gemma_edge.runtime.chat.messages import Content, Contents
from tests.converter.tokenizer.test_chat_templates_of_fine_tunes import (
    NOW,
    TALKS,
    TOOL_TALKS,
    WEATHER,
    put,
    with_content,
)
from tests.media_files import photograph
from tests.runtime.media.towers import Towers

SEEING = """\
{%- macro said(content) -%}
    {%- if content is string -%}{{ content }}
    {%- else -%}
        {%- for part in content or [] -%}
            {%- if part.type == 'image' -%}{{ '<image_soft_token>' }}
            {%- elif part.type == 'audio' -%}{{ '<audio_soft_token>' }}
            {%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- if tools -%}
    {{- '<start_of_turn>developer\\n' -}}
    {%- for tool in tools -%}{{- (tool | tojson) + '\\n' -}}{%- endfor -%}{{- '<end_of_turn>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' -}}
    {{- said(m.content) -}}
    {%- for c in m.tool_calls or [] -%}
        {{- '<call>\\n' + ({'name': c.function.name, 'arguments': c.function.arguments} | tojson) + '\\n</call>' -}}
    {%- endfor -%}
    {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""


class Described(litert_lm.Tool):  # type: ignore[misc]  # without stubs
    """A tool that is its description."""

    def __init__(self, description: dict[str, Any]) -> None:
        self._description = description

    def get_tool_description(self) -> dict[str, Any]:
        return self._description

    def execute(self, param: dict[str, Any]) -> str:
        return str(param)


class OurDescribed(runtime.Tool):
    """The same for our module."""

    def __init__(self, description: dict[str, Any]) -> None:
        self._description = description

    def get_tool_description(self) -> dict[str, Any]:
        return self._description

    def execute(self, param: Any) -> str:
        return str(param)


@pytest.fixture(scope="module", params=["vision", "all"])
def tuned(request: pytest.FixtureRequest, towers: Towers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint and its bundle: with images, or with images and sound."""
    folder = tmp_path_factory.mktemp("tuned")
    checkpoint = Path(shutil.copytree(towers.bundle.parent / "checkpoint", folder / "checkpoint"))
    put(checkpoint, SEEING)
    modalities = ("text", "vision") if request.param == "vision" else ("text", "vision", "audio")
    convert("custom-fp32", checkpoint, folder / "model.litertlm", context=512, modalities=modalities, measure=False)
    return folder


@pytest.fixture(scope="module")
def google(tuned: Path) -> Iterator[Any]:
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    one = litert_lm.Backend.CPU(thread_count=1)
    (tuned / "theirs").mkdir()
    with litert_lm.Engine(
        str(tuned / "model.litertlm"), one, vision_backend=one, cache_dir=str(tuned / "theirs")
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def engine(tuned: Path) -> Iterator[runtime.Engine]:
    with runtime.Engine(str(tuned / "model.litertlm"), cache_dir=str(tuned / "ours")) as engine:
        yield engine


def test_prompts_are_transformers(tuned: Path, engine: runtime.Engine, google: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tuned / "checkpoint")
    talks = [(talk, None) for talk in TALKS] + [(talk, [WEATHER, NOW]) for talk in TOOL_TALKS]
    for talk, tools in talks:
        told = with_content(tokenizer, talk, tools)
        assert told is not None
        expected = list(tokenizer.apply_chat_template(told, tools=tools, add_generation_prompt=True)["input_ids"])
        *before, last = talk
        described = [Described(tool) for tool in tools] if tools else None
        with google.create_conversation(messages=before, tools=described) as conversation:
            text = conversation.render_message_to_string(last)
        assert [google.bos_token_id, *google.tokenize(text)] == expected
        with engine.create_conversation(messages=before, tools=[*map(OurDescribed, tools or ())]) as own:
            assert [engine.bos_token_id, *engine.tokenize(own.render_message_to_string(last))] == expected


def test_images_are_where_the_template_has_them(engine: runtime.Engine, google: Any) -> None:
    contents = Contents.of("Look:", Content.ImageFile(str(photograph("rocket.jpg"))), "What is it?")
    greedy = {"top_k": 1}
    with engine.create_conversation(sampler_config=runtime.SamplerConfig(**greedy), max_output_tokens=6) as ours:
        said = str(ours.send_message(contents))
        assert "Look:<image_soft_token>What is it?" in ours.render_message_to_string(contents)
    sampler = litert_lm.SamplerConfig(**greedy)
    with google.create_conversation(sampler_config=sampler, max_output_tokens=6) as theirs:
        assert str(theirs.send_message({"role": "user", "content": contents.to_json()})) == said


def test_calls_are_read_as_the_template_writes_them(engine: runtime.Engine) -> None:
    syntax = engine.text_model.tool_syntax
    assert (syntax.fence_start, syntax.fence_end, syntax.shows_json) == ("<call>\n", "\n</call>", True)
    for written in (
        {"name": "now", "arguments": {"zone": "CET"}},
        {"name": "now", "parameters": {"zone": "CET"}},
        {"name": "now", "arguments": '{"zone": "CET"}'},
        [{"name": "now", "arguments": {"zone": "CET"}}],
    ):
        reader = ReplyParser(syntax, {"now": ("zone",)})
        chunks = [*reader.push(f"Well. <call>\n{json.dumps(written)}\n</call>"), *reader.finish()]
        texts, calls = joined(chunks)
        assert (texts, [call.to_json()["function"] for call in calls]) == (
            ["Well. "],
            [{"name": "now", "arguments": {"zone": "CET"}}],
        )


def test_the_bundle_says_how_calls_are_written(tuned: Path) -> None:
    source = bundle_template(tuned / "checkpoint", ("image", "audio")).source
    assert source.startswith('{# tool calls: {"start": "<call>\\n", "end": "\\n</call>", "notation": "json"} #}')
