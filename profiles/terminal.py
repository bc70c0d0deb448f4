"""Text of models, and of files that others made, on its way to a terminal."""

import io
import re
import sys
from typing import Final

import click

# All that a terminal obeys but line ends and tabs: C0, DEL and C1, which holds a one-byte ESC [.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def spelled(text: str) -> str:
    """With control codes spelled out: ESC [2J, which clears a screen, becomes \\\\x1b[2J."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def say(text: str) -> None:
    """Print what a model wrote, without a line end: as it is into files and pipes, without control codes elsewhere."""
    click.echo(spelled(text) if sys.stdout.isatty() else text, nl=False, color=True)  # color: nothing is stripped


def make_printable() -> None:
    """From now on, what an output's encoding lacks is spelled as Python would: \\\\xe9. No text is an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
