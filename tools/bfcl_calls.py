"""Whether the calls of the Berkeley Function Calling Leaderboard are read back as they are meant.

    python -m tools.bfcl_calls DIRECTORY

DIRECTORY: possible_answer/ of the leaderboard's data. Every ground truth is rendered as Gemma is shown calls, put into
a fence and parsed again; each difference is printed.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from gemma_edge.runtime.chat.calls.python_syntax import PYTHON_SYNTAX
from gemma_edge.runtime.chat.calls.syntax import ReplyParser, joined


def calls_of(line: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, arguments) of each call: of several right values the first, "" where an argument may be left out."""
    calls = []
    for truth in line["ground_truth"]:
        if not isinstance(truth, dict):
            continue  # of several turns: Python text of programs that are run
        for name, values in truth.items():
            calls.append((name, {key: options[0] for key, options in values.items() if options and options[0] != ""}))
    return calls


def written(calls: list[tuple[str, dict[str, Any]]]) -> str:
    code = "\n".join(
        f"{name}({', '.join(f'{key}={PYTHON_SYNTAX.value(value)}' for key, value in arguments.items())})"
        for name, arguments in calls
    )
    return f"```tool_code\n{code}\n```"


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(directory: Path) -> None:
    """Print each call that is read back otherwise, then how many were."""
    counts: Counter[str] = Counter()
    for path in sorted(directory.glob("*.json")):
        for text in path.read_text("utf-8").splitlines():
            calls = calls_of(json.loads(text))
            if not calls:
                continue
            reader = ReplyParser(PYTHON_SYNTAX, {name: tuple(arguments) for name, arguments in calls})
            texts, found = joined([*reader.push(written(calls)), *reader.finish()])
            is_right = [(call.name, dict(call.arguments)) for call in found] == calls and not texts
            counts[f"{path.stem}: {'read back' if is_right else 'OTHERWISE'}"] += len(calls)
            if not is_right:
                click.echo(f"{path.stem}: {written(calls)!r} -> {found} {texts}")
    for what, count in counts.items():
        click.echo(f"{count:6} {what}")


if __name__ == "__main__":
    main()
