"""How Gemma is shown tools and writes calls: two notations, both LiteRT-LM's, and the parser of replies.

Gemma 3 and 3n read Python signatures and write Python calls in a fence; FunctionGemma has a notation of its own. The
fences and forms are those of LiteRT-LM's data processors (gemma3_data_processor, function_gemma_data_processor) at
0.18.1, compared with the engine in the tests. What the model writes between fences and is no call becomes a Mistake,
which the model is told; LiteRT-LM fails the whole message.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma_edge.runtime.chat.calls.channels import Thought, overlap


class ToolSyntaxError(ValueError):
    """What stands between the fences is not a call. Says why, in words for the model."""


@dataclass(frozen=True)
class Call:
    """A function call the model wrote. positional: arguments without a name, as Python's calls may have."""

    name: str
    arguments: Mapping[str, Any]
    positional: tuple[Any, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}

    def named(self, tools: Mapping[str, Sequence[str]]) -> "Call":
        """The call of one of these tools (names of parameters by name of tool), with a name for every argument.

        A module before the name goes, as in default_api.f(). Raises ToolSyntaxError.
        """
        last = self.name.rpartition(".")[2]
        name = last if self.name not in tools and last in tools else self.name
        if not self.positional:
            return Call(name, self.arguments)
        if name not in tools:
            raise ToolSyntaxError(f"there is no tool {name}")
        parameters = tools[name][: len(self.positional)]
        if len(parameters) < len(self.positional):
            raise ToolSyntaxError(f"{name} takes {len(tools[name])} arguments, {len(self.positional)} were given")
        twice = [parameter for parameter in parameters if parameter in self.arguments]
        if twice:
            raise ToolSyntaxError(f"argument {twice[0]} of {name} is given twice")
        return Call(name, {**dict(zip(parameters, self.positional, strict=True)), **self.arguments})


@dataclass(frozen=True)
class Mistake:
    """Something between fences that is no call. text: as it was written. error: what is wrong with it."""

    text: str
    error: str


@dataclass(frozen=True)
class ToolSyntax:
    """One notation.

    fence_start, fence_end: what encloses calls in a reply.
    is_quotable: whether the end may stand inside a call's text, so that only a whole call, or a new line, ends there.
    declare: a tool's description (OpenAI style, with or without "function") as the template shows it.
    value: a JSON value as source text.
    response: a part of a tool message as source text.
    parse: the text between the fences to calls; raises ToolSyntaxError.
    shows_json: the template gets declarations, calls and results as they are, and writes them itself.
    """

    fence_start: str
    fence_end: str
    is_quotable: bool
    declare: Callable[[Mapping[str, Any]], Any]
    value: Callable[[Any], Any]
    response: Callable[[Mapping[str, Any]], Any]
    parse: Callable[[str], Sequence[Call]]
    shows_json: bool = False


Chunk = str | Thought | tuple[Call, ...] | Mistake  # a piece of a reply: text, or what a channel or a fence holds


class ReplyParser:
    """Splits a reply into text and calls while it is written. Text is passed on as soon as it cannot be a fence."""

    def __init__(self, syntax: ToolSyntax, tools: Mapping[str, Sequence[str]]) -> None:
        """tools: the names of each tool's parameters, in order."""
        self._syntax = syntax
        self._tools = tools
        self._held = ""
        self._searched = 0  # how much of what is held has no closing fence

    def push(self, text: str) -> Iterator[Chunk]:
        """What is certain after more text."""
        self._held += text
        while self._held:
            start = self._held.find(self._syntax.fence_start)
            if start < 0:
                start = len(self._held) - overlap(self._held, self._syntax.fence_start)
                yield from self._take(start)
                return
            yield from self._take(start)
            body = len(self._syntax.fence_start)
            if self._syntax.is_quotable and self._held[body : body + 1].isalnum():
                # Another word that begins like the fence.
                yield from self._take(body)
                continue
            chunk = self._closed(body)
            if chunk is None:
                return
            yield chunk

    def _closed(self, body: int) -> Chunk | None:
        """What the fence at the start holds, if it is closed: by a line of its own, or where a call ends before it."""
        while (end := self._held.find(self._syntax.fence_end, max(body, self._searched))) >= 0:
            after = end + len(self._syntax.fence_end)
            chunk = self._parse(self._held[:after], self._held[body:end])
            if not isinstance(chunk, Mistake) or not self._syntax.is_quotable or self._held[end - 1] == "\n":
                self._held, self._searched = self._held[after:], 0
                return chunk
            self._searched = after
        return None

    def finish(self) -> Iterator[Chunk]:
        """What is left at the end. A fence that was never closed may hold whole calls."""
        body = len(self._syntax.fence_start)
        if self._held.startswith(self._syntax.fence_start):
            held, self._held = self._held, ""
            yield self._parse(held, held[body:].rstrip(self._syntax.fence_end[0]))
        yield from self._take(len(self._held))

    def _take(self, length: int) -> Iterator[str]:
        if length:
            text, self._held = self._held[:length], self._held[length:]
            yield text

    def _parse(self, fenced: str, body: str) -> Chunk:
        try:
            return tuple(call.named(self._tools) for call in self._syntax.parse(body))
        except ToolSyntaxError as error:
            return Mistake(fenced, str(error))


def joined(chunks: Iterable[Chunk]) -> tuple[list[str], list[Call]]:
    """A whole reply from its pieces, channels left out: the stretches of text between calls, and all calls in order."""
    texts: list[str] = []
    calls: list[Call] = []
    in_text = False
    for chunk in chunks:
        if isinstance(chunk, Thought):
            continue
        if isinstance(chunk, tuple):
            calls.extend(chunk)
        elif in_text:
            texts[-1] += _written(chunk)
        else:
            texts.append(_written(chunk))
        in_text = not isinstance(chunk, tuple)
    return texts, calls


def _written(chunk: str | Mistake) -> str:
    return chunk if isinstance(chunk, str) else chunk.text
