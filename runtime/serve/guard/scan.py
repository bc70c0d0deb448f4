"""One text, whole or piece by piece, under a set of rules.

Nothing leaves that may yet become something a rule is about: the text is held back from the first character on that
could begin it, in whatever spelling (`folding`), and no further.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gemma_edge.runtime.serve.guard.folding import Folding
from gemma_edge.runtime.serve.guard.rules import OUTSIDE, Action, Hit, Rule


@dataclass(frozen=True)
class Found:
    """A rule that was met. raw: what it was met by, as it was written."""

    rule: Rule
    raw: str


class Scan:
    """Feed it, and write out what it gives back. Once a rule refuses, nothing is given back any more."""

    def __init__(self, rules: Sequence[Rule], *, accents: bool = True) -> None:
        self._found: list[Found] = []
        self._is_refused = False
        self._rules = rules
        self._folding = Folding(accents=accents)
        self._before = OUTSIDE  # the folded character that stands before what is held

    def push(self, text: str) -> str:
        """The text that may leave now."""
        if not self._rules:
            return text
        if self._is_refused:
            return ""
        self._folding.push(text)
        searched = self._before + self._folding.text
        pending = min(each.pending(searched) for rule in self._rules for each in rule.expressions)
        return self._release(self._hits(searched), pending - 1)

    def finish(self) -> str:
        """The rest, at the end of the text."""
        if self._is_refused:
            return ""
        searched = self._before + self._folding.text + OUTSIDE
        return self._release(self._hits(searched), len(self._folding.text))

    def take_found(self) -> list[Found]:
        """The rules that were met since the last call, in the order of the text."""
        found, self._found = self._found, []
        return found

    def _hits(self, searched: str) -> list[Hit]:
        """In the order of the text, without the character before it."""
        found = [
            Hit(start - 1, end - 1, rule)
            for rule in self._rules
            for each in rule.expressions
            for start, end in each.spans(searched)
        ]
        return sorted(found, key=lambda hit: (hit.start, hit.end))

    def _release(self, hits: list[Hit], cut: int) -> str:
        """Everything before `cut` in the folded text, and no part of a match that ends behind it."""
        while (across := min((hit.start for hit in hits if hit.start < cut < hit.end), default=cut)) < cut:
            cut = across
        hits = [hit for hit in hits if hit.end <= cut]
        folding, raw = self._folding, self._folding.raw
        self._found += [Found(hit.rule, raw[folding.starts[hit.start] : folding.ends[hit.end - 1]]) for hit in hits]
        if any(hit.rule.action is Action.REFUSE for hit in hits):
            self._is_refused = True
            return ""
        written, place = [], 0
        for hit in hits:
            if hit.rule.action is not Action.MASK:
                continue
            start, end = folding.starts[hit.start], folding.ends[hit.end - 1]
            if end <= place:  # inside one that is masked already
                continue
            if start >= place:
                written += [raw[place:start], hit.rule.replacement]
            place = end
        written.append(raw[place : folding.place(cut)])
        if cut:
            self._before = folding.text[cut - 1]
        folding.take(cut)
        return "".join(written)
