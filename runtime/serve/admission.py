"""Who may run now. What a request takes is known before it begins: a slot, and the rows of its images and recordings.

What does not fit yet waits in the order it came, so many at most and so long at most. What never fits is refused at
once, with the numbers.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gemma_edge.runtime.serve.errors import Code, RefusedError

_LONGEST_RETRY_S = 60.0
_BODIES_RETRY_S = 5.0


@dataclass(eq=False)
class _Waiting:
    rows_bytes: int
    turn: "asyncio.Future[None]"

    @property
    def has_come(self) -> bool:
        """Whether it may run, and has not been told yet."""
        return self.turn.done() and not self.turn.cancelled() and self.turn.exception() is None


class Bodies:
    """Bytes of requests that are held while they are read and answered. For one event loop.

    Requests wait only once they are read: without this bound, those that wait could be more than memory holds.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self.held_bytes = 0

    def take(self, nbytes: int) -> None:
        """So many more. Raises RefusedError (503): there is no room."""
        if self.held_bytes + nbytes > self._most:
            raise RefusedError(
                503,
                Code.QUEUE_FULL,
                f"bodies of {self.held_bytes} bytes are being answered, at most {self._most} are held; ask again later",
                retry_after_s=_BODIES_RETRY_S,
            )
        self.held_bytes += nbytes

    def give_back(self, nbytes: int) -> None:
        """Of a request that has ended."""
        self.held_bytes -= nbytes


class Admission:
    """For one event loop.

    Args:
        active: requests that may run at once.
        waiting: requests that may wait.
        wait_s: the longest wait.
        rows_bytes: what rows of all running requests may take.
    """

    def __init__(self, active: int, waiting: int, wait_s: float, rows_bytes: int) -> None:
        self._most_active, self._most_waiting = active, waiting
        self._wait_s = wait_s
        self._rows_limit = rows_bytes
        self._rows = 0
        self._queue: deque[_Waiting] = deque()
        self._ran_s = 1.0  # how long a request runs, of late
        self.active = 0
        self.is_stopping = False

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    @asynccontextmanager
    async def turn(self, rows_bytes: int) -> AsyncIterator[None]:
        """Runs while a request may. Whoever is cancelled while it waits leaves the queue.

        Raises RefusedError: 413 for more rows than there may ever be, 429 where too many wait, 503 after too long a
        wait and while the server stops.
        """
        if rows_bytes > self._rows_limit:
            raise RefusedError(
                413,
                Code.OVER_BUDGET,
                f"the images and recordings take {rows_bytes} bytes encoded, the server has {self._rows_limit} for "
                "them; send fewer, or shorter ones",
            )
        await self._enter(rows_bytes)
        started = time.monotonic()
        try:
            yield
        finally:
            self.active -= 1
            self._rows -= rows_bytes
            self._ran_s += 0.2 * (time.monotonic() - started - self._ran_s)
            self._admit()

    def stop(self) -> None:
        """Admit nobody any more; who waits is refused."""
        self.is_stopping = True
        for waiting in self._queue:
            if not waiting.turn.done():
                waiting.turn.set_exception(self._stopping())
        self._queue.clear()

    async def _enter(self, rows_bytes: int) -> None:
        if self.is_stopping:
            raise self._stopping()
        if not self._queue and self._fits(rows_bytes):
            self._take(rows_bytes)
            return
        if len(self._queue) >= self._most_waiting:
            raise RefusedError(
                429,
                Code.QUEUE_FULL,
                f"{self.active} requests run and {len(self._queue)} wait, no more may; ask again later",
                retry_after_s=self._retry_after_s(),
            )
        waiting = _Waiting(rows_bytes, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        try:
            async with asyncio.timeout(self._wait_s):
                await waiting.turn
        except TimeoutError:
            if not waiting.has_come:  # it came as the time was over
                raise RefusedError(
                    503,
                    Code.QUEUE_TIMEOUT,
                    f"no turn came within {self._wait_s:g} s, {self.active} requests run; ask again later",
                    retry_after_s=self._retry_after_s(),
                ) from None
        except asyncio.CancelledError:
            if waiting.has_come:
                self._give_back(rows_bytes)
            raise
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)
                self._admit()

    def _fits(self, rows_bytes: int) -> bool:
        return self.active < self._most_active and self._rows + rows_bytes <= self._rows_limit

    def _take(self, rows_bytes: int) -> None:
        self.active += 1
        self._rows += rows_bytes

    def _give_back(self, rows_bytes: int) -> None:
        self.active -= 1
        self._rows -= rows_bytes
        self._admit()

    def _admit(self) -> None:
        while self._queue and self._fits(self._queue[0].rows_bytes):
            first = self._queue.popleft()
            if not first.turn.done():  # cancelled
                self._take(first.rows_bytes)
                first.turn.set_result(None)

    def _retry_after_s(self) -> float:
        """When about the queue will have moved by what waits now."""
        rounds = (len(self._queue) + 1) / self._most_active
        return min(max(1.0, rounds * self._ran_s), _LONGEST_RETRY_S)

    def _stopping(self) -> RefusedError:
        return RefusedError(
            503, Code.SHUTTING_DOWN, "the server is being stopped; ask again later", retry_after_s=_LONGEST_RETRY_S / 6
        )
