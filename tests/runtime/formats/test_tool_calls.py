"""The comment in which a chat template says how calls are written."""

import jinja2
import pytest

from gemma_edge.runtime.formats.tool_calls import CallFences

BODY = "{{ messages[0].content }}"


@pytest.mark.parametrize(
    "fences",
    [
        CallFences("<tool_call>\n", "\n</tool_call>", "json"),
        CallFences("```tool_code\n", "\n```", "python"),
        CallFences("{# #}", '#}"\\{', "fc"),
        CallFences("\u00e9\u4e2d", "\u2028", "json"),
        CallFences(),
    ],
)
def test_what_is_written_is_read_and_prints_nothing(fences: CallFences) -> None:
    source = fences.comment() + BODY
    assert CallFences.of_template(source) == fences
    assert jinja2.Template(source).render(messages=[{"content": "x"}]) == "x"


@pytest.mark.parametrize(
    "source",
    [
        BODY,
        BODY + CallFences("a", "b", "json").comment(),
        "{# tool calls: {oops} #}" + BODY,
        '{# tool calls: {"start": 1, "end": "b", "notation": "json"} #}' + BODY,
        '{# tool calls: {"start": "a"} #}' + BODY,
        "",
    ],
)
def test_anything_else_says_nothing(source: str) -> None:
    assert CallFences.of_template(source) is None
