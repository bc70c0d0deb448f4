"""Calls read here and by litert_lm, which is made to write them: ours are read as they are meant, and so often better.

The kinds are those on which the two differ in the leaderboard's 12,000 calls (tools/bfcl_calls.py); the calls are new.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.bfcl_calls import cases, read_by_litert_lm, read_here, same
from tools.litert_lm_writer import Writer

Calls = list[tuple[str, dict[str, Any]]]
ALIKE: list[tuple[str, Calls]] = [
    (
        'find_train(start="Oslo", end="Rome", seats=2)',
        [("find_train", {"start": "Oslo", "end": "Rome", "seats": 2})],
    ),
    (
        "area(width=2.5, height=-4, exact=True, unit=None)",
        [("area", {"width": 2.5, "height": -4, "exact": True, "unit": None})],
    ),
    (
        'tag(names=["a", "b c"], weights=[1, 2.5], more=[])',
        [("tag", {"names": ["a", "b c"], "weights": [1, 2.5], "more": []})],
    ),
    ('plot(at={"x": 1, "y": [2, 3]}, style={})', [("plot", {"at": {"x": 1, "y": [2, 3]}, "style": {}})]),
    ('first(a=1)\nsecond(b="z")', [("first", {"a": 1}), ("second", {"b": "z"})]),
    ("now()", [("now", {})]),
    ('mail(from="a@b.c")', [("mail", {"from": "a@b.c"})]),
    ("say(text='it is')", [("say", {"text": "it is"})]),
    ('open(path="/a-b/c_d.txt", mode="r+")', [("open", {"path": "/a-b/c_d.txt", "mode": "r+"})]),
]
BETTER_HERE: list[tuple[str, str, Calls]] = [
    ("a module before the name", 'maps.route(to="Rome")', [("maps.route", {"to": "Rome"})]),
    ("two modules", "db.users.count()", [("db.users.count", {})]),
    ("an argument by its place", 'greet("Ann")', [("greet", {"name": "Ann"})]),
    ("a quote in a text", r'say(text="the \"old\" one")', [("say", {"text": 'the "old" one'})]),
    ("a new line in a text", r'say(text="one\ntwo")', [("say", {"text": "one\ntwo"})]),
    ("a path of Windows", r'run(command="dir C:\\Temp")', [("run", {"command": r"dir C:\Temp"})]),
    ("a tuple", 'tag(pair=("a", 1))', [("tag", {"pair": ["a", 1]})]),
    ("a comment", "now()  # in UTC", [("now", {})]),
    ("a result with a name", "t = now()", [("now", {})]),
    ("a dash in the name", 'get-time(zone="CET")', [("get-time", {"zone": "CET"})]),
]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    codes = [code for code, _ in ALIKE] + [code for _, code, _ in BETTER_HERE]
    with Writer(tmp_path_factory.mktemp("writer"), "".join(codes) + "`_\n") as made:
        yield made


@pytest.mark.parametrize(("code", "calls"), ALIKE)
def test_both_read_a_call_alike(writer: Writer, code: str, calls: Calls) -> None:
    assert same(read_here(code, calls), calls)
    assert same(read_by_litert_lm(writer, code), calls)


@pytest.mark.parametrize(("kind", "code", "calls"), BETTER_HERE)
def test_what_only_we_read(writer: Writer, kind: str, code: str, calls: Calls) -> None:
    assert same(read_here(code, calls), calls), kind
    assert not same(read_by_litert_lm(writer, code), calls), f"{kind}: litert_lm reads it, too, so it is no difference"


def test_the_leaderboards_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "BFCL_v4_some.json"
    answers = {"ground_truth": [{"say": {"text": ['a "b"', "c"], "times": [2, ""], "loud": ["", True]}}]}
    turns = {"ground_truth": [["cd(folder='x')", "ls()"], [], ["say(text='it's')"]]}
    path.write_text(json.dumps(answers) + "\n" + json.dumps(turns))
    said = [("say", {"text": 'a "b"', "times": 2})]
    assert list(cases(path)) == [
        ("escaped", r'say(text="a \"b\"", times=2)', said),
        ("not escaped", 'say(text="a "b"", times=2)', said),
        ("Python", "cd(folder='x')\nls()", [("cd", {"folder": "x"}), ("ls", {})]),
    ]
