"""Text of files that others made, on its way to a terminal."""

from collections.abc import Iterable

from rich.markup import escape


def printable(text: str) -> str:
    """`text` in one line, with what a terminal would obey or not show spelled out: "\\x1b[2J" becomes "\\\\x1b[2J"."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def as_it_is(text: str) -> str:
    """The same for rich, which would take [brackets] for markup."""
    return escape(printable(text))


def listed(names: Iterable[str]) -> str:
    """The first three and how many more there are: "a, b, c and 2 more"."""
    first = list(names)
    more = f" and {len(first) - 3} more" if len(first) > 3 else ""
    return f"{', '.join(first[:3])}{more}"


def choices(names: Iterable[str]) -> str:
    """All of them: "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
