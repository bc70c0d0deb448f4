"""What constrained replies make of JSON schemas, on two small suites laid out as the public ones."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import schema_suite

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tiny-gemma3" / "tokenizer.model"
GROUPS: list[dict[str, Any]] = [
    {
        "description": "a colour and a number",
        "schema": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "green"]}, "n": {"type": "integer", "minimum": 3, "maximum": 9}},
            "required": ["colour", "n"],
            "additionalProperties": False,
        },
        "tests": [
            {"description": "both", "data": {"colour": "red", "n": 4}, "valid": True},
            {"description": "too small", "data": {"colour": "red", "n": 2}, "valid": False},
            {"description": "one", "data": {"colour": "red"}, "valid": False},
        ],
    },
    {
        "description": "exactly one",
        "schema": {"oneOf": [{"type": "integer"}, {"minimum": 2, "type": "number"}]},
        "tests": [
            {"description": "the first", "data": 1, "valid": True},
            {"description": "both", "data": 3, "valid": False},
        ],
    },
    {
        "description": "unique",
        "schema": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 2},
        "tests": [
            {"description": "two", "data": [1, 2], "valid": True},
            {"description": "one twice", "data": [1, 1], "valid": False},
        ],
    },
    {"description": "no grammar", "schema": {"not": {"type": "integer"}}, "tests": []},
]


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str]:
    monkeypatch.setattr(sys, "argv", ["", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        schema_suite.main()
    return done.value.code, capsys.readouterr().out


@pytest.mark.parametrize("layout", ["the test suite", "the bench"])
def test_nothing_invalid_gets_through_and_refusals_are_counted(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if layout == "the bench":
        folder = tmp_path / "maskbench" / "data"
        folder.mkdir(parents=True)
        for index, group in enumerate(GROUPS):
            (folder / f"{index}.json").write_text(json.dumps(group))
    else:
        folder = tmp_path / "tests" / "draft2020-12"
        folder.mkdir(parents=True)
        (folder / "some.json").write_text(json.dumps(GROUPS))
    code, out = run(monkeypatch, capsys, tmp_path, TOKENIZER, "--replies", "2")
    counts = {what: int(number) for number, what in (line.split(maxsplit=1) for line in out.splitlines())}
    assert not code
    assert "INVALID instances given" not in counts
    assert (counts["schemas"], counts["valid instances given"], counts["INVALID instances not given"]) == (4, 3, 4)
    assert sum(count for what, count in counts.items() if what.startswith("schemas refused: ")) == 1
    assert counts["replies"] > 0


def test_a_folder_that_holds_neither_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), str(TOKENIZER)])
    with pytest.raises(SystemExit):
        schema_suite.main()
    assert "neither tests/draft2020-12 nor maskbench/data is there; give a checkout of one" in capsys.readouterr().err
