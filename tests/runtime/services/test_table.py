"""Every line of runtime/SERVICES.md runs, on a tiny model that sees and hears."""

import ast
import asyncio
import inspect
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gemma_edge.converter.cli import convert_main, main
from tests.converter.checkpoint.test_lora import ADAPTERS, train

SYSTEMS = 19
TEXT = (Path(__file__).resolve().parents[3] / "runtime" / "SERVICES.md").read_text(encoding="utf-8")
PREFACE = "\n".join(re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL))
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", TEXT, flags=re.MULTILINE)
LINES = [(int(number), line) for number, _, here, _ in ROWS for line in re.findall(r"`([^`]+)`", here)]
COMMANDS = {"convert": convert_main, "gemma-edge": main}


def run(line: str, names: dict[str, Any]) -> Any:
    """A command, or a line of Python as `python -m asyncio` takes it."""
    program, *arguments = shlex.split(line)
    if program in COMMANDS:
        done = CliRunner().invoke(COMMANDS[program], arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output
    found = eval(compile(line, "SERVICES.md", "eval", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    return asyncio.run(found) if inspect.iscoroutine(found) else found


@pytest.fixture(scope="module")
def names(
    tmp_path_factory: pytest.TempPathFactory,
    towers_bundle: Path,
    tiny_gemma3: Path,
    picture: Path,
    recording: Path,
) -> Iterator[dict[str, Any]]:
    """What the lines go on from, in a folder that has the files they name."""
    folder = tmp_path_factory.mktemp("table")
    shutil.copy(towers_bundle, folder / "e2b.litertlm")
    shutil.copy(picture, folder / "photo.jpg")
    shutil.copy(recording, folder / "meeting.wav")
    shutil.copytree(tiny_gemma3, folder / "gemma-3n")
    train(tiny_gemma3, folder / "gemma-custom-model", ADAPTERS["the documents' fine-tune"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        found: dict[str, Any] = {}
        exec(PREFACE, found)
        yield found
        found["mobile"].close()


def test_all_of_them_are_there() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, SYSTEMS + 1))
    assert {number for number, _ in LINES} == set(range(1, SYSTEMS + 1))


# Of some lines, what has to be true of what they give. Replies are a random model's.
IS_RIGHT: dict[int, Callable[[Any], bool]] = {
    2: lambda reply: isinstance(reply, str),
    6: lambda reply: set(reply) in ({"response"}, {"function_name", "parameters"}),
    9: lambda output: "merged: gemma-custom-model, rank 16, alpha 32, into" in output,
    12: lambda timed: timed["tokens_generated"] > 0,
    16: lambda figure: figure > 0,
}


@pytest.mark.parametrize(("number", "line"), LINES, ids=[f"{number}: {line[:40]}" for number, line in LINES])
def test_the_line_runs(number: int, line: str, names: dict[str, Any]) -> None:
    found = run(line, names)
    assert IS_RIGHT.get(number, lambda _: True)(found)


def test_what_the_services_say(names: dict[str, Any]) -> None:
    """More than that they run."""
    assert run("await service.health_check()", names)["status"] == "healthy"
    assert run("secure.secure_generate(chat, 'alice')", names)["success"]
    assert run("secure.get_usage_statistics('alice')", names)["requests_last_hour"] >= 1
    assert run("monitoring.measure_performance(chat)", names).success
    assert json.loads(Path("metrics.json").read_text())["model_name"] == "e2b.litertlm"
