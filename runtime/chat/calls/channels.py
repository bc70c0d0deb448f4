"""What a model writes outside its answer, such as Gemma 4's thoughts: told from the answer while it is written.

A channel is text between a start and an end that the bundle's metadata names; LiteRT-LM 0.18.1 reads replies likewise.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REASONING = "reasoning_content"  # what others call the thoughts; LiteRT-LM's messages have both names


@dataclass(frozen=True)
class Channel:
    """name: in messages. start, end: around it in a reply."""

    name: str
    start: str
    end: str


@dataclass(frozen=True)
class Thought:
    """A piece of what was written into a channel."""

    channel: str
    text: str


class ChannelParser:
    """Splits a reply into answer and channels. Text is passed on as soon as it cannot be a start or an end."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._channels = channels
        self._open: Channel | None = None
        self._held = ""

    def push(self, text: str) -> Iterator[str | Thought]:
        """What is certain after more text."""
        self._held += text
        while (found := self._next()) is not None:
            place, mark, channel = found
            yield from self._take(place)
            self._held, self._open = self._held[len(mark) :], channel
        yield from self._take(len(self._held) - max((overlap(self._held, mark) for mark in self._marks()), default=0))

    def finish(self) -> Iterator[str | Thought]:
        """What is left at the end. A channel that was never closed ends there."""
        yield from self._take(len(self._held))

    def _marks(self) -> list[str]:
        return [channel.start for channel in self._channels] if self._open is None else [self._open.end]

    def _next(self) -> tuple[int, str, Channel | None] | None:
        """Where the next start or end is, what it is, and the channel that is open after it."""
        if self._open is not None:
            place = self._held.find(self._open.end)
            return None if place < 0 else (place, self._open.end, None)
        starts = [(self._held.find(channel.start), channel) for channel in self._channels]
        found = [(place, channel.start, channel) for place, channel in starts if place >= 0]
        return min(found, key=lambda start: start[0], default=None)

    def _take(self, length: int) -> Iterator[str | Thought]:
        if length:
            text, self._held = self._held[:length], self._held[length:]
            yield text if self._open is None else Thought(self._open.name, text)


def with_thoughts(message: Mapping[str, Any], thoughts: Iterable[Thought]) -> dict[str, Any]:
    """A message with what was written into channels."""
    channels: dict[str, str] = {}
    for thought in thoughts:
        channels[thought.channel] = channels.get(thought.channel, "") + thought.text
    return {**message, "channels": channels, REASONING: "".join(channels.values())} if channels else dict(message)


def overlap(text: str, start: str) -> int:
    """The length of the longest end of `text` that `start` begins with."""
    return next((n for n in range(min(len(text), len(start) - 1), 0, -1) if start.startswith(text[-n:])), 0)
