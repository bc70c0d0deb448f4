"""Chat templates against litert_lm's own rendering, and the errors of broken ones."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.runtime.text.template import ChatTemplate, TemplateError

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
EXTRA: dict[str, Any] = {
    "s": "  a\u00a0\u001c ",
    "none_": None,
    "yes": True,
    "one": 1.0,
    "huge": 1e30,
    "three": 3,
    "list_": ["b", 1, None, {"z": 1, "a": [True]}],
    "dict_": {"z": 1, "a": "x", "k": {"y": 2, "b": 1}},
    "text": "\u00e9\u2028\x07\"'\\/<b>&",
}
TEMPLATES = [
    "{{ bos_token }}|{{ eos_token }}|{{ add_generation_prompt }}|{{ tools is defined }}",
    "[{{ s | trim }}]{{ s | lstrip }}|{{ s | rstrip }}|{{ 'xxaxx' | trim('x') }}",
    "{{ none_ }}|{{ yes }}|{{ one }}|{{ huge }}|{{ three }}|{{ not yes }}",
    "{{ list_ }}|{{ dict_ }}|{{ (1, 'a') }}|{{ list_ | string }}|{{ yes | string }}",
    "{{ list_ | tojson }}|{{ dict_ | tojson }}|{{ huge | tojson }}|{{ text | tojson }}|{{ text }}",
    "{{ missing }}|{{ missing is none }}|{{ none_ is none }}|{{ missing is defined }}|{{ messages[0].foo is none }}",
    "{% for k, v in dict_.items() %}{{ k }}={{ v }};{% endfor %}{% for k in dict_ %}{{ k }};{% endfor %}",
    "line\n  {% if yes %}\nx\n  {% endif %}\nend\n",
    "{%- set ns = namespace(a=1) -%}{% for x in [1, 2] %}{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }}",
    "{{ list_ | first }}|{{ list_ | last }}|{{ ['a', 'b'] | join(', ') }}|{{ 'AbC' | lower | capitalize }}",
    "{{ 'aXb' | replace('X', '-') }}|{{ dict_ | dictsort }}|{{ 5 / 2 }}|{{ 5 // 2 }}|{{ list_ | length }}",
    "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}{{ 'a' in 'abc' }}{{ 'z' in dict_ }}",
    "{{ none_ | default('D') }}|{{ none_ | default('D', true) }}|{{ missing | default('D') }}",
    "{% for x in list_ %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{% endfor %}{{ messages[1:] }}",
    "{{ '<b>&' }}|{{ '<b>' | e }}|{{ 'a' ~ 1 }}",
]


@pytest.fixture(scope="module")
def google(tiny_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import litert_lm

    cache = str(tmp_path_factory.mktemp("litert_lm"))
    with litert_lm.Engine(str(tiny_bundle("gemma3n", "int4")), litert_lm.Backend.CPU(), cache_dir=cache) as engine:
        yield engine


@pytest.mark.parametrize("source", TEMPLATES)
def test_jinja2_prints_what_minijinja_prints(google: Any, source: str) -> None:
    with google.create_conversation(chat_template=source, extra_context=EXTRA) as conversation:
        expected = conversation.render_message_to_string("hi")
    assert expected  # litert_lm renders an error as nothing
    assert ChatTemplate(source).render(MESSAGES, None, True, EXTRA) == expected


def test_the_date() -> None:
    today = datetime.now(UTC)
    rendered = ChatTemplate("{{ strftime_now('%Y') }}").render([], None, False, {})
    assert rendered in (f"{today:%Y}", f"{datetime.now(UTC):%Y}")


def test_tools_are_undefined_where_there_are_none() -> None:
    template = ChatTemplate("{{ tools is defined }}{% if tools %}{{ tools | length }}{% endif %}")
    assert template.render([], None, False, {}) == "false"
    assert template.render([], ["def f()"], False, {}) == "true1"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ missing.attribute }}", "'missing' is undefined"),
        ("{{ 'a' + 1 }}", 'can only concatenate str (not "int") to str'),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe."),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
    ],
)
def test_a_template_that_refuses(source: str, reason: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render(MESSAGES, None, True, {})
    assert str(caught.value) == (
        f"the chat template refuses these messages: {reason}; change their order or form, or pass another chat_template"
    )


def test_a_template_with_an_error() -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("ok\n{% if %}")
    assert str(caught.value) == (
        "the chat template has an error in line 2: Expected an expression, got 'end of statement block'; "
        "pass another chat_template or convert the model again"
    )
