"""Calls as Gemma writes them.

The expected values were read off litert_lm 0.18.1, forced to write each text by a regular expression: with
automatic_tool_calling=False its reply shows what it parsed. Beyond it: escapes, what it fails on, and fences that it
takes for text.
"""

import json
import random
from typing import Any

import pytest

from gemma_edge.runtime.chat.calls.function_gemma import FUNCTION_GEMMA_SYNTAX
from gemma_edge.runtime.chat.calls.python_syntax import PYTHON_SYNTAX
from gemma_edge.runtime.chat.calls.syntax import Call, Chunk, Mistake, ReplyParser, ToolSyntax, joined

S, E = "<start_function_call>", "<end_function_call>"


def fenced(code: str) -> str:
    return f"```tool_code\n{code}\n```"


PYTHON: list[tuple[str, list[str], list[tuple[str, dict[str, Any]]]]] = [
    ("hello there", ["hello there"], []),
    ("", [], []),
    (fenced('get_weather(city="Paris")'), [], [("get_weather", {"city": "Paris"})]),
    (
        "Sure.\n" + fenced('get_weather(city="Paris", days=3)') + "\nok",
        ["Sure.\n", "\nok"],
        [("get_weather", {"city": "Paris", "days": 3})],
    ),
    (
        fenced('f(a=1, b=2.5, c=True, d=None, e=[1,"x"], g={"k": 1}, h=Foo(z=1), i=-3)\ng()'),
        [],
        [
            (
                "f",
                {
                    "a": 1,
                    "b": 2.5,
                    "c": True,
                    "d": None,
                    "e": [1, "x"],
                    "g": {"k": 1},
                    "h": {"__type__": "Foo", "z": 1},
                    "i": -3,
                },
            ),
            ("g", {}),
        ],
    ),
    (fenced('[f(a=1), g(b="x")]'), [], [("f", {"a": 1}), ("g", {"b": "x"})]),
    (fenced("print(f(a=1))\nprint(g())"), [], [("f", {"a": 1}), ("g", {})]),
    (fenced('f(a="it\'s \\"q\\" \\n z", b=\'s\')'), [], [("f", {"a": 'it\'s "q" \n z', "b": "s"})]),
    (fenced('f(a="x\ny", b="")'), [], [("f", {"a": "x\ny", "b": ""})]),
    (fenced("\nf( a = 1 ,b=[ ],)\n\ng(a=1); h()"), [], [("f", {"a": 1, "b": []}), ("g", {"a": 1}), ("h", {})]),
    (fenced("f(a=1)") + "a" + fenced("g(b=2)"), ["a"], [("f", {"a": 1}), ("g", {"b": 2})]),
    ("```tool_code\nf(a=1)", [], [("f", {"a": 1})]),  # never closed
    ("```tool_code f(a=1)```", [], [("f", {"a": 1})]),
    ("```tool_code\nf(a=1)``` ok", [" ok"], [("f", {"a": 1})]),
    ("```tool_code\nf(a=1)\n``", [], [("f", {"a": 1})]),
    (fenced('f(a="```", b=1)'), [], [("f", {"a": "```", "b": 1})]),
    ("```tool_code```", ["```tool_code```"], []),
    ("```tool_codes\nf(a=1)\n```", ["```tool_codes\nf(a=1)\n```"], []),
    ("```python\nf(a=1)\n```", ["```python\nf(a=1)\n```"], []),
]

FUNCTION_GEMMA: list[tuple[str, list[str], list[tuple[str, dict[str, Any]]]]] = [
    (
        f'{S}call:f{{a:1,b:<escape>x "y" {{z<escape>,c:[1,true,null,{{k:<escape>v<escape>}}],d:-2.5}}{E}',
        [],
        [("f", {"a": 1, "b": 'x "y" {z', "c": [1, True, None, {"k": "v"}], "d": -2.5})],
    ),
    (f"hi {S}call:f{{}}{E}<start_function_response>", ["hi ", "<start_function_response>"], [("f", {})]),
    (f"{S}call:f{E}{S}call:g{{a:2}}{E} end", [" end"], [("f", {}), ("g", {"a": 2})]),
    (f"{S}call:f{{a:1", [f"{S}call:f{{a:1"], []),
    (f"{S}call:f{{a:1}}", [], [("f", {"a": 1})]),  # never closed
    (f"{S}call:f{{a:.5,b:+3}}{E}", [], [("f", {"a": 0.5, "b": 3})]),
    (f"{S}{E}", [], []),
    (f"{S}call:f{{a:1,a:2}}{E}", [], [("f", {"a": 1})]),
    (f"{S} call:f{{ a : 1 }} {E}", [], [("f", {"a": 1})]),
    (fenced("f(a=1)"), [fenced("f(a=1)")], []),
]


def parse_reply(reply: str, syntax: ToolSyntax) -> tuple[list[str], list[Call]]:
    parser = ReplyParser(syntax, {})
    return joined([*parser.push(reply), *parser.finish()])


CASES = [(PYTHON_SYNTAX, *case) for case in PYTHON] + [(FUNCTION_GEMMA_SYNTAX, *case) for case in FUNCTION_GEMMA]


@pytest.mark.parametrize(("syntax", "reply", "texts", "calls"), CASES)
def test_replies(syntax: ToolSyntax, reply: str, texts: list[str], calls: list[tuple[str, dict[str, Any]]]) -> None:
    found_texts, found_calls = parse_reply(reply, syntax)
    assert found_texts == texts
    assert found_calls == [Call(*call) for call in calls]
    # 1 == True and 1 == 1.0 in Python: compare what is written too.
    assert json.dumps([call.to_json() for call in found_calls]) == json.dumps([Call(*c).to_json() for c in calls])


TOOLS = {"f": ("x", "y"), "get-weather": ("city",)}


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        (r'f(x="a\nb")', [("f", {"x": "a\nb"})]),
        (r'f(x="say \"hi\"", y="\u00e9\t")', [("f", {"x": 'say "hi"', "y": "\u00e9\t"})]),
        (r'f(x="C:\Users\new", y="\d+\.")', [("f", {"x": r"C:\Users\new", "y": r"\d+\."})]),
        (r'f(x="dir D:\\ && echo", y="a\\putty \"b\"")', [("f", {"x": "dir D:\\ && echo", "y": 'a\\putty "b"'})]),
        (r'f(x=r"\d\n", y="a\\b")', [("f", {"x": r"\d\n", "y": r"a\b"})]),
        ("f(x='''a\n\"b\"''')", [("f", {"x": 'a\n"b"'})]),
        ('f("Paris")', [("f", {"x": "Paris"})]),
        ('f("Paris", 3)', [("f", {"x": "Paris", "y": 3})]),
        ('f("Paris", y=3)', [("f", {"x": "Paris", "y": 3})]),
        ('f(x=("a", "b"), y={1, 2})', [("f", {"x": ["a", "b"], "y": [1, 2]})]),
        ("f(x=\"a\" 'b')", [("f", {"x": "ab"})]),
        ("f(x=f'plain')", [("f", {"x": "plain"})]),
        ('# it\'s "here"\nf(x=1)  # one', [("f", {"x": 1})]),
        ("r = f(x=1)\nq: dict = f(y=2)", [("f", {"x": 1}), ("f", {"y": 2})]),
        ("import os\nr = await f(x=1)", [("f", {"x": 1})]),
        ("r = f(x=1)\nprint(r)", [("f", {"x": 1})]),
        ("r: dict = f(x=1)\nq = f(y=2)\nprint('both:', r, q)\nr", [("f", {"x": 1}), ("f", {"y": 2})]),
        ("r = f(x=1)\nprint(f(y=2))", [("f", {"x": 1}), ("f", {"y": 2})]),
        ("print(default_api.f(x=1))", [("f", {"x": 1})]),
        ("print(f(x=1), f(y=2))", [("f", {"x": 1}), ("f", {"y": 2})]),
        ("f(x=true, y=null)", [("f", {"x": True, "y": None})]),
        ("f(x=.5, y=+3)", [("f", {"x": 0.5, "y": 3})]),
        ("f(x=1_000, y=-0x10)", [("f", {"x": 1000, "y": -16})]),
        ("f(x=Unit.CELSIUS)", [("f", {"x": "CELSIUS"})]),
        ("f(**{'x': 1})", [("f", {"x": 1})]),
        ("f(x={1: 2, None: 3} if 0 else 1)", None),
        ("f(x={1: 2, 'b': 3})", [("f", {"x": {"1": 2, "b": 3}})]),
        ('get-weather(city="Bath")', [("get-weather", {"city": "Bath"})]),
        ('f(from="a", class="b", in=1)', [("f", {"from": "a", "class": "b", "in": 1})]),
        ('f(x="from = 1, a-b(c)")', [("f", {"x": "from = 1, a-b(c)"})]),
        ("  f(x=1)\n  f(y=2)", [("f", {"x": 1}), ("f", {"y": 2})]),
        ('{"name": "f", "arguments": {"x": null, "y": "a\\/b"}}', [("f", {"x": None, "y": "a/b"})]),
        ('[{"name": "f", "parameters": {"x": 1}}, {"name": "f"}]', [("f", {"x": 1}), ("f", {})]),
        ('{"function": {"name": "f", "arguments": "{\\"x\\": 1}"}}', [("f", {"x": 1})]),
        ('{"name": "f", "args": {}}\n{"function": "f", "arguments": {"x": 1}}', [("f", {}), ("f", {"x": 1})]),
    ],
)
def test_calls_as_models_write_them(code: str, calls: list[tuple[str, dict[str, Any]]] | None) -> None:
    parser = ReplyParser(PYTHON_SYNTAX, TOOLS)
    chunks = [*parser.push(fenced(code)), *parser.finish()]
    if calls is None:
        assert [type(chunk) for chunk in chunks] == [Mistake]
    else:
        assert joined(chunks) == ([], [Call(*call) for call in calls])


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("f(a=", "line 1: '(' was never closed"),
        ("", "there is no call in it"),
        ("# f()", "there is no call in it"),
        ("x = 1", "1 is no call"),
        ("f", "f is no call"),
        ("r = f(x=1)\nprint(q)", "q is no call"),
        ("r = f(x=1)\nf(y=r)", "r is no value; write the value itself"),
        ("f(x=city)", "city is no value; write the value itself"),
        ("f(x=1+2)", "1 + 2 is no value; write the value itself"),
        ("f(x=f'{city}')", "f'{city}' is no value; write the value itself"),
        ("f(x=date(2026, 1))", "date(2026, 1) is no value; write the value itself"),
        ("f(x=1e999)", "1e309 is no value; write the value itself"),
        ("f(x=1, x=2)", "argument 'x' is given twice"),
        ("f(1, x=2)", "argument x of f is given twice"),
        ("f(1, 2, 3)", "f takes 2 arguments, 3 were given"),
        ("g(1)", "there is no tool g"),
        ("f(**x)", "x is no value; write the value itself"),
        ("f(**[1])", "**[1] is no dictionary"),
        ("f(x={**{}})", "** is no key of a dictionary; write text"),
        ("f(x={(1,): 2})", "(1,) is no key of a dictionary; write text"),
        ("for x in y:\n    f(x=1)", "line 1: only calls are run here, no For"),
        ("f()()", "f() is no name of a function"),
        ("f(x=" + "[" * 5000 + "]" * 5000 + ")", "line 1: too many nested parentheses"),
        ("f(x=" + "1+" * 20000 + "1)", None),
        ('{"arguments": {}}', "a call in JSON has a name and arguments"),
        (
            '{"name": "f", "arguments": [1]}',
            "the arguments of the call of 'f' are [1], expected a JSON object; send one",
        ),
    ],
)
def test_what_is_wrong_with_a_call_is_said_in_words_for_the_model(code: str, error: str | None) -> None:
    """litert_lm 0.18.1 fails the whole message here, or shows the fence."""
    parser = ReplyParser(PYTHON_SYNTAX, TOOLS)
    (chunk,) = [*parser.push(fenced(code)), *parser.finish()]
    assert isinstance(chunk, Mistake)
    assert chunk.text == fenced(code)
    assert chunk.error == error or (error is None and len(chunk.error) < 100)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("call:f{a:1,}", "at '}': a name expected"),
        ("call:f{a:x}", "at 'x}': true|false|null expected"),
        ("f{a:1}", "at 'f{a:1}': call:NAME{...} expected"),
        ("call:{a:1}", "at '{a:1}': a name expected"),
        ("call:f[1]", "at '[1]': call:NAME{...} expected"),
        ('call:f{a:"x"}', "at '\"x\"}': true|false|null expected"),
    ],
)
def test_mistakes_in_function_gemmas_notation(code: str, error: str) -> None:
    parser = ReplyParser(FUNCTION_GEMMA_SYNTAX, {})
    assert [*parser.push(f"{S}{code}{E} ok"), *parser.finish()] == [Mistake(f"{S}{code}{E}", error), " ok"]


@pytest.mark.parametrize(("syntax", "reply", "texts", "calls"), CASES)
def test_streaming_gives_the_same_and_holds_back_no_more_than_a_fence(
    syntax: ToolSyntax, reply: str, texts: list[str], calls: list[tuple[str, dict[str, Any]]]
) -> None:
    rng = random.Random(len(reply))
    for _ in range(20):
        parser = ReplyParser(syntax, {})
        chunks: list[Chunk] = []
        at = 0
        while at < len(reply):
            size = rng.randint(1, 7)
            chunks += parser.push(reply[at : at + size])
            at += size
        chunks += parser.finish()
        found_texts, found_calls = joined(chunks)
        assert "".join(found_texts) == "".join(texts)
        assert found_calls == [Call(*c) for c in calls]


def test_text_is_passed_on_at_once() -> None:
    parser = ReplyParser(PYTHON_SYNTAX, {})
    assert list(parser.push("Well, ")) == ["Well, "]
    assert list(parser.push("a `word` and ``")) == ["a `word` and "]
    assert list(parser.push("x")) == ["``x"]


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Gets the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city."},
                "days": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "raw": {"type": "array"},
                "box": {"type": "object"},
                "any": {},
            },
            "required": ["city", "tags"],
        },
    },
}


def test_declarations() -> None:
    assert PYTHON_SYNTAX.declare(TOOL) == (
        "def get_weather(\n    city: str,\n    days: int | None = None,\n    tags: list[str],\n"
        "    raw: list[Any] | None = None,\n    box: dict | None = None,\n    any: Any | None = None,\n) -> dict:\n"
        '  """Gets the weather.\n\n  Args:\n    city: The city.\n    days    tags    raw    box    any  """\n'
    )
    assert PYTHON_SYNTAX.declare({"name": "now"}) == "def now() -> dict:\n"
    assert FUNCTION_GEMMA_SYNTAX.declare(TOOL) == (
        "declaration:get_weather{description:<escape>Gets the weather.<escape>,parameters:{type:<escape>OBJECT<escape>,"
        "properties:{city:{type:<escape>STRING<escape>,description:<escape>The city.<escape>},"
        "days:{type:<escape>INTEGER<escape>},tags:{type:<escape>ARRAY<escape>,items:{type:<escape>STRING<escape>}},"
        "raw:{type:<escape>ARRAY<escape>},box:{type:<escape>OBJECT<escape>},any:{}},"
        "required:[<escape>city<escape>,<escape>tags<escape>]}}"
    )


@pytest.mark.parametrize("syntax", [PYTHON_SYNTAX, FUNCTION_GEMMA_SYNTAX])
@pytest.mark.parametrize(
    "value", [None, True, 3, -2.5, "a b", 'a "b" \\n\n', [], {}, [1, ["x", None]], {"k": {"l": [False]}}]
)
def test_a_value_is_read_back_as_it_was_written(syntax: ToolSyntax, value: Any) -> None:
    call = {PYTHON_SYNTAX: "f(a={})", FUNCTION_GEMMA_SYNTAX: "call:f{{a:{}}}"}[syntax]
    assert syntax.parse(call.format(syntax.value(value)))[0].arguments == {"a": value}


@pytest.mark.parametrize(
    ("part", "python", "function_gemma"),
    [
        ({"type": "tool_response", "name": "f", "response": {"b": 1}}, '{"b": 1}', "f{b:1}"),
        (
            {"type": "tool_response", "name": "f", "response": "x"},
            '"x"',
            "f{type:<escape>tool_response<escape>,response:<escape>x<escape>}",
        ),
        ({"tool_response": {"name": "f", "value": {"b": 1}}}, '{"name": "f", "value": {"b": 1}}', "f{b:1}"),
        ({"b": [None]}, '{"b": [None]}', "{b:[null]}"),
        ({"k": 'a "b"\n```'}, r'{"k": "a \"b\"\n```"}', '{k:<escape>a "b"\n```<escape>}'),
        (
            {"response": {"type": "a (b", "z": 1}},
            '{"type": "a (b", "z": 1}',
            "{response:{type:<escape>a (b<escape>,z:1}}",
        ),
        ({"response": {"type": "Foo", "z": 1.0}}, "Foo(z=1.0)", "{response:{type:<escape>Foo<escape>,z:1.0}}"),
    ],
)
def test_responses(part: dict[str, Any], python: str, function_gemma: str) -> None:
    assert PYTHON_SYNTAX.response(part) == python
    assert FUNCTION_GEMMA_SYNTAX.response(part) == function_gemma
