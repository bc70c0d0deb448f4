"""Blocking generators in asyncio: whatever ends the task, the call under way ends before the task does."""

import asyncio
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gemma_edge.runtime.chat import aio


class Model:
    """Stands for a conversation: `reply` is one long call, which `cancel` ends and which forgets earlier cancels."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.cancelled = threading.Event()
        self.was_ended = False

    def reply(self) -> Generator[str, None, None]:
        self.cancelled.clear()
        self.running.set()
        self.was_ended = self.cancelled.wait(timeout=10)
        yield "reply"

    async def read(self) -> None:
        async for _ in aio.stream(self.reply(), self.cancelled.set):
            pass


async def until_running(model: Model) -> None:
    while not model.running.is_set():
        await asyncio.sleep(0.001)


def test_a_task_cancelled_twice_still_waits_for_the_call() -> None:
    async def main() -> bool:
        model = Model()
        model.cancelled.set = lambda: None  # type: ignore[method-assign]  # a call that takes its time
        task = asyncio.create_task(model.read())
        await until_running(model)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        threading.Event.set(model.cancelled)
        with pytest.raises(asyncio.CancelledError):
            await task
        return model.was_ended

    assert asyncio.run(main())


def test_a_call_that_waited_for_a_thread_is_cancelled_when_it_begins() -> None:
    async def main() -> bool:
        model, busy = Model(), threading.Event()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        waiting = asyncio.create_task(asyncio.to_thread(busy.wait))
        await asyncio.sleep(0)
        task = asyncio.create_task(model.read())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        busy.set()
        await waiting
        with pytest.raises(asyncio.CancelledError):
            await task
        return model.was_ended

    assert asyncio.run(main())


def test_a_loop_that_ends_waits_for_the_call() -> None:
    model = Model()

    async def main() -> None:
        task = asyncio.create_task(model.read())
        await until_running(model)
        assert not task.done()  # and nobody waits for it

    asyncio.run(main())
    assert model.was_ended
