"""Patterns of a content policy: a small part of the usual regular expressions, read into a tree.

Every pattern matches a bounded number of characters, so that a stream holds back a bounded part of a reply, and the
tree can also be spelled as "what may yet become a match" (`prefix`). Both spellings are RE2's, which never backtracks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.serve.guard.folding import folded_character

MOST_CHARACTERS = 256  # that a match may have
WORD = r"\p{L}\p{N}\p{M}_"
NOT_WORD = f"[^{WORD}]"
_CLASSES = {"d": r"\p{Nd}", "w": WORD, "s": r"\x{20}"}
_ENUMERATED = 512  # characters of a range that are folded one by one
_MOST_NESTED = 32
_SPECIAL = ".^$*+?{}[]()|\\"


class PatternError(GemmaEdgeError, ValueError):
    """A pattern that cannot be used. Says where in it."""

    def __init__(self, pattern: str, place: int, what: str) -> None:
        super().__init__(f"pattern {pattern!r}, character {place + 1}: {what}")


@dataclass(frozen=True)
class Chars:
    """One character of a class, in RE2's spelling."""

    re2: str


@dataclass(frozen=True)
class Seq:
    """One after the other."""

    nodes: tuple["Node", ...]


@dataclass(frozen=True)
class Alt:
    """One of several."""

    nodes: tuple["Node", ...]


@dataclass(frozen=True)
class Rep:
    """Between `low` and `high` times."""

    node: "Node"
    low: int
    high: int


@dataclass(frozen=True)
class Boundary:
    """Where a word begins or ends."""


_SPACE = Chars(_CLASSES["s"])

Node: TypeAlias = Chars | Seq | Alt | Rep | Boundary


@dataclass(frozen=True)
class Phrase:
    """What is looked for. lead, trail: whether something other than a letter must stand before, after it."""

    body: Node
    lead: bool = False
    trail: bool = False


def spelled(node: Node) -> str:
    """As RE2 reads it."""
    match node:
        case Chars(re2):
            return re2
        case Seq(nodes):
            return "".join(map(spelled, nodes))
        case Alt(nodes):
            return f"(?:{'|'.join(map(spelled, nodes))})"
        case Rep(inner, low, high):
            return f"(?:{spelled(inner)}){{{low},{high}}}"
        case Boundary():
            raise AssertionError("taken out by `phrases`")


def prefix(node: Node) -> str:
    """Everything that a match may begin with, the empty text and the whole match included."""
    match node:
        case Chars(re2):
            return f"(?:{re2})?"
        case Seq(nodes):
            rest = ""
            for each in reversed(nodes):
                rest = f"(?:{prefix(each)}|{spelled(each)}{rest})" if rest else prefix(each)
            return rest
        case Alt(nodes):
            return f"(?:{'|'.join(map(prefix, nodes))})"
        case Rep(inner, _, high):
            return f"(?:{spelled(inner)}){{0,{high - 1}}}{prefix(inner)}"
        case Boundary():
            raise AssertionError("taken out by `phrases`")


def widths(node: Node) -> tuple[int, int]:
    """The fewest and the most characters of a match."""
    match node:
        case Chars():
            return 1, 1
        case Seq(nodes):
            pairs = [widths(each) for each in nodes]
            return sum(low for low, _ in pairs), sum(high for _, high in pairs)
        case Alt(nodes):
            pairs = [widths(each) for each in nodes]
            return min(low for low, _ in pairs), max(high for _, high in pairs)
        case Rep(inner, low, high):
            fewest, most = widths(inner)
            return fewest * low, most * high
        case Boundary():
            return 0, 0


def phrases(pattern: str, *, accents: bool = True) -> list[Phrase]:
    """What a pattern looks for. Raises PatternError: not in the part of the language that is read, or too long."""
    reader = _Reader(pattern, accents)
    found = list(_phrases(reader.whole(), pattern))
    for phrase in found:
        fewest, most = widths(phrase.body)
        if fewest == 0:
            raise PatternError(pattern, 0, "matches the empty text; leave something that must be there")
        if most > MOST_CHARACTERS:
            raise PatternError(
                pattern, 0, f"matches up to {most} characters, expected at most {MOST_CHARACTERS}; lower its counts"
            )
    return found


def _phrases(node: Node, pattern: str) -> Iterator[Phrase]:
    if isinstance(node, Alt):
        for each in node.nodes:
            yield from _phrases(each, pattern)
        return
    nodes = node.nodes if isinstance(node, Seq) else (node,)
    if len(nodes) == 1 and isinstance(nodes[0], Alt | Seq):
        yield from _phrases(nodes[0], pattern)
        return
    lead, trail = bool(nodes) and nodes[0] == Boundary(), len(nodes) > 1 and nodes[-1] == Boundary()
    body = Seq(nodes[lead : len(nodes) - trail])
    if _has_boundary(body):
        raise PatternError(
            pattern, 0, r"\b stands inside, expected at the beginning or end of the pattern or of one of its branches"
        )
    yield Phrase(body, lead, trail)


def _has_boundary(node: Node) -> bool:
    match node:
        case Boundary():
            return True
        case Seq(nodes) | Alt(nodes):
            return any(map(_has_boundary, nodes))
        case Rep(inner):
            return _has_boundary(inner)
        case Chars():
            return False


def literal(text: str, *, accents: bool = True) -> Seq:
    """A text as it is, in any spelling that folds to the same."""
    nodes: list[Node] = []
    for character in text:
        _add(nodes, _character(character, accents))
    return Seq(tuple(nodes))


def _add(nodes: list[Node], found: Node) -> None:
    """White space in a row is one: so it is in the text that is searched."""
    for node in found.nodes if isinstance(found, Seq) else (found,):
        if not (nodes and node == nodes[-1] == _SPACE):
            nodes.append(node)


def _character(character: str, accents: bool) -> Node:
    nodes = tuple(Chars(_escaped(each)) for each in folded_character(character, accents=accents))
    return nodes[0] if len(nodes) == 1 else Seq(nodes)


def _escaped(character: str) -> str:
    return f"\\x{{{ord(character):x}}}"


class _Reader:
    """One pass over a pattern."""

    def __init__(self, pattern: str, accents: bool) -> None:
        self._pattern = pattern
        self._accents = accents
        self._place = self._depth = 0

    def whole(self) -> Node:
        node = self._alternatives()
        if self._place < len(self._pattern):
            raise self._wrong("a ) without its (")
        return node

    def _wrong(self, what: str) -> PatternError:
        return PatternError(self._pattern, min(self._place, len(self._pattern) - 1) if self._pattern else 0, what)

    def _next(self) -> str:
        return self._pattern[self._place : self._place + 1]

    def _took(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._place)
        self._place += len(text) * found
        return found

    def _alternatives(self) -> Node:
        found = [self._sequence()]
        while self._took("|"):
            found.append(self._sequence())
        return found[0] if len(found) == 1 else Alt(tuple(found))

    def _sequence(self) -> Node:
        nodes: list[Node] = []
        while self._next() not in ("", "|", ")"):
            atom = self._atom()
            quantified = self._quantified(atom)
            if quantified is atom:
                _add(nodes, atom)
            else:
                nodes.append(quantified)
        return Seq(tuple(nodes))

    def _quantified(self, atom: Node) -> Node:
        begin = self._place
        if self._next() in ("*", "+"):
            raise self._wrong(f'"{self._next()}" has no upper bound; write {{0,40}} or {{1,40}}')
        if self._took("?"):
            low, high = 0, 1
        elif self._took("{"):
            low, high = self._counts()
        else:
            return atom
        if self._next() in ("?", "+", "*", "{"):
            raise self._wrong("a second quantifier; put the first with what it counts into (...)")
        if atom == Boundary() or (low > 1 and atom == _SPACE):
            self._place = begin
            raise self._wrong(r"counts what cannot repeat: \b, or white space, of which a run is read as one space")
        return Rep(atom, low, high)

    def _counts(self) -> tuple[int, int]:
        text, closed, _ = self._pattern[self._place :].partition("}")
        low, comma, high = text.partition(",")
        if not closed or not all(each.isascii() and each.isdecimal() for each in (low, high or low)):
            raise self._wrong("expected {count} or {fewest,most}")
        if comma and not high:
            raise self._wrong("has no upper bound; write {fewest,most}")
        fewest, most = int(low[:6]), int((high or low)[:6])
        if not 0 <= fewest <= most or not 1 <= most <= MOST_CHARACTERS:
            raise self._wrong(f"counts {fewest} to {most}, expected an ascending range within 0 to {MOST_CHARACTERS}")
        self._place += len(text) + 1
        return fewest, most

    def _atom(self) -> Node:
        if self._took("("):
            return self._group()
        if self._took("["):
            return self._class()
        if self._took("."):
            return Chars(".")
        if self._took("\\"):
            return self._escape()
        if (character := self._next()) in _SPECIAL:
            meant = "text has no lines here" if character in "^$" else "write a backslash before it"
            raise self._wrong(f'"{character}" cannot stand here; {meant}')
        self._place += 1
        return _character(character, self._accents)

    def _group(self) -> Node:
        if self._next() == "?" and not self._took("?:"):
            raise self._wrong("expected (...) or (?:...); look-around and flags are not read (case never counts)")
        self._depth += 1
        if self._depth > _MOST_NESTED:
            raise self._wrong(f"more than {_MOST_NESTED} groups inside each other; take some out")
        node = self._alternatives()
        if not self._took(")"):
            raise self._wrong("a ( without its )")
        self._depth -= 1
        return Seq((node,))

    def _escape(self) -> Node:
        character = self._next()
        self._place += 1
        if character == "b":
            return Boundary()
        if character == "s":
            return _SPACE
        if character in ("d", "w"):
            return Chars(f"[{_CLASSES[character]}]")
        if character in ("D", "W", "S"):
            return Chars(f"[^{_CLASSES[character.lower()]}]")
        return _character(self._literal(character), self._accents)

    def _literal(self, escape: str) -> str:
        """The character that a backslash and `escape` mean."""
        if escape and escape in "nrtfv":
            return " "
        if not escape or escape.isalnum():
            self._place -= 1
            raise self._wrong(f"\\{escape} is not read; known are \\b \\d \\w \\s \\D \\W \\S and escaped punctuation")
        return escape

    def _class(self) -> Node:
        is_negated = self._took("^")
        members: list[str] = []
        several: list[Node] = []  # a letter that folds to more than one character
        begin = self._place
        while self._place == begin or self._next() != "]":
            if not self._next():
                raise self._wrong("a [ without its ]")
            self._member(members, several)
        self._place += 1
        if is_negated and several:
            raise self._wrong("[^...] names a letter with an accent or a ligature; name what may stand there instead")
        one: list[Node] = [Chars(f"[{'^' if is_negated else ''}{''.join(members)}]")] if members else []
        found = one + several
        if not found:
            raise self._wrong("[...] names only characters that nobody sees, which are not read")
        return found[0] if len(found) == 1 else Alt(tuple(found))

    def _member(self, members: list[str], several: list[Node]) -> None:
        if self._took("\\"):
            character = self._next()
            self._place += 1
            if character in _CLASSES:
                members.append(_CLASSES[character])
                return
            first = self._literal(character)
        else:
            first = self._next()
            self._place += 1
        last = first
        if self._next() == "-" and self._pattern[self._place + 1 : self._place + 2] not in ("]", ""):
            self._place += 1
            last = self._next()
            self._place += 1
            if last == "\\":
                last = self._literal(self._next())
                self._place += 1
            if last < first:
                raise self._wrong(f"the range {first}-{last} runs backwards")
        if ord(last) - ord(first) >= _ENUMERATED:
            members.append(f"{_escaped(first)}-{_escaped(last)}")
            return
        for code in range(ord(first), ord(last) + 1):
            match _character(chr(code), self._accents):
                case Chars(re2):
                    members.append(re2)
                case Seq(nodes) if nodes:
                    several.append(Seq(nodes))
