"""Prompts with an expected answer: their file, and what counts as right."""

from pathlib import Path

import pytest

from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.measure.tasks import Task, load_tasks, run_tasks
from gemma_edge.runtime.executors.base import ContextOverflowError


def _file(directory: Path, text: str) -> Path:
    path = directory / "prompts.jsonl"
    path.write_text(text)
    return path


def test_tasks_are_read(tmp_path: Path) -> None:
    lines = (
        '{"prompt": "2 + 2?", "expect": "4"}\n\n{"prompt": "As JSON", "keys": ["a"]}\n{"prompt": "x", "json": true}\n'
    )
    assert load_tasks(_file(tmp_path, lines)) == (
        Task("2 + 2?", expect="4"),
        Task("As JSON", json=True, keys=("a",)),
        Task("x", json=True),
    )


def test_a_line_ends_where_json_lines_end(tmp_path: Path) -> None:
    """With a byte order mark, as Windows writes it, and a line separator inside of a text."""
    path = tmp_path / "prompts.jsonl"
    path.write_bytes('\ufeff{"prompt": "a\u2028b", "expect": "c"}\r\n'.encode())
    assert load_tasks(path) == (Task("a\u2028b", expect="c"),)


def test_a_prompt_that_cannot_be_answered_fails_alone() -> None:
    def reply(prompt: str) -> str:
        if prompt == "long":
            raise ContextOverflowError(300, 256)
        return "4"

    long, short = run_tasks([Task("long", expect="4"), Task("short", expect="4")], reply)
    assert (long.answer, short.complaint) == ("", None)
    assert long.complaint is not None
    assert long.complaint.startswith("no answer: context overflow: 300 tokens asked, 256 allowed;")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ('["prompt"]', "line 1: expected an object with prompt and expect, json, keys"),
        ('{"expect": "4"}', "line 1: expected an object with prompt and expect, json, keys"),
        ('{"prompt": "a", "expects": "b"}', "line 1: expected an object with prompt and expect, json, keys"),
        ('{"prompt": "a", "expect": 4}', "line 1: expected a text in expect, true or false in json, a list of texts"),
        ('{"prompt": "a", "json": true, "keys": [1]}', "line 1: expected a text in expect"),
        (
            '{"prompt": "a", "expect": "b", "json": false, "keys": ["c"]}',
            "line 1: keys are looked for in JSON, but",
        ),
        ("[" * 100_000, "line 1: not JSON"),
        ('{"prompt": "a"}', "line 1: says nothing of the answer; add expect or json"),
        ("", "holds no prompts, expected one JSON object a line; add some"),
    ],
)
def test_a_wrong_line_is_refused(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match=r"prompts\.jsonl") as caught:
        load_tasks(_file(tmp_path, line))
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match=r"prompts\.jsonl: cannot be read as UTF-8 text .*; give another file$"):
        load_tasks(tmp_path / "prompts.jsonl")


@pytest.mark.parametrize(
    ("task", "answer", "complaint"),
    [
        (Task("", expect="4"), " 4\n", None),
        (Task("", expect="4"), "Four", "expected '4'"),
        (Task("", json=True), "[1, 2]", None),
        (Task("", json=True), 'Sure!\n```json\n{"a": 1}\n```', None),
        (Task("", json=True), "{'a': 1}", "expected JSON: "),
        (Task("", json=True), '{"a": NaN}', "expected JSON: NaN is no JSON"),
        (Task("", json=True), "[" * 100_000, "expected JSON: "),
        (Task("", json=True, keys=("a", "b")), '{"a": 1, "b": 2}', None),
        (Task("", json=True, keys=("a", "b")), '{"a": 1}', "expected an object with b"),
        (Task("", json=True, keys=("a",)), '["a"]', "expected an object with a"),
    ],
)
def test_answers_are_judged(task: Task, answer: str, complaint: str | None) -> None:
    [result] = run_tasks([task], lambda _prompt: answer)
    assert result.answer == answer
    assert (result.complaint is None) == (complaint is None)
    assert (result.complaint or "").startswith(complaint or "")
