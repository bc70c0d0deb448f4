"""What a model writes cannot drive a terminal, and stays what it is anywhere else; any encoding takes any text."""

import io
import os
import pty
import subprocess
import sys

import pytest

from gemma_edge.profiles.terminal import make_printable, say, spelled

SCRIPT = "from gemma_edge.profiles.terminal import say, make_printable; make_printable(); say({text!r})"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("hidden\rshown\b\b", r"hidden\rshown\x08\x08"),
        ("a\tb\nc", "a\tb\nc"),
        ("é 👩‍👧 العربية", "é 👩‍👧 العربية"),
    ],
)
def test_spelled(text: str, shown: str) -> None:
    assert spelled(text) == shown


def test_a_terminal_sees_no_control_codes() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", SCRIPT.format(text="a\x1b[2Jb\x07c")]
    subprocess.run(command, stdout=theirs, check=True)
    os.close(theirs)
    assert os.read(ours, 1000) == rb"a\x1b[2Jb\x07c"
    os.close(ours)


def test_a_pipe_gets_what_was_written() -> None:
    command = [sys.executable, "-c", SCRIPT.format(text="a\x1b[2Jb\x07c")]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"a\x1b[2Jb\x07c"


def test_an_output_in_ascii() -> None:
    """click writes UTF-8 all the same, where a lone surrogate is a question mark; others spell."""
    command = [sys.executable, "-c", SCRIPT.format(text="é 漢 \ud800 ") + "; print('é 漢 \\ud800')"]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.stdout == "é 漢 ? ".encode() + rb"\xe9 \u6f22 \ud800" + b"\n"


def test_outputs_that_are_no_files(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    make_printable()
    say("é")
    assert capsys.readouterr().out == "é"
