"""The signatures that engine/ is compiled against, held against what was read in LiteRT-LM's own Kotlin files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def contract(repository: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((repository / "android_demo/ci/stubs/litertlm/contract.json").read_text())
    return values


@pytest.fixture(scope="module")
def stubs(repository: Path) -> str:
    folder = repository / "android_demo/ci/stubs/litertlm"
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.kt")))


def enclosed(text: str, at: int) -> str:
    """What stands between the bracket at `at` and the one that closes it."""
    pairs = {"(": ")", "{": "}"}
    opening, closing = text[at], pairs[text[at]]
    depth = 0
    for end in range(at, len(text)):
        depth += (text[end] == opening) - (text[end] == closing)
        if depth == 0:
            return text[at + 1 : end]
    raise AssertionError(text[at : at + 40])


def parameters(text: str) -> list[str]:
    """Of a parenthesis: "name: Type = default" each, without `val`."""
    found, depth, part = [], 0, ""
    for character in text + ",":
        depth += (character in "(<[") - (character in ")>]")
        if character == "," and depth == 0:
            found.append(" ".join(part.split()).removeprefix("val "))
            part = ""
        else:
            part += character
    return [parameter for parameter in found if parameter]


def body_of(stubs: str, name: str) -> tuple[str, str]:
    """The parameters of a class's constructor, and what stands in its braces."""
    match = re.search(rf"\b(?:class|interface) {name}\b(?: (?:internal|private) constructor)?", stubs)
    assert match, name
    rest = stubs[match.end() :]
    constructor = enclosed(rest, 0) if rest.startswith("(") else ""
    after = rest[len(constructor) + 2 :] if rest.startswith("(") else rest
    line_end = after.index("\n")
    brace = after.find("{", 0, line_end)
    return constructor, enclosed(after, brace) if brace >= 0 else ""


def test_constructors(contract: dict[str, Any], stubs: str) -> None:
    for name, expected in contract["constructors"].items():
        assert parameters(body_of(stubs, name)[0]) == expected, name


def test_what_constructors_refuse(contract: dict[str, Any], stubs: str, repository: Path) -> None:
    script = (repository / "android_demo/ci/engine/litertlm/Scripted.kt").read_text()
    checked = {name: body_of(stubs, name)[1] for name in contract["constructors"] if name not in ("CPU", "NPU")}
    found = {name: re.findall(r"require\((.*)\)$", body, re.MULTILINE) for name, body in checked.items()}
    assert {name: checks for name, checks in found.items() if checks} == contract["checks"]
    for name in ("SamplerConfig", "ConversationConfig"):
        assert re.findall(r"require\((.*)\)$", body_of(script, name)[1], re.MULTILINE) == contract["checks"][name]


def test_functions(contract: dict[str, Any], stubs: str) -> None:
    for owner, functions in contract["functions"].items():
        body = body_of(stubs, owner)[1]
        found: dict[str, list[list[str]]] = {}
        for match in re.finditer(r"\bfun (\w+)(?=\()", body):
            if match[1] != "setNativeMinLogSeverity":  # of the companion
                found.setdefault(match[1], []).append(parameters(enclosed(body, match.end())))
        expected = {
            name: [[p for item in form for p in (contract["..."] if item == "..." else [item])] for form in forms]
            for name, forms in functions.items()
        }
        assert {name: sorted(forms) for name, forms in found.items()} == {
            name: sorted(forms) for name, forms in expected.items()
        }


def test_values_and_functions_of_no_class(contract: dict[str, Any], stubs: str) -> None:
    for name, expected in contract["values"].items():
        body = body_of(stubs, name)[1]
        assert parameters(body.split(";")[0]) == expected, name
    for name, forms in contract["top level"].items():
        found = [parameters(enclosed(stubs, m.end())) for m in re.finditer(rf"^fun {name}(?=\()", stubs, re.MULTILINE)]
        assert found == forms, name


def test_the_engine_uses_nothing_that_was_not_read(contract: dict[str, Any], repository: Path) -> None:
    source = (repository / "android_demo/engine/src/main/kotlin/org/gemmaedge/engine/LiteRtChatEngine.kt").read_text()
    used = set(re.findall(r"^import com\.google\.ai\.edge\.litertlm\.(\w+)$", source, re.MULTILINE))
    read = {*contract["constructors"], *contract["functions"], *contract["top level"]}
    assert used - read == {"Backend", "Content", "ExperimentalApi"}  # of which there are only kinds
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in contract["commits"].values())
