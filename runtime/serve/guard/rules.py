"""What must not be said, made ready to be looked for: each rule's words and patterns as expressions of RE2.

RE2 takes time in proportion to the text, whatever the pattern, and memory that is bounded beforehand.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.serve.guard.pattern import (
    MOST_CHARACTERS,
    NOT_WORD,
    Alt,
    Phrase,
    literal,
    phrases,
    prefix,
    spelled,
)

_OWN_WORDS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")
_TOGETHER = 200  # phrases in one expression: more need more memory than RE2 is given
RE2_BYTES = 8 << 20  # the most that one expression may take
OUTSIDE = "\n"  # stands before and after a text, so that a word may begin and end there


class Action(StrEnum):
    """What happens where a rule is met."""

    REFUSE = "refuse"
    MASK = "mask"
    LOG = "log"


class PolicyError(GemmaEdgeError, ValueError):
    """A content policy that cannot be used."""


@dataclass(frozen=True)
class Hit:
    """Where a rule was met: text[start:end] of the folded text."""

    start: int
    end: int
    rule: "Rule"


@dataclass(frozen=True)
class Rule:
    """Words and patterns of one category, with what happens in one direction. replacement: what MASK writes instead."""

    category: str
    action: Action
    replacement: str
    expressions: tuple["Expression", ...]


class Expression:
    """Phrases that ask for the same at their edges, as two expressions: the whole, and what may become one."""

    def __init__(self, found: Sequence[Phrase], where: str) -> None:
        """found: all with the same `lead` and `trail`. where: to name it in an error."""
        lead = NOT_WORD if found[0].lead else ""
        self._has_lead = found[0].lead
        body = Alt(tuple(phrase.body for phrase in found))
        trail = NOT_WORD if found[0].trail else ""
        self._whole = _compiled(f"{lead}({spelled(body)}){trail}", where)
        self._begun = _compiled(f"{lead}({prefix(body)})\\z", where)

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Every match, none inside another, from left to right. text: its first character only stands before it."""
        encoded = text.encode()  # once: a search in text would encode it again each time
        end = characters = 0
        begin = 0 if self._has_lead else len(text[:1].encode())
        while (match := self._whole.search(encoded, begin)) is not None:
            start, last_end, end = match.start(1), end, match.end(1)
            first = characters + len(encoded[last_end:start].decode())
            characters = first + len(encoded[start:end].decode())
            yield first, characters
            begin = end
            if self._has_lead:  # the last character may be what stands before the next
                begin -= 1
                while encoded[begin] & 0xC0 == 0x80:
                    begin -= 1

    def pending(self, text: str) -> int:
        """Where what may become a match begins; the text's length where nothing may. text: as of `spans`."""
        match = self._begun.search(text, 0 if self._has_lead else 1)
        return len(text) if match is None else int(match.start(1))


def _compiled(expression: str, where: str) -> Any:
    try:
        import re2
    except ImportError:
        raise PolicyError(f"{where}: content policies need google-re2; run pip install 'gemma-edge[serve]'") from None
    options = re2.Options()
    options.case_sensitive = False  # letters are folded already, those in [A-Z] are not
    options.dot_nl = True
    options.longest_match = True  # of several that begin at one place
    options.log_errors = False
    options.max_mem = RE2_BYTES
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        raise PolicyError(f"{where}: too large for RE2 ({_text(error)}); split it or lower its counts") from None


def _text(error: BaseException) -> str:
    [message] = error.args
    return message.decode(errors="replace") if isinstance(message, bytes) else str(message)


def expressions(words: Iterable[str], patterns: Iterable[str], where: str, *, accents: bool) -> tuple[Expression, ...]:
    """Of words or phrases that stand by themselves, and of patterns. Raises PolicyError, PatternError."""
    found = [_whole_word(word, where, accents) for word in words]
    found += [phrase for pattern in patterns for phrase in phrases(pattern, accents=accents)]
    groups: dict[tuple[bool, bool], list[Phrase]] = {}
    for phrase in found:
        groups.setdefault((phrase.lead, phrase.trail), []).append(phrase)
    return tuple(
        Expression(group[begin : begin + _TOGETHER], where)
        for group in groups.values()
        for begin in range(0, len(group), _TOGETHER)
    )


def _whole_word(word: str, where: str, accents: bool) -> Phrase:
    stripped = word.strip()
    body = literal(stripped, accents=accents)
    if not body.nodes:
        raise PolicyError(f"{where}: the word {word!r} has nothing that can be seen; take it out")
    if len(body.nodes) > MOST_CHARACTERS:
        raise PolicyError(
            f"{where}: a word of {len(body.nodes)} characters, expected at most {MOST_CHARACTERS}; shorten it"
        )
    return Phrase(body, _asks_for_edge(stripped[0]), _asks_for_edge(stripped[-1]))


def _asks_for_edge(character: str) -> bool:
    """Whether a word that begins or ends so must stand by itself: not in scripts that write words together."""
    return character.isalnum() and not unicodedata.name(character, "").startswith(_OWN_WORDS)
