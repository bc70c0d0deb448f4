"""Blocking streams as asyncio streams."""

import asyncio
import contextlib
import contextvars
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

Item = TypeVar("Item")

_CANCEL_EVERY_S = 0.02
_LOOP: contextvars.ContextVar[asyncio.AbstractEventLoop | None] = contextvars.ContextVar("_LOOP", default=None)


async def stream(items: Generator[Item, None, None], cancel: Callable[[], None]) -> AsyncGenerator[Item, None]:
    """Pull a blocking generator, each item in a worker thread, one at a time.

    When the task is cancelled, `cancel()` is called and the call into the model that is under way ends before
    `asyncio.CancelledError` continues: nothing runs on in the background.
    """
    end = object()
    loop = asyncio.get_running_loop()
    try:
        while True:
            # No task: one would be cancelled with all others when the loop ends, and its thread would run on.
            context = contextvars.copy_context()
            context.run(_LOOP.set, loop)
            step = loop.run_in_executor(None, context.run, partial(next, items, end))
            try:
                item = await asyncio.shield(step)
            except asyncio.CancelledError:
                await _stopped(step, cancel)
                raise
            if item is end:
                return
            yield item
    finally:
        items.close()


async def _stopped(step: asyncio.Future[Any], cancel: Callable[[], None]) -> None:
    """Wait for the call under way, whoever else cancels the task meanwhile.

    `cancel` is called again and again: a call that waited for a free thread forgets what was before it began.
    """
    while not step.done():
        cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([step], timeout=_CANCEL_EVERY_S)
    step.exception()  # seen: the task ends as cancelled, and asyncio need not complain


def result_of(value: Any) -> Any:
    """What a call returned; if that is a coroutine, what it comes to.

    It runs in the event loop that `stream` serves, where the caller's sessions and locks belong. Without one it gets a
    loop of its own, in another thread where this one already runs a loop.
    """
    if not inspect.isawaitable(value):
        return value
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
