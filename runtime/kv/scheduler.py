"""One thread that owns the native model, and what it works on: a step for each live task, in turns.

A task is a generator that runs the model at most once between two `yield`s, so that a long prompt does not stop the
replies that are being written beside it. Of the prompts that are being read, the one with the least left goes first: a
short one waits for one call of a long one, not for one before each of its own. Where several take a decode step next,
those run together if the model can (batching.py). What a task puts out waits in a queue of its own until it is read: a
reader that is slow, or looks at nothing for a while, holds up nobody.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from gemma_edge.runtime.executors.base import ClosedError, ExecutorError
from gemma_edge.runtime.kv.batching import Step, run_together

if TYPE_CHECKING:
    import asyncio

Item = TypeVar("Item")

Steps = Generator[None, None, None]

WAITING_TASKS = 64
MOST_PASSED = 8
"""Rounds that a long prompt is passed over by shorter ones; then it has its step."""


class CancelledError(Exception):
    """The caller asked to stop. Never leaves this package: a cancelled reply simply ends."""


class QueueFullError(ExecutorError):
    """More is waiting for the model than may."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} replies are being written or wait for the model; try again when one has ended")


class _End:
    """Closes a task's output. error: what ended it, if not its own end."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Work(Generic[Item]):
    """What worker and reader of a task share. The worker must not know the reader: a reader that is gone cancels.

    A task's generator calls `put` and `check`, and keeps `ahead`: tokens of its prompt that have to run yet. Until its
    first step it counts as short. next: a decode step that it takes when it goes on, which may run with others' before.
    """

    def __init__(self) -> None:
        self.output: SimpleQueue[Item | _End] = SimpleQueue()
        self.is_cancelled = False  # unread output is worth nothing
        self.is_read = False  # to its end
        self.has_failed = False
        self.wake: Callable[[], None] | None = None
        self.steps: Steps | None = None
        self.next: Step | None = None
        self.ahead = 1
        self.passed = 0

    def cancel(self) -> None:
        """As `Task.cancel`."""
        if not self.is_read:
            self.is_cancelled = True

    def check(self) -> None:
        """Raises CancelledError where nobody waits any more."""
        if self.is_cancelled:
            raise CancelledError

    def put(self, item: Item | _End) -> None:
        """Put out an item. Whoever has begun to has its step in every round."""
        self.ahead = 0
        self.output.put(item)
        wake = self.wake  # after the item, which a reader looks for after it has set this
        if wake is not None:
            wake()

    def step(self) -> bool:
        """Run the model once; whether there is more to do. On the worker's thread."""
        assert self.steps is not None
        self.next = None
        if self.is_cancelled:
            self.stop(None)
            return False
        try:
            next(self.steps)
        except (StopIteration, CancelledError):
            self.stop(None)
        except BaseException as error:  # the reader's: it is raised there
            self.stop(error)
        else:
            return True
        return False

    def stop(self, error: BaseException | None) -> None:
        """End it here. On the worker's thread."""
        steps, self.steps, self.next = self.steps, None, None
        try:
            if steps is not None:
                steps.close()
        except BaseException as closing:  # likewise
            error = error or closing
        self.has_failed = error is not None
        self.put(_End(error))


class Task(Generic[Item]):
    """What a task puts out, to be read once: by `for`, by `async for` without a thread, or one by one.

    Cancelling ends it before its next call into the model, and drops what was not read. So does losing it.
    """

    def __init__(self, work: Work[Item]) -> None:
        self._work = work
        self._lost = weakref.finalize(self, work.cancel)
        self._lost.atexit = False

    def cancel(self) -> None:
        """Stop. May be called from any thread, twice, and after its end, then without effect."""
        self._work.cancel()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called before its end was read."""
        return self._work.is_cancelled

    def wait(self) -> None:
        """Until it has stopped; what it still puts out is dropped."""
        while not self._work.is_read:
            self._take(self._work.output.get())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        while not self._work.is_read:
            for item in self._take(self._work.output.get()):
                return item
        raise StopIteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        while not self._work.is_read:
            if self._work.output.empty():
                await self._arrival()
            else:
                for item in self._take(self._work.output.get_nowait()):
                    return item
        raise StopAsyncIteration

    async def _arrival(self) -> None:
        """Until there is something to read. Cancelled meanwhile, it goes on once the model has stopped."""
        import asyncio

        try:
            await self._next_put()
        except asyncio.CancelledError:
            self.cancel()
            while not self._work.is_read:
                with suppress(asyncio.CancelledError):  # again, by whoever ends the loop
                    await self._next_put()
                with suppress(Empty):
                    while True:
                        self._take(self._work.output.get_nowait())
            raise

    async def _next_put(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        arrived = loop.create_future()
        self._work.wake = partial(_tell, loop, arrived)
        try:
            if self._work.output.empty():
                await arrived
        finally:
            self._work.wake = None

    def _take(self, item: Item | _End) -> list[Item]:
        """What is to be passed on of an item: nothing after `cancel`, and what ended the task is raised."""
        if isinstance(item, _End):
            self._work.is_read = True
            if item.error is not None and not self._work.is_cancelled:
                raise item.error
            return []
        return [] if self._work.is_cancelled or self._work.has_failed else [item]


def _tell(loop: "asyncio.AbstractEventLoop", arrived: "asyncio.Future[None]") -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(lambda: None if arrived.done() else arrived.set_result(None))


class Scheduler:
    """See above. The thread starts with the first task and ends with `close`, or when nobody has this any more.

    waiting: tasks that may be under way or wait at once.
    """

    def __init__(self, waiting: int = WAITING_TASKS) -> None:
        self._waiting = waiting
        self._desk = _Desk()
        weakref.finalize(self, _Desk.leave, self._desk)

    def submit(self, steps: Callable[[Work[Item]], Steps]) -> Task[Item]:
        """Have a task done. steps: makes its generator, which puts items out.

        Raises QueueFullError; ClosedError after `close`.
        """
        work: Work[Item] = Work()
        work.steps = steps(work)
        desk = self._desk
        with desk.lock:
            if desk.is_closed:
                raise ClosedError
            if desk.tasks >= self._waiting:
                raise QueueFullError(desk.tasks)
            desk.tasks += 1
            desk.inbox.put(work)
            if desk.thread is None:
                desk.thread = threading.Thread(target=_run, args=(desk,), name="gemma-edge model", daemon=True)
                desk.thread.start()
        return Task(work)

    def close(self) -> None:
        """End every task with ClosedError, and the thread. Closing twice is fine."""
        self._desk.leave()


class _Desk:
    """What scheduler and worker share. The worker must not know the scheduler: one that is gone ends the thread."""

    def __init__(self) -> None:
        self.inbox: SimpleQueue[Work[Any] | None] = SimpleQueue()
        self.lock = threading.RLock()  # the last reference may go while this thread holds it
        self.tasks = 0
        self.thread: threading.Thread | None = None
        self.is_closed = False

    def leave(self) -> None:
        """Tell the worker to end, and wait for it: native code must not run on while the process ends."""
        with self.lock:
            self.is_closed = True
            self.inbox.put(None)
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join()


def _run(desk: _Desk) -> None:
    """The worker. It holds nothing of what is done, so that it keeps no model alive."""
    live: deque[Work[Any]] = deque()
    while True:
        with suppress(Empty):
            while True:
                work = desk.inbox.get_nowait() if live else desk.inbox.get()
                if work is None:
                    _end_all(live, desk)
                    return
                live.append(work)
                del work
        _round(live, desk)


def _round(live: deque[Work[Any]], desk: _Desk) -> None:
    """A step of each task that is due."""
    least = min((work.ahead for work in live if work.ahead), default=0)
    due = [_is_due(work, least) for work in live]
    run_together(work.next for work, is_due in zip(live, due, strict=True) if is_due and not work.is_cancelled)
    for is_due in due:
        if not is_due or live[0].step():
            live.rotate(-1)
        else:
            live.popleft()
            with desk.lock:
                desk.tasks -= 1


def _is_due(work: Work[Any], least: int) -> bool:
    """In this round. least: tokens that the shortest prompt has ahead."""
    if work.ahead > least and work.passed < MOST_PASSED and not work.is_cancelled:
        work.passed += 1
        return False
    work.passed = 0
    return True


def _end_all(live: deque[Work[Any]], desk: _Desk) -> None:
    with suppress(Empty):
        while True:
            if (work := desk.inbox.get_nowait()) is not None:
                live.append(work)
    while live:
        live.popleft().stop(ClosedError())
