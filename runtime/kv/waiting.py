"""Code that waits, written once: run by a thread that blocks, or by asyncio, which a wait costs no thread.

What waits is an async generator that is given a `Waiting`. Given `Blocking` it never gives way to a loop, and
`blocking` makes an ordinary generator of it. asyncio is imported where there is a loop: it takes 1.5 MiB.
"""

import contextlib
import contextvars
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gemma_edge.runtime.kv.turn import Turn

if TYPE_CHECKING:
    import asyncio

Item = TypeVar("Item")

_LOOP: contextvars.ContextVar["asyncio.AbstractEventLoop | None"] = contextvars.ContextVar("_LOOP", default=None)


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
        import asyncio

        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        context.run(_LOOP.set, loop)
        # No task: one would be cancelled with all others when the loop ends, and its thread would run on.
        called = loop.run_in_executor(None, context.run, function)
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


def result_of(value: Any) -> Any:
    """What a call returned; if that is a coroutine, what it comes to.

    It runs in the event loop that `InLoop` waits in, where the caller's sessions and locks belong. Without one it gets
    a loop of its own, in another thread where this one already runs a loop.
    """
    if not inspect.isawaitable(value):
        return value
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    loop = _LOOP.get()
    if loop is not None and loop.is_running():
        return asyncio.run_coroutine_threadsafe(_awaited(value), loop).result()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_awaited(value))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _awaited(value)).result()


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value
