"""How Gemma is shown tools and writes calls: two notations, both LiteRT-LM's, and the parser of replies.

Gemma 3 and 3n read Python signatures and write Python calls in a fence; FunctionGemma has a notation of its own. The
fences and forms are those of LiteRT-LM's data processors (gemma3_data_processor, function_gemma_data_processor) at
0.18.1, compared with the engine in the tests.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class ToolSyntaxError(ValueError):
    """What stands between the fences is not a call. The reply is then passed on as text."""


@dataclass(frozen=True)
class Call:
    """A function call the model wrote."""

    name: str
    arguments: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}


@dataclass(frozen=True)
class ToolSyntax:
    """One notation.

    fence_start, fence_end: what encloses calls in a reply.
    declare: a tool's description (OpenAI style, with or without "function") as the template shows it.
    value: a JSON value as source text.
    response: a part of a tool message as source text.
    parse: the text between the fences to calls; raises ToolSyntaxError.
    """

    fence_start: str
    fence_end: str
    declare: Callable[[Mapping[str, Any]], str]
    value: Callable[[Any], str]
    response: Callable[[Mapping[str, Any]], str]
    parse: Callable[[str], Sequence[Call]]


Chunk = str | tuple[Call, ...]  # a piece of a reply: text, or the calls of one fence


class ReplyParser:
    """Splits a reply into text and calls while it is written. Text is passed on as soon as it cannot be a fence."""

    def __init__(self, syntax: ToolSyntax) -> None:
        self._syntax = syntax
        self._held = ""

    def push(self, text: str) -> Iterator[Chunk]:
        """What is certain after more text."""
        self._held += text
        while self._held:
            start = self._held.find(self._syntax.fence_start)
            if start < 0:
                start = len(self._held) - _overlap(self._held, self._syntax.fence_start)
                yield from self._take(start)
                return
            yield from self._take(start)
            body = len(self._syntax.fence_start)
            end = self._held.find(self._syntax.fence_end, body)
            if end < 0:
                return
            fenced = self._held[: end + len(self._syntax.fence_end)]
            self._held = self._held[len(fenced) :]
            yield self._parse(fenced, fenced[body:end])

    def finish(self) -> Iterator[Chunk]:
        """What is left at the end: a fence that was never closed is text."""
        yield from self._take(len(self._held))

    def _take(self, length: int) -> Iterator[str]:
        if length:
            text, self._held = self._held[:length], self._held[length:]
            yield text

    def _parse(self, fenced: str, body: str) -> Chunk:
        try:
            return tuple(self._syntax.parse(body))
        except ToolSyntaxError:
            return fenced


def joined(chunks: Iterable[Chunk]) -> tuple[list[str], list[Call]]:
    """A whole reply from its pieces: the stretches of text between calls, and all calls in order."""
    texts: list[str] = []
    calls: list[Call] = []
    in_text = False
    for chunk in chunks:
        if not isinstance(chunk, str):
            calls.extend(chunk)
        elif in_text:
            texts[-1] += chunk
        else:
            texts.append(chunk)
        in_text = isinstance(chunk, str)
    return texts, calls


def _overlap(text: str, start: str) -> int:
    """The length of the longest end of `text` that `start` begins with."""
    return next((n for n in range(min(len(text), len(start) - 1), 0, -1) if start.startswith(text[-n:])), 0)


class Scanner:
    """A text and a place in it, for the two small parsers."""

    def __init__(self, text: str, blank: str = r"\s*") -> None:
        """blank: what may stand between any two tokens."""
        self._text = text
        self._blank = re.compile(blank)
        self._at = 0

    def take(self, pattern: str) -> str | None:
        """What matches here, after blanks; None and no move where nothing does."""
        at = self._blank.match(self._text, self._at)
        match = re.compile(pattern, re.DOTALL).match(self._text, at.end() if at else self._at)
        if match is None:
            return None
        self._at = match.end()
        return match[0]

    def expect(self, pattern: str) -> str:
        """As `take`, but something must match."""
        found = self.take(pattern)
        if found is None:
            raise ToolSyntaxError(f"at {self._text[self._at :][:20]!r}: {pattern!r} expected")
        return found

    def at_end(self) -> bool:
        return self.take(r"\Z") is not None

    def items(self, close: str, item: Callable[[], None], trailing_comma: bool) -> None:
        """Comma-separated items up to `close`."""
        if self.take(close) is not None:
            return
        while True:
            item()
            if self.take(close) is not None:
                return
            self.expect(",")
            if trailing_comma and self.take(close) is not None:
                return

    def number(self) -> int | float | None:
        found = self.take(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
        if found is None:
            return None
        return int(found) if re.fullmatch(r"-?\d+", found) else float(found)
