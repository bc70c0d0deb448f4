"""Names that others gave, on a terminal."""

import io

import pytest
from rich.console import Console

from gemma_edge.converter.printing import as_it_is, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layers.0 größer 重み 👍 [b]", "layers.0 größer 重み 👍 [b]"),
        ("\x1b[2J\r\n\x07", r"\x1b[2J\r\n\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\udcffb", r"a\udcffb"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    screen = io.StringIO()
    Console(file=screen, width=80).print(as_it_is(text), highlight=False, emoji=False)
    assert screen.getvalue() == f"{shown}\n"
