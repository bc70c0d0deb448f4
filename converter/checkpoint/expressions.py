"""Regular expressions that someone else wrote, matched in bounded time.

Python's `re` goes back and tries again: `(a+)+$` against thirty letters takes minutes. Here an expression is parsed by
`re`, and a text is read once for each of its parts: a part is what takes a place in the text to the places where it may
end. Groups capture nothing, so greedy and lazy repeats are one.
"""

import re
from functools import lru_cache
from typing import Any, Final

_LONGEST: Final = 4096  # of an expression, and of a text
_PLAIN: Final = re.compile(r"[\w.\\-]*")  # nothing to repeat, nothing to choose from

# The parser of `re` itself. Private, but the same from Python 3.11 to 3.14; typeshed does not know it.
_parser: Any = re._parser  # type: ignore[attr-defined]
_compiler: Any = re._compiler  # type: ignore[attr-defined]
_constants: Any = re._constants  # type: ignore[attr-defined]
_CHARACTERS: Final = (_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN)
_REPEATS: Final = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)


class ExpressionError(ValueError):
    """Not a regular expression, or one that cannot be matched in bounded time; the message says why."""


@lru_cache(maxsize=4096)
def expression(source: str) -> "Expression":
    """A compiled one. Raises ExpressionError."""
    return Expression(source)


class Expression:
    """One regular expression, for whole texts."""

    def __init__(self, source: str) -> None:
        if len(source) > _LONGEST:
            raise ExpressionError(f"{len(source)} characters, at most {_LONGEST} are read")
        self._source = source
        self._plain: re.Pattern[str] | None = None
        try:
            if _PLAIN.fullmatch(source):
                self._plain = re.compile(source)
            self._tree = _parser.parse(source)
        except (re.error, RecursionError, OverflowError) as error:
            raise ExpressionError(f"{error}" or "too deep") from error
        self._flags: int = self._tree.state.flags
        self._characters: dict[int, re.Pattern[str]] = {}
        self._check(self._tree)

    def matches(self, text: str) -> bool:
        """As re.fullmatch. Raises ExpressionError: the text is too long."""
        if len(text) > _LONGEST:
            raise ExpressionError(f"a text of {len(text)} characters, at most {_LONGEST} are matched")
        if self._plain is not None:
            return self._plain.fullmatch(text) is not None
        return len(text) in _Reading(self, text).sequence(self._tree, frozenset([0]), self._flags)

    def ends(self, text: str) -> bool:
        """As re.fullmatch of `(.*\\.)?(...)`: the text, or its last parts, where dots divide it."""
        if self._plain is not None:
            parts = text.split(".")
            return any(self.matches(".".join(parts[first:])) for first in range(len(parts)))
        return expression(rf"(.*\.)?({self._source})").matches(text)

    def character(self, item: Any, flags: int) -> "re.Pattern[str]":
        """A part of one character, compiled."""
        found = self._characters.get(id(item))
        if found is None:
            part = _parser.SubPattern(_parser.State(), [item])
            part.state.flags, part.state.str = flags, ""
            found = self._characters[id(item)] = _compiler.compile(part, flags)
        return found

    def _check(self, tree: Any) -> None:
        for operator, value in tree:
            known = (*_CHARACTERS, *_REPEATS, _constants.BRANCH, _constants.SUBPATTERN, _constants.AT)
            if operator not in (*known, _constants.ASSERT, _constants.ASSERT_NOT):
                raise ExpressionError(f"{str(operator).lower()} cannot be matched in bounded time")
            if operator in (_constants.ASSERT, _constants.ASSERT_NOT) and value[0] < 0:
                least, most = value[1].getwidth()
                if least != most:
                    raise ExpressionError("looking behind needs a fixed width")
            for part in _parts(operator, value):
                self._check(part)


def _parts(operator: Any, value: Any) -> list[Any]:
    if operator in _REPEATS:
        return [value[2]]
    if operator is _constants.BRANCH:
        return list(value[1])
    if operator is _constants.SUBPATTERN:
        return [value[3]]
    return [value[1]] if operator in (_constants.ASSERT, _constants.ASSERT_NOT) else []


class _Reading:
    """One text. Places are numbers of characters before them."""

    def __init__(self, expression: Expression, text: str) -> None:
        self._expression, self._text = expression, text
        self._known: dict[tuple[int, int], frozenset[int]] = {}

    def sequence(self, tree: Any, starts: frozenset[int], flags: int) -> frozenset[int]:
        """Where parts that follow each other may end."""
        for item in tree:
            starts = frozenset().union(*(self._ends(item, at, flags) for at in starts))
        return starts

    def _ends(self, item: Any, at: int, flags: int) -> frozenset[int]:
        key = (id(item), at)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._read(item, at, flags)
        return found

    def _read(self, item: Any, at: int, flags: int) -> frozenset[int]:
        operator, value = item
        here = frozenset([at])
        if operator in _CHARACTERS:
            matched = self._expression.character(item, flags).match(self._text[at : at + 1])
            return frozenset([at + 1]) if matched and at < len(self._text) else frozenset()
        if operator in _REPEATS:
            return self._repeated(value[2], value[0], value[1], here, flags)
        if operator is _constants.BRANCH:
            return frozenset().union(*(self.sequence(branch, here, flags) for branch in value[1]))
        if operator is _constants.SUBPATTERN:
            return self.sequence(value[3], here, (flags | value[1]) & ~value[2])
        if operator is _constants.AT:
            return here if self._is_at(value, at, flags) else frozenset()
        direction, tree = value
        if direction > 0:
            is_there = bool(self.sequence(tree, here, flags))
        else:  # what is looked for behind has one width
            before = at - tree.getwidth()[0]
            is_there = before >= 0 and at in self.sequence(tree, frozenset([before]), flags)
        return here if is_there is (operator is _constants.ASSERT) else frozenset()

    def _repeated(self, tree: Any, least: int, most: int, starts: frozenset[int], flags: int) -> frozenset[int]:
        """Beyond as many turns as there are characters, some turn is empty, and one more changes nothing."""
        turns = len(self._text) + 1
        current = starts
        for _ in range(min(least, turns)):
            current = self.sequence(tree, current, flags)
        found = current
        for _ in range(min(most - least, turns)):
            current = self.sequence(tree, current, flags) - found
            if not current:
                break
            found |= current
        return found

    def _is_at(self, where: Any, at: int, flags: int) -> bool:
        names = {
            _constants.AT_BEGINNING: "^",
            _constants.AT_BEGINNING_STRING: r"\A",
            _constants.AT_END: "$",
            _constants.AT_END_STRING: r"\Z",
            _constants.AT_BOUNDARY: r"\b",
            _constants.AT_NON_BOUNDARY: r"\B",
        }
        return re.compile(names[where], flags & (re.MULTILINE | re.ASCII)).match(self._text, at) is not None
