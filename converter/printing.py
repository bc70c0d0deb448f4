"""Text of files that others made, on its way to a terminal."""

from rich.markup import escape


def printable(text: str) -> str:
    """`text` in one line, with what a terminal would obey or not show spelled out: "\\x1b[2J" becomes "\\\\x1b[2J"."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def as_it_is(text: str) -> str:
    """The same for rich, which would take [brackets] for markup."""
    return escape(printable(text))
