"""What a chat template is given, seen through a template that prints it, here and in litert_lm.

Twice: for Gemma's own metadata, and for a bundle whose metadata says FunctionGemma.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.runtime.chat.calls.python_syntax import PYTHON_SYNTAX
from gemma_edge.runtime.chat.messages import Contents, Message, ToolCall
from gemma_edge.runtime.chat.options import ThinkingConfig
from gemma_edge.runtime.chat.prompt import Preface, PromptRenderer, as_received
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.formats.litertlm import Bundle, SectionKind, SectionSpec
from gemma_edge.runtime.text.template import ChatTemplate
from tests.bundles import write_bundle

PRINTER = (
    "{{ messages | tojson }}|{{ tools | tojson if tools is defined else 'none' }}|"
    "{{ enable_thinking is defined }}|{{ x | default('no x') | tojson }}"
)


def as_function_gemma(source: Path, path: Path) -> None:
    """The same bundle with another model type in its metadata."""
    bundle = Bundle.open(source)
    metadata = bundle.metadata()
    metadata.llm_model_type.function_gemma.SetInParent()
    data = [
        metadata.SerializeToString() if section.kind == SectionKind.LLM_METADATA else bundle.read(section)
        for section in bundle.sections
    ]
    specs = [
        SectionSpec(section.kind, len(content), section.model_type)
        for section, content in zip(bundle.sections, data, strict=True)
    ]
    write_bundle(path, specs, data)


@pytest.fixture(scope="module", params=["gemma3n", "function_gemma"])
def bundle(
    request: pytest.FixtureRequest, tiny_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    source = tiny_bundle("gemma3n", "int4")
    if request.param == "gemma3n":
        return source
    path: Path = tmp_path_factory.mktemp("bundle") / "function_gemma.litertlm"
    as_function_gemma(source, path)
    return path


@pytest.fixture(scope="module")
def engine(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    cache = str(tmp_path_factory.mktemp("cache"))
    with Engine(str(bundle), Backend.CPU(thread_count=1), cache_dir=cache) as engine:
        yield engine


@pytest.fixture(scope="module")
def google(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import litert_lm

    cache = str(tmp_path_factory.mktemp("litert_lm"))
    with litert_lm.Engine(str(bundle), litert_lm.Backend.CPU(), cache_dir=cache) as engine:
        yield engine


def get_weather(city: str, days: int = 3, tags: list[str] = (), ratio: float = 1.0, ok: bool = True) -> None:  # type: ignore[assignment]
    """Gets the weather.

    Args:
        city: The city, e.g. "Paris".
        days: How many days.
    """


def no_arguments() -> None: ...


VALUES = {"b": [True, None, "x'y z", 1.5, 1e30, -3], "a": 1, "c": {"type": "Bar", "z": 1.0, "a": {}}}
CALL = {"type": "function", "id": "7", "function": {"name": "f", "arguments": VALUES}}
CASES: list[tuple[Any, dict[str, Any]]] = [
    ("hi", {}),
    ({"role": "user", "zed": 1, "content": "hi"}, {}),
    ({"role": "user", "content": [{"type": "text", "text": "a", "b": {"y": 1, "x": 2}}]}, {}),
    ({"role": "user", "content": {"type": "text", "text": "a"}}, {}),
    ("hi", {"system_message": "Sys"}),
    (
        "hi",
        {
            "system_message": "Sys",
            "messages": [
                {"role": "system", "content": "m0"},
                {"zrole": 1, "role": "user", "content": "m1"},
                {"role": "assistant", "content": "m2", "tool_calls": [CALL]},
            ],
        },
    ),
    ("hi", {"extra_context": {"x": {"z": [1, 2.5, None, True, "\u00e9\"\n<>&'"], "a": 1}}}),
    ("hi", {"tools": [get_weather, no_arguments]}),
    ({"role": "assistant", "content": "c", "tool_calls": [CALL, {"function": {"name": "g", "arguments": {}}}]}, {}),
    ({"role": "assistant", "tool_calls": [{"function": {"name": "g"}}]}, {}),
    ({"role": "tool", "content": [{"type": "tool_response", "name": "f", "response": VALUES}]}, {}),
    ({"role": "tool", "content": [{"type": "tool_response", "name": "f", "response": "text"}, {"k": [1]}]}, {}),
    ({"role": "tool", "content": [{"tool_response": {"name": "f", "value": VALUES}}]}, {}),
    ({"role": "tool", "content": {"k": VALUES}}, {}),
    ({"role": "tool", "content": "plain"}, {}),
]


@pytest.mark.parametrize(("message", "options"), CASES)
def test_the_template_is_given_what_litert_lms_is(
    engine: Engine, google: Any, message: Any, options: dict[str, Any]
) -> None:
    with google.create_conversation(chat_template=PRINTER, **options) as theirs:
        expected = theirs.render_message_to_string(message)
    assert expected
    with engine.create_conversation(chat_template=PRINTER, **options) as ours:
        assert ours.render_message_to_string(message) == expected


def test_quotes_and_new_lines_are_escaped_where_litert_lm_lets_text_out(engine: Engine, google: Any) -> None:
    """FunctionGemma's notation has marks of its own around text."""
    call = {"function": {"name": "f", "arguments": {"a": 'x"y\\z\n'}}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": [{"type": "tool_response", "name": "f", "response": {'"k"': "a\n```"}}]},
    ]
    template = (
        "{% for c in messages[-1].tool_calls %}{{ c.function.arguments.a }}{% endfor %}"
        "{{ messages[-1].content[0].text }}"
    )
    shown = []
    for either in (engine, google):
        with either.create_conversation(chat_template=template) as conversation:
            shown.append([conversation.render_message_to_string(message) for message in messages])
    is_python = engine.text_model.tool_syntax is PYTHON_SYNTAX
    assert shown[0] == ([r'"x\"y\\z\n"', r'{"\"k\"": "a\n```"}'] if is_python else shown[1])


@pytest.mark.parametrize("wanted", [True, False])
def test_thinking_wins_over_the_context(engine: Engine, google: Any, wanted: bool) -> None:
    import litert_lm

    options: dict[str, Any] = {
        "chat_template": "{{ enable_thinking }}",
        "extra_context": {"enable_thinking": not wanted},
    }
    theirs_wanted = litert_lm.ThinkingConfig(enable_thinking=wanted)
    with (
        google.create_conversation(thinking_config=theirs_wanted, **options) as theirs,
        engine.create_conversation(thinking_config=ThinkingConfig(wanted), **options) as ours,
    ):
        shown = ours.render_message_to_string("hi")
        assert shown == theirs.render_message_to_string("hi") == str(wanted).lower()


def test_thinking_and_message_objects(engine: Engine, google: Any) -> None:
    import litert_lm

    said = litert_lm.Message.model(litert_lm.Contents.of("a"), [litert_lm.ToolCall("f", {"x": 1})])
    with google.create_conversation(
        chat_template=PRINTER, messages=[said], thinking_config=litert_lm.ThinkingConfig()
    ) as theirs:
        expected = theirs.render_message_to_string(litert_lm.Contents.of("b", "c"))
    said_here = Message.model(Contents.of("a"), [ToolCall("f", {"x": 1})])
    with engine.create_conversation(
        chat_template=PRINTER, messages=[said_here], thinking_config=ThinkingConfig()
    ) as ours:
        assert ours.render_message_to_string(Contents.of("b", "c")) == expected


def test_a_turn_is_what_the_longer_text_has_more() -> None:
    template = ChatTemplate(
        "{% for m in messages %}[{{ m.content[0].text }}]{% endfor %}{{ '>' if add_generation_prompt }}"
    )
    renderer = PromptRenderer(template, PYTHON_SYNTAX, Preface([{"role": "system", "content": "s"}]))
    said = [{"role": "user", "content": text} for text in ("a", "b", "c")]
    assert renderer.turn([], said[:1], {}) == "[s][a]>"
    assert renderer.turn(said[:1], said[1:], {}) == "[b][c]>"


def test_the_keys_of_a_message_are_put_in_order() -> None:
    message = {"role": "user", "content": [{"text": "t", "b": {"y": 1, "x": (2,)}}], "a": None}
    assert repr(as_received(message)) == (
        "{'a': None, 'content': [{'b': {'x': [2], 'y': 1}, 'text': 't'}], 'role': 'user'}"
    )
