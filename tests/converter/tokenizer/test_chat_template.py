import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import litert_lm
import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.converter.tokenizer.chat_template import (
    METHODS,
    MISSING_FILTERS,
    MISSING_FUNCTIONS,
    MISSING_TESTS,
    ChatTemplateError,
    bundle_template,
    gemma_template,
    render,
)

CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content.strip() }}{% endfor %}<|assistant|>"
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  How are you?\n"},
    {"role": "assistant", "content": "Fine. "},
    {
        "role": "user",
        "content": [{"type": "text", "text": "And "}, {"type": "image"}, {"type": "text", "text": "this?"}],
    },
]


@pytest.fixture(scope="module")
def engine(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[litert_lm.Engine]:
    """LiteRT-LM itself, on a bundle of ours; its conversations accept a template to try."""
    bundle = tmp_path_factory.mktemp("engine") / "tiny.litertlm"
    convert("custom-fp32", tiny_gemma3, bundle, context=256, prefill=(16,))
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    with litert_lm.Engine(str(bundle), litert_lm.Backend.CPU()) as engine:
        yield engine


def ask(engine: litert_lm.Engine, template: str) -> str:
    """What LiteRT-LM renders for one user message "Hello"; nothing if it cannot."""
    with engine.create_conversation(chat_template=template) as conversation:
        rendered: str = conversation.render_message_to_string("Hello")
        return rendered


def checkpoint(directory: Path, template: object) -> Path:
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return directory


# ---------------------------------------------------------------- our template


def test_it_renders_gemmas_prompt() -> None:
    assert render(gemma_template(), CONVERSATION) == (
        "<start_of_turn>user\nBe brief.\n\nHow are you?<end_of_turn>\n"
        "<start_of_turn>model\nFine.<end_of_turn>\n"
        "<start_of_turn>user\nAnd<image_soft_token>this?<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_it_renders_as_googles_own_does(gemma_tokenizer: Path) -> None:
    """On text; Gemma 3's own has another placeholder for images, which LiteRT-LM takes for the same."""
    google = json.loads((gemma_tokenizer / "tokenizer_config.json").read_text())["chat_template"]
    for length in range(1, 4):
        for generation in (True, False):
            expected = render(google, CONVERSATION[:length], generation)
            assert render(gemma_template(), CONVERSATION[:length], generation) == expected


def test_a_shorter_history_is_a_prefix_of_a_longer_one() -> None:
    prompts = [render(gemma_template(), CONVERSATION[:n], generation=False) for n in range(2, 5)]
    assert prompts[1].startswith(prompts[0])
    assert prompts[2].startswith(prompts[1])


def test_it_renders_tool_calls_and_results() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": "1", "b": "'x'"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "tool_calls": [call, {"type": "function", "function": {"name": "now"}}]},
        {"role": "tool", "content": [{"type": "text", "text": "3"}, {"type": "text", "text": "{'hour': 4}"}]},
    ]
    assert render(gemma_template(), messages) == (
        "<start_of_turn>user\nAdd.<end_of_turn>\n"
        "<start_of_turn>model\n```tool_code\nadd(a=1, b='x')\nnow()\n```<end_of_turn>\n"
        "<start_of_turn>user\n```tool_outputs\n3\n{'hour': 4}\n```<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_litert_lm_renders_it_as_jinja2_does(engine: litert_lm.Engine) -> None:
    with engine.create_conversation(messages=CONVERSATION[:3]) as conversation:
        rendered = conversation.render_message_to_string({"role": "user", "content": " So?"})
    last = [*CONVERSATION[:3], {"role": "user", "content": " So?"}]
    assert rendered == render(gemma_template(), last)


def test_litert_lm_shows_tools_with_it(engine: litert_lm.Engine) -> None:
    def add(first: int) -> int:
        """Adds."""
        return first

    with engine.create_conversation(tools=[add]) as conversation:
        rendered = conversation.render_message_to_string("Hello")
    assert rendered.startswith("<start_of_turn>system\ndef add(\n")
    assert rendered.endswith("<end_of_turn>\n<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n")


# ---------------------------------------------------------------- which one goes into the bundle


def test_without_a_template_ours_is_used(tmp_path: Path) -> None:
    assert bundle_template(tmp_path) == gemma_template()
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert bundle_template(tmp_path) == gemma_template()


def test_googles_own_is_replaced_by_ours(gemma_tokenizer: Path) -> None:
    assert bundle_template(gemma_tokenizer) == gemma_template()


def test_a_format_of_its_own_is_kept(tmp_path: Path) -> None:
    assert bundle_template(checkpoint(tmp_path, CHATML)) == CHATML


def test_of_several_the_default_is_taken(tmp_path: Path) -> None:
    entries = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    assert bundle_template(checkpoint(tmp_path, entries)) == CHATML


def test_a_template_file_comes_before_the_configuration(tmp_path: Path) -> None:
    (checkpoint(tmp_path, "other") / "chat_template.jinja").write_text(CHATML)
    assert bundle_template(tmp_path) == CHATML


@pytest.mark.parametrize(
    "start",
    ["{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}", "{{ 'x' + messages[-1].content }}"],
)
def test_one_that_cannot_render_every_conversation_is_kept(tmp_path: Path, start: str) -> None:
    assert bundle_template(checkpoint(tmp_path, start + CHATML)) == start + CHATML


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "\n{{ messages[0].get('role') }}",
            r"line 2: the method \.get\(\) is unknown .* minijinja; use a filter or an",
        ),
        ("{{ messages[0].role | center(9) }}", "the filter 'center' is unknown to LiteRT-LM's minijinja; use another"),
        ("{{ messages | tojson(indent=2) }}", "an argument of the filter 'tojson' is unknown .*; leave it out"),
        ("{{ 'x' if messages is callable }}", "the test 'callable' is unknown to LiteRT-LM's minijinja; use another"),
        ("{{ lipsum() }}", r"the function lipsum\(\) is unknown to LiteRT-LM's minijinja; do without it"),
        ("{% include 'x' ignore missing %}", "loading another template is unknown .*; put all of it into one"),
        ("\n\n{% generation %}x", "line 3: Encountered unknown tag 'generation'.*; correct chat_template.jinja"),
    ],
)
def test_what_litert_lm_cannot_render_is_refused(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=f"chat template, .*{message}"):
        bundle_template(checkpoint(tmp_path, template))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_an_unreadable_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(ChatTemplateError, match=r"tokenizer_config\.json: unreadable \(.*\); download the file again"):
        bundle_template(tmp_path)


@pytest.mark.parametrize(
    "template", [5, {"default": "{{ messages }}"}, ["{{ messages }}"], [{"name": "default", "template": 5}]]
)
def test_a_template_that_is_no_text(tmp_path: Path, template: object) -> None:
    found = 5 if isinstance(template, list) and isinstance(template[0], dict) else template
    with pytest.raises(ChatTemplateError) as caught:
        bundle_template(checkpoint(tmp_path, template))
    assert str(caught.value) == (
        f"{tmp_path / 'tokenizer_config.json'}: chat_template is {str(found)!r}, expected a text, or a list of named "
        "ones; download the file again"
    )


def test_a_list_without_a_default_is_no_template(tmp_path: Path) -> None:
    assert bundle_template(checkpoint(tmp_path, [{"name": "tool_use", "template": "x"}])) == gemma_template()


def test_templates_are_utf8_wherever_one_lives(tmp_path: Path) -> None:
    """In a process whose locale knows ASCII only."""
    (tmp_path / "chat_template.jinja").write_text("«{{ messages[0].content }}»", "utf-8")
    program = (
        "import sys, pathlib; from gemma_edge.converter.tokenizer.chat_template import bundle_template;"
        "print(ascii(bundle_template(pathlib.Path(sys.argv[1]))))"
    )
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, env=ascii_only, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("'\\xab{{ messages[0].content }}\\xbb'\n", "")


def test_the_list_of_gaps_is_litert_lms(engine: litert_lm.Engine) -> None:
    """Asks the engine about everything Jinja2 has, so that a new version of either shows itself here."""
    environment = jinja2.Environment()
    missing_filters = {name for name in environment.filters if ask(engine, f"{{{{ '{name}' is filter }}}}") != "true"}
    missing_tests = {name for name in environment.tests if ask(engine, f"{{{{ '{name}' is test }}}}") != "true"}
    functions = set(environment.globals) - {"dict", "namespace", "range"}
    assert missing_filters == MISSING_FILTERS
    assert missing_tests == MISSING_TESTS
    assert {name for name in functions if not ask(engine, f"{{{{ {name}() }}}}")} == functions == MISSING_FUNCTIONS


def test_the_methods_work_in_litert_lm_as_in_python(engine: litert_lm.Engine) -> None:
    calls = {
        "endswith": "'abc'.endswith('bc')",
        "items": "{'a': 1}.items() | list | length == 1",
        "lstrip": "' a '.lstrip() == 'a '",
        "replace": "'aba'.replace('a', 'c') == 'cbc'",
        "rstrip": "' a '.rstrip() == ' a'",
        "split": "'a b'.split(' ')[-1] == 'b'",
        "startswith": "'abc'.startswith('ab')",
        "strip": "'xaxa'.strip('x') == 'axa' and '  a '.strip() == 'a'",
    }
    assert set(calls) == METHODS
    for call in calls.values():
        assert jinja2.Template(f"{{{{ {call} }}}}").render() == "True"
        assert ask(engine, f"{{{{ {call} }}}}") == "true"
