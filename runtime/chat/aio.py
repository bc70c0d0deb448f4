"""Blocking streams as asyncio streams."""

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from typing import Any, TypeVar

Item = TypeVar("Item")

_CANCEL_EVERY_S = 0.02


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
            step = loop.run_in_executor(None, contextvars.copy_context().run, partial(next, items, end))
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
