"""Chat templates in transformers.js and onnxruntime-genai: token ids are transformers', or what differs is named."""

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime_genai
import pytest
import transformers

from gemma_edge.converter.convert import convert
from gemma_edge.converter.tokenizer.chat_template import bundle_template, onnx_template, programs_unlike
from gemma_edge.converter.tokenizer.template_elsewhere import spelled_for_all, unlike
from gemma_edge.converter.tokenizer.template_files import DEFAULT
from gemma_edge.converter.tokenizer.template_reference import Reference
from tests.converter.tokenizer.chat_templates import TEMPLATES
from tests.converter.tokenizer.test_chat_templates_of_fine_tunes import (
    NOW,
    TALKS,
    TOOL_TALKS,
    WEATHER,
    put,
    with_content,
)

SCRIPT = Path(__file__).with_name("chat_templates.mjs")
Json = dict[str, Any]
Renders = Callable[[Sequence[Json]], list[Json]]  # cases of template, messages, tools to text and ids, or an error


@pytest.fixture(scope="module")
def directory(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "model"
    convert("custom-int4", tiny_gemma3, out, format="onnx", context=64, measure=False)
    return out


@pytest.fixture(scope="module", params=["transformers.js", "onnxruntime-genai"])
def program(request: pytest.FixtureRequest, directory: Path) -> tuple[str, Renders]:
    name = str(request.param)
    if name == "onnxruntime-genai":
        tokenizer = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(directory)))
        return name, lambda cases: [by_genai(tokenizer, case) for case in cases]
    module = request.getfixturevalue("transformers_js")

    def in_node(cases: Sequence[Json]) -> list[Json]:
        command = ["node", str(SCRIPT), str(module), str(directory)]
        ran = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=True)
        found: list[Json] = json.loads(ran.stdout)
        return found

    return name, in_node


def by_genai(tokenizer: Any, case: Json) -> Json:
    template, tools = case["template"], case["tools"]
    if isinstance(template, list):
        named = {item["name"]: item["template"] for item in template}
        template = named.get("tool_use" if tools else DEFAULT, named[DEFAULT])
    try:
        text = tokenizer.apply_chat_template(
            json.dumps(case["messages"]), template_str=template, tools=json.dumps(tools) if tools else None
        )
    except Exception as error:  # of a binding: no class of its own
        return {"error": str(error)}
    return {"text": text, "ids": tokenizer.encode(text).tolist()}


@pytest.fixture(scope="module")
def checkpoint(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fine-tune")
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_gemma3 / name).read_bytes())
    return folder


def test_token_ids_are_transformers_or_the_difference_is_named(program: tuple[str, Renders], checkpoint: Path) -> None:
    name, render = program
    cases, expected, owners, named = [], [], [], set()
    for template_name, template in TEMPLATES.items():
        put(checkpoint, template)
        ours = onnx_template(checkpoint)
        shows_tools = bundle_template(checkpoint).shows_tools and not bundle_template(checkpoint).is_gemmas
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        if name in programs_unlike(checkpoint):
            named.add(template_name)
        talks = [(talk, None) for talk in TALKS] + [(talk, [WEATHER, NOW]) for talk in TOOL_TALKS if shows_tools]
        for talk, tools in talks:
            told = with_content(tokenizer, talk, tools)
            if told is None:
                continue
            found = tokenizer.apply_chat_template(told, tools=tools, add_generation_prompt=True)
            expected.append(list(found["input_ids"]))
            cases.append({"template": ours, "messages": told, "tools": tools})
            owners.append(template_name)
    said = render(cases)
    assert len(said) > 440
    unlike_found = {
        owner for owner, ids, answer in zip(owners, expected, said, strict=True) if answer.get("ids") != ids
    }
    assert unlike_found == named
    assert len(named) <= 10


def test_the_converters_report_names_what_is_unlike(tiny_gemma3: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_gemma3, tmp_path / "checkpoint"))
    put(checkpoint, TEMPLATES["with macros and blocks"])
    report = convert("custom-int4", checkpoint, tmp_path / "out", format="onnx", context=64, measure=False)
    assert report.values["notes"] == [
        "transformers.js does not write this chat template's prompts as transformers does (line 3: the statement "
        "'with'); render them elsewhere and give it tokens",
        "onnxruntime-genai does not write this chat template's prompts as transformers does (line 3: the statement "
        "'with'; line 3: the filter 'capitalize'); render them elsewhere and give it tokens",
    ]
    put(checkpoint, TEMPLATES["Zephyr"])
    plain = convert("custom-int4", checkpoint, tmp_path / "plain", format="onnx", context=64, measure=False)
    assert plain.values["notes"] == []
    bundle = convert("custom-int4", checkpoint, tmp_path / "m.litertlm", context=64, measure=False)
    assert bundle.values["notes"] == []


# ---------------------------------------------------------------- what the programs know

SAMPLES: Mapping[str, str] = {  # of filters that take something else than a text
    "abs": "-3 | abs", "attr": "{'k': 1} | attr('k')", "batch": "[1, 2, 3] | batch(2) | list | length",
    "d": "nothing | d('q')", "default": "nothing | default('q')", "dictsort": "({'k': 'v'} | dictsort)[0][1]",
    "first": "['a', 'b'] | first", "float": "('3.5' | float) + 1", "groupby": "[{'k': 1}] | groupby('k') | length",
    "indent": "'a' | indent(2)", "int": "('3' | int) + 1", "items": "({'k': 'v'} | items | list)[0][1]",
    "join": "['a', 'b'] | join(', ')", "last": "['a', 'b'] | last", "length": "['a'] | length",
    "list": "(['a'] | list)[0]", "max": "[1, 2] | max", "min": "[1, 2] | min", "random": "['a'] | random",
    "reject": "(['a', 1] | reject('string') | list)[0]", "replace": "'xa' | replace('x', 'y')",
    "reverse": "(['a', 'b'] | reverse | list)[0]", "round": "2.6 | round | int",
    "select": "(['a', 1] | select('number') | list)[0]",
    "selectattr": "([{'k': 'b', 'v': 'a'}] | selectattr('k', 'equalto', 'b') | list)[0]['v']",
    "rejectattr": "([{'k': 'b', 'v': 'a'}] | rejectattr('k', 'equalto', 'c') | list)[0]['v']",
    "slice": "[1, 2, 3] | slice(2) | list | length", "sort": "(['b', 'a'] | sort)[0]", "sum": "[1, 2] | sum",
    "unique": "['a', 'a'] | unique | list | length", "map": "[{'k': 'v'}] | map(attribute='k') | join",
    "count": "['a'] | count",
}  # fmt: skip
TEXTS = (
    "capitalize center e escape forceescape lower pprint safe string striptags title tojson trim truncate upper "
    "urlencode wordcount wordwrap"
)
METHODS = (
    "capitalize() endswith('x') lower() lstrip() lstrip('x') replace('x','y') rstrip() rstrip('x') split()[0] "
    "split('a')[1] split('b',1)[0] startswith('x') strip() strip('x') title() upper() join(['a','b']) find('b') "
    "count('x') index('b') zfill(9) removeprefix('x') format(1) splitlines()[0] partition('b')[0]"
)
SPELLED = [
    *(f"{{{{ {sample} }}}}" for sample in SAMPLES.values()),
    *(f"{{{{ 'xab x' | {name} }}}}" for name in TEXTS.split()),
    *(f"{{{{ 'y' if 'xab x'.{method} else 'n' }}}}" for method in METHODS.split() if "with('" in method),
    *(f"{{{{ 'xab x'.{method} }}}}" for method in METHODS.split() if "with('" not in method),
    *(f"{{{{ {{'k': 'v'}}.{method}() | list | length }}}}" for method in ("items", "keys", "values")),
    *(f"{{{{ {{'k': 'v'}}.get({arguments}) }}}}" for arguments in ("'k'", "'z', 'd'")),
    *(
        f"{{{{ 'yes' if {value} is {test} else 'no' }}}}"
        for value, test in (
            ("true", "boolean"),
            ("messages", "defined"),
            ("4", "divisibleby(2)"),
            ("1", "eq(1)"),
            ("2", "even"),
            ("false", "false"),
            ("1", "ge(1)"),
            ("1", "in([1])"),
            ("1", "integer"),
            ("[1]", "iterable"),
            ("'a'", "lower"),
            ("{}", "mapping"),
            ("none", "none"),
            ("1", "number"),
            ("1", "odd"),
            ("1", "sameas(1)"),
            ("'a'", "sequence"),
            ("'a'", "string"),
            ("true", "true"),
            ("nothing", "undefined"),
            ("'A'", "upper"),
            ("1.5", "float"),
            ("raise_exception", "callable"),
        )
    ),
    "{% with a=1 %}{{ a }}{% endwith %}",
    "{% filter trim %}x{% endfilter %}",
    "{% set x %}a{% endset %}{{ x }}",
    "{% macro m(b, c='d') %}{{ b ~ c }}{% endmacro %}{{ m('x') }}",
    "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}q{% endcall %}",
    "{% for x in [1, 2, 3] if x > 1 %}{{ loop.index ~ x }}{% else %}none{% endfor %}",
    "{% for x in [] %}a{% else %}none{% endfor %}",
    "{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}",
    "{{ [1, 2, 3][::-1] | join }}{{ 'abc'[1:] }}{{ [1, 2][-1] }}",
    "{% block b %}x{% endblock %}",
    "{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}",
    "{% set a, b = [1, 2] %}{{ a ~ b }}",
    "{{ dict(a=1) | length }}",
    "{{ 'y' if 1 < 2 < 3 else 'n' }}",
    "{{ '%s' % 'a' }}",
    "{{ none }}|{{ true }}",
    "{{ {'a': [1, none, true]} }}",
    "{% for x in messages[0].tool_calls %}a{% endfor %}-",
    "{% for x in messages[0]['tool_calls'] if x.name %}a{% endfor %}-",
    "{{ 'y' if 'b' in messages[0].content else 'n' }}{{ 'y' if 'z' in messages[0]['content'] else 'n' }}",
    "{{ 'y' if 'content' in messages[0] else 'n' }}{{ 'y' if 'z' not in ['a'] else 'n' }}",
    "{% if true %}\n  x\n  {% endif %}\ny\n{# c #}\nz",
    "{% raw %}{{ x }}{% endraw %}",
    "a{% generation %}x{% endgeneration %}",
    "quotes \" ' and \\ backslashes\t\u00e9\n{{ 'end' }}",
    "{{ {'b': 1, 'a': '\u00e9<>'} | tojson }}{{ {'b': 1} | tojson(indent=2) }}",
    "{{ {'b': 1} | tojson(separators=(',', ':')) }}",
    "{{ 'y' if tools is none else 'n' }}{{ 'y' if not tools else 'n' }}",
    "{% for x in [1, 2] %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% set x = {'items': 'v'} %}{{ x.items if x.items is string else 'a method' }}{{ x['items'] }}",
    "{% macro r(n, d) %}{{ n }}{% if d %}{{ r('b', false) }}{% endif %}{{ n }}{% endmacro %}{{ r('a', true) }}",
]


def test_what_differs_is_named_and_nothing_else(program: tuple[str, Renders]) -> None:
    """Behind each template stands what a user says, so that it is one."""
    name, render = program
    sources = [source + "{{ '|' + messages[0]['content'] }}" for source in SPELLED]
    messages = [{"role": "user", "content": "a b"}]
    special = {"bos_token": "<bos>", "eos_token": "<eos>"}
    references = [Reference({DEFAULT: source}, special) for source in sources]
    cases = [{"template": spelled_for_all(s, shows_tools=False), "messages": messages, "tools": None} for s in sources]
    wrong = []
    for source, reference, said in zip(sources, references, render(cases), strict=True):
        is_unlike = said.get("text") != reference.render(messages)
        is_named = name in unlike(reference)
        if is_unlike and not is_named:
            wrong.append(f"{source!r} is not named: {said} for {reference.render(messages)!r}")
        if is_named and not is_unlike:
            wrong.append(f"{source!r} is right, and named: {unlike(reference)[name]}")
    assert not wrong, "\n".join(wrong)
