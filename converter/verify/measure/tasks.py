"""Checks on prompts of the user's own: what the bundle answers, through its template and its stop tokens.

A file of JSON, one object a line:

    {"prompt": "What is 2 + 2? Answer with the number.", "expect": "4"}
    {"prompt": "Give Ada Lovelace's name and birth year as JSON.", "json": true, "keys": ["name", "born"]}

expect: the answer must be this, whitespace at both ends aside. json: the answer, or the one fenced block in it, must be
valid JSON; keys: and an object that has these.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import read_plain_text

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
_FIELDS = {"prompt", "expect", "json", "keys"}


@dataclass(frozen=True)
class Task:
    """A prompt and what its answer must be: a text, or JSON with certain keys."""

    prompt: str
    expect: str | None = None
    json: bool = False
    keys: tuple[str, ...] = ()

    def complaint(self, answer: str) -> str | None:
        """What is wrong with an answer; None where nothing is."""
        if self.expect is not None and answer.strip() != self.expect.strip():
            return f"expected {self.expect.strip()!r}"
        if self.json:
            fenced = _FENCED.findall(answer)
            try:
                value = json.loads(fenced[0] if len(fenced) == 1 else answer, parse_constant=_no_constant)
            except (ValueError, RecursionError) as error:
                return f"expected JSON: {error}"
            missing = [key for key in self.keys if not isinstance(value, dict) or key not in value]
            if missing:
                return f"expected an object with {', '.join(missing)}"
        return None


@dataclass(frozen=True)
class TaskResult:
    """One task done. complaint: None where the answer is as it must be."""

    prompt: str
    answer: str
    complaint: str | None


def load_tasks(path: Path) -> tuple[Task, ...]:
    """Read the file. Raises VerifyError naming the line."""
    try:
        lines = read_plain_text(path, "utf-8-sig").split("\n")  # splitlines() also cuts inside of texts, at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise VerifyError(f"{path}: cannot be read as UTF-8 text ({error}); give another file") from error
    tasks = tuple(_task(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip())
    if not tasks:
        raise VerifyError(f"{path}: holds no prompts, expected one JSON object a line; add some")
    return tasks


def _task(where: str, line: str) -> Task:
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise VerifyError(f"{where}: not JSON ({error}); write one object a line") from None
    if not isinstance(values, dict) or not isinstance(values.get("prompt"), str) or values.keys() - _FIELDS:
        raise VerifyError(f"{where}: expected an object with prompt and {', '.join(sorted(_FIELDS - {'prompt'}))}")
    expect, keys = values.get("expect"), values.get("keys", [])
    is_json = values.get("json", bool(keys))
    if not isinstance(expect, str | None) or not isinstance(is_json, bool) or not _are_strings(keys):
        raise VerifyError(f"{where}: expected a text in expect, true or false in json, a list of texts in keys")
    if keys and not is_json:
        raise VerifyError(f"{where}: keys are looked for in JSON, but json is false; leave one of them out")
    if expect is None and not is_json:
        raise VerifyError(f"{where}: says nothing of the answer; add expect or json")
    return Task(values["prompt"], expect, is_json, tuple(keys))


def _no_constant(name: str) -> None:
    """Python reads NaN and Infinity; JSON has neither."""
    raise ValueError(f"{name} is no JSON")


def _are_strings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def run_tasks(tasks: Sequence[Task], reply: Callable[[str], str]) -> tuple[TaskResult, ...]:
    """Ask every prompt. One that the bundle cannot answer, such as a longer one than its context, is not passed."""
    return tuple(_run(task, reply) for task in tasks)


def _run(task: Task, reply: Callable[[str], str]) -> TaskResult:
    try:
        answer = reply(task.prompt)
    except GemmaEdgeError as error:
        return TaskResult(task.prompt, "", f"no answer: {error}")
    return TaskResult(task.prompt, answer, task.complaint(answer))
