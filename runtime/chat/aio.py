"""Code that waits, written once: run by a thread that blocks, or by asyncio, which a wait costs no thread.

What waits is an async generator that is given a `Waiting`. Given `Blocking` it never gives way to a loop, and
`blocking` makes an ordinary generator of it.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Protocol, TypeVar

from gemma_edge.runtime.kv.turn import Turn

Item = TypeVar("Item")


class Waiting(Protocol):
    """How to wait."""

    async def token(self, turn: Turn) -> int | None:
        """The next token of a reply; None after the last."""

    async def call(self, function: Callable[[], Item]) -> Item:
        """What a function returns that takes its time."""


class Blocking:
    """In this thread."""

    async def token(self, turn: Turn) -> int | None:
        return next(turn, None)

    async def call(self, function: Callable[[], Item]) -> Item:
        return function()


class InLoop:
    """In the loop that runs now. Where the task is cancelled, what it waits for has stopped before it goes on."""

    async def token(self, turn: Turn) -> int | None:
        return await anext(turn, None)

    async def call(self, function: Callable[[], Item]) -> Item:
        loop = asyncio.get_running_loop()
        # No task: one would be cancelled with all others when the loop ends, and its thread would run on.
        called = loop.run_in_executor(None, contextvars.copy_context().run, function)
        try:
            return await asyncio.shield(called)
        except asyncio.CancelledError:
            while not called.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([called])
            called.exception()  # seen: the task ends as cancelled, and asyncio need not complain
            raise


def blocking(stream: AsyncGenerator[Item, None]) -> Generator[Item, None, None]:
    """The items of an async generator that waits with `Blocking`. Leaving early closes it."""
    try:
        while True:
            try:
                anext(stream).__await__().send(None)
            except StopIteration as arrived:
                yield arrived.value
            except StopAsyncIteration:
                return
    finally:
        with contextlib.suppress(StopIteration):
            stream.aclose().__await__().send(None)
