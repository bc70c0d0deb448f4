"""Whether the calls of the Berkeley Function Calling Leaderboard are read as they are meant, here and by litert_lm.

    python -m tools.bfcl_calls DIRECTORY [--here-only] [--every 3]

DIRECTORY: bfcl_eval/data/possible_answer of a checkout of ShishirPatil/gorilla. Every ground truth is put into a fence,
written in three ways: as our template shows calls, as litert_lm's writes them (it escapes nothing), and, of several
turns, as the leaderboard itself has them, in Python. litert_lm is made to write each of them (litert_lm_writer.py).
Every case that the two read differently is printed, and so is what is not read back here.
"""

import ast
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import click

from gemma_edge.runtime.chat.calls.python_syntax import PYTHON_SYNTAX
from gemma_edge.runtime.chat.calls.syntax import ReplyParser, joined
from tools.litert_lm_writer import TooLongError, Writer

Calls = list[tuple[str, dict[str, Any]]]


def cases(path: Path) -> Iterator[tuple[str, str, Calls]]:
    """(way of writing, code, calls) of every line of a file."""
    for text in path.read_text("utf-8").splitlines():
        line = json.loads(text)["ground_truth"]
        if all(isinstance(truth, dict) for truth in line):
            calls = [call for truth in line for call in _answers(truth)]
            yield "escaped", _written(calls, PYTHON_SYNTAX.value), calls
            yield "not escaped", _written(calls, _unescaped), calls
            continue
        for turn in line:
            if isinstance(turn, list) and any(turn):
                with suppress(SyntaxError):  # one has an apostrophe in its quotes
                    yield "Python", "\n".join(turn), [_python(code) for code in turn if code]


def _answers(truth: dict[str, Any]) -> Calls:
    """Of several right values the first; "" stands where an argument may be left out."""
    return [
        (name, {key: options[0] for key, options in values.items() if options and options[0] != ""})
        for name, values in truth.items()
    ]


def _python(code: str) -> tuple[str, dict[str, Any]]:
    [statement] = ast.parse(code).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    call = statement.value
    positional = {f"argument {index}": ast.literal_eval(value) for index, value in enumerate(call.args)}
    return ast.unparse(call.func), positional | {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}


def _written(calls: Calls, value: Any) -> str:
    return "\n".join(
        f"{name}({', '.join(f'{key}={value(item)}' for key, item in arguments.items())})" for name, arguments in calls
    )


def _unescaped(value: Any) -> str:
    """As LiteRT-LM writes values (runtime/components/tool_use/python_tool_format_utils.cc)."""
    match value:
        case str():
            return f'"{value}"'
        case list():
            return f"[{', '.join(map(_unescaped, value))}]"
        case dict():
            return "{" + ", ".join(f'"{key}": {_unescaped(item)}' for key, item in value.items()) + "}"
    return str(PYTHON_SYNTAX.value(value))


def _fenced(code: str) -> str:
    return f"```tool_code\n{code}\n```"


def read_here(code: str, calls: Calls) -> Any:
    """What our parser makes of a fence with this code."""
    reader = ReplyParser(PYTHON_SYNTAX, {name: tuple(arguments) for name, arguments in calls})
    texts, found = joined([*reader.push(_fenced(code)), *reader.finish()])
    return [(call.name, dict(call.arguments)) for call in found] if not texts else f"text: {texts}"


def read_by_litert_lm(writer: Writer, code: str) -> Any:
    """What litert_lm makes of it."""
    message = writer.written(_fenced(code))
    if message is None:
        return "the message fails"
    if "tool_calls" not in message:
        return f"text: {message.get('content')}"
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]


def same(found: Any, calls: Calls) -> bool:
    """Equal, types included: 1 is not 1.0, nor True."""
    return not isinstance(found, str) and json.dumps(found) == json.dumps(calls)


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--here-only", is_flag=True, help="Do not ask litert_lm.")
@click.option("--every", "step", default=1, show_default=True, help="Of so many cases one, spread over all.")
def main(directory: Path, here_only: bool, step: int) -> None:
    """Print each case that is read differently, then how many were read in which way."""
    every = [(path.stem, *case) for path in sorted(directory.glob("*.json")) for case in cases(path)][::step]
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        writer = None
        if not here_only:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            writer = stack.enter_context(Writer(folder, _fenced("".join(code for _, _, code, _ in every))))
        for name, way, code, calls in every:
            here = read_here(code, calls)
            verdict = "right here" if same(here, calls) else "OTHERWISE HERE"
            if writer is not None:
                try:
                    theirs = read_by_litert_lm(writer, code)
                except TooLongError:
                    verdict += ", too long to ask litert_lm"
                else:
                    verdict += ", right" if same(theirs, calls) else ", otherwise"
                    verdict += " in litert_lm"
            else:
                theirs = calls
            counts[f"{way}: {verdict}"] += len(calls)
            if not same(here, calls) or not same(theirs, calls):
                said = "right" if same(here, calls) else here
                print(f"{name}, {way}: {code!r}\n    here {said}\n    theirs {theirs}")
    for what, count in sorted(counts.items()):
        print(f"{count:6} calls {what}")


if __name__ == "__main__":
    main()
