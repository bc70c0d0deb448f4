"""The one thread that has the model: turns between tasks, cancelling, ends, and what is left when nobody cares."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from gemma_edge.runtime.executors.base import ClosedError
from gemma_edge.runtime.kv.scheduler import (
    MOST_PASSED,
    CancelledError,
    QueueFullError,
    Scheduler,
    Steps,
    Task,
    Work,
)


def begun(before: set[threading.Thread]) -> int:
    """How many threads there are that were not there before; others may have ended meanwhile."""
    return len(set(threading.enumerate()) - before)


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler()
    yield scheduler
    scheduler.close()


def counting(count: int, seen: list[str] | None = None, name: str = "") -> Callable[[Work[int]], Steps]:
    """Puts out 0, 1, 2, ..., one a step."""

    def steps(work: Work[int]) -> Steps:
        for number in range(count):
            if seen is not None:
                seen.append(name)
            work.put(number)
            yield

    return steps


class Long:
    """A call into the model that takes until `release`, and what came of the task."""

    def __init__(self) -> None:
        self.begun, self.release, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, work: Work[int]) -> Steps:
        try:
            self.begun.set()
            assert self.release.wait(timeout=10)
            work.put(1)
            yield
            work.put(2)
        finally:
            self.ended.set()


def test_what_is_put_out_is_read_in_order_and_once(scheduler: Scheduler) -> None:
    task = scheduler.submit(counting(5))
    assert list(task) == [0, 1, 2, 3, 4]
    assert list(task) == []


def test_a_step_for_each_in_turns(scheduler: Scheduler) -> None:
    seen: list[str] = []
    first = Long()
    holding = scheduler.submit(first)
    assert first.begun.wait(timeout=10)
    tasks = [scheduler.submit(counting(4, seen, name)) for name in "abc"]
    first.release.set()
    assert [list(task) for task in tasks] == [[0, 1, 2, 3]] * 3
    assert "".join(seen) == "abc" * 4
    assert list(holding) == [1, 2]


def reading(calls: int, seen: list[str], name: str, tokens: int = 2) -> Callable[[Work[int]], Steps]:
    """A prompt of so many calls into the model, then a reply."""

    def steps(work: Work[int]) -> Steps:
        for left in range(calls, 0, -1):
            work.ahead = left
            yield
            seen.append(name)
        for number in range(tokens):
            seen.append(name.upper())
            work.put(number)
            yield

    return steps


def submitted_at_once(scheduler: Scheduler, *all_steps: Callable[[Work[int]], Steps]) -> None:
    """Waits for all of them."""
    first = Long()
    holding = scheduler.submit(first)
    assert first.begun.wait(timeout=10)
    tasks = [scheduler.submit(steps) for steps in all_steps]
    first.release.set()
    for task in tasks:
        list(task)
    list(holding)


def test_of_two_prompts_the_shorter_goes_first(scheduler: Scheduler) -> None:
    seen: list[str] = []
    submitted_at_once(scheduler, reading(6, seen, "l"), reading(3, seen, "s"))
    assert "".join(seen) == "sssSlSlllllLL"  # once it writes, they take turns


def test_a_prompt_beside_a_reply_takes_turns_with_it(scheduler: Scheduler) -> None:
    seen: list[str] = []
    submitted_at_once(scheduler, reading(4, seen, "p"), counting(6, seen, "r"))
    assert "".join(seen).replace("P", "") == "rprprprpr" + "r"


def test_a_long_prompt_is_passed_over_so_often_and_no_more(scheduler: Scheduler) -> None:
    seen: list[str] = []
    submitted_at_once(scheduler, reading(40, seen, "l", 1), *[reading(12, seen, name, 1) for name in "abc"])
    order = "".join(seen)
    first = order.index("A")
    assert order[:first].count("l") >= 1
    longest = max(map(len, "".join(c if c == "l" else "." for c in order[: order.rindex("C")]).split("l")))
    assert longest <= 3 * MOST_PASSED + 6  # three that are as short have their steps in each of those rounds


def test_an_error_is_raised_where_the_task_is_read_and_drops_what_was_not(scheduler: Scheduler) -> None:
    def steps(work: Work[int]) -> Steps:
        work.put(1)
        yield
        raise ValueError("broken")

    task = scheduler.submit(steps)
    time.sleep(0.05)
    with pytest.raises(ValueError, match="broken"):
        next(task)
    assert list(task) == []
    assert list(scheduler.submit(counting(2))) == [0, 1]  # and the thread goes on


def test_cancelling_stops_before_the_next_step_and_drops_what_was_not_read(scheduler: Scheduler) -> None:
    long = Long()
    task = scheduler.submit(long)
    assert long.begun.wait(timeout=10)
    task.cancel()
    long.release.set()
    assert list(task) == []
    assert task.is_cancelled
    assert long.ended.is_set()


def test_cancelling_what_has_ended_changes_nothing(scheduler: Scheduler) -> None:
    task = scheduler.submit(counting(1))
    assert list(task) == [0]
    task.cancel()
    assert not task.is_cancelled


def test_a_task_that_waits_its_turn_is_cancelled_without_a_step(scheduler: Scheduler) -> None:
    long, seen = Long(), list[str]()
    first = scheduler.submit(long)
    assert long.begun.wait(timeout=10)
    waiting = scheduler.submit(counting(3, seen, "x"))
    waiting.cancel()
    long.release.set()
    assert list(waiting) == []
    assert seen == []
    assert list(first) == [1, 2]


def test_check_ends_a_task_amid_a_step(scheduler: Scheduler) -> None:
    begun, outcome = threading.Event(), list[str]()

    def steps(work: Work[int]) -> Steps:
        begun.set()
        try:
            for _ in range(10_000):
                work.check()
                time.sleep(0.001)
        except CancelledError:
            outcome.append("stopped")
            raise
        yield

    task = scheduler.submit(steps)
    assert begun.wait(timeout=10)
    task.cancel()
    task.wait()
    assert outcome == ["stopped"]


def test_a_task_that_is_lost_stops(scheduler: Scheduler) -> None:
    long = Long()
    task: Task[int] | None = scheduler.submit(long)
    assert long.begun.wait(timeout=10)
    assert task is not None
    del task
    long.release.set()
    assert long.ended.wait(timeout=10)
    assert list(scheduler.submit(counting(1))) == [0]


def test_no_more_wait_than_may() -> None:
    scheduler, long = Scheduler(waiting=2), Long()
    try:
        tasks = [scheduler.submit(long), scheduler.submit(counting(1))]
        with pytest.raises(QueueFullError) as caught:
            scheduler.submit(counting(1))
        assert str(caught.value) == "2 replies are being written or wait for the model; try again when one has ended"
        long.release.set()
        assert [list(task) for task in tasks] == [[1, 2], [0]]
        time.sleep(0.01)
        assert list(scheduler.submit(counting(1))) == [0]
    finally:
        scheduler.close()


def test_closing_ends_what_runs_and_what_waits(scheduler: Scheduler) -> None:
    long = Long()
    tasks = [scheduler.submit(long), scheduler.submit(counting(1))]
    assert long.begun.wait(timeout=10)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    long.release.set()
    closing.join()
    for task in tasks:
        with pytest.raises(ClosedError, match="the executor is closed; create a new engine"):
            list(task)
    with pytest.raises(ClosedError):
        scheduler.submit(counting(1))
    scheduler.close()


def test_a_scheduler_that_is_dropped_leaves_no_thread_and_nothing_of_its_tasks() -> None:
    class Model:
        pass

    def steps_of(model: Model) -> Callable[[Work[int]], Steps]:
        def steps(work: Work[int]) -> Steps:
            assert model is not None
            work.put(1)
            yield

        return steps

    before = set(threading.enumerate())
    scheduler, model = Scheduler(), Model()
    gone = weakref.ref(model)
    assert list(scheduler.submit(steps_of(model))) == [1]
    assert begun(before) == 1
    del model
    gc.collect()
    assert gone() is None  # while the thread is still there
    del scheduler
    assert begun(before) == 0


# ---------------------------------------------------------------- asyncio


async def until(happened: threading.Event) -> None:
    while not happened.is_set():
        await asyncio.sleep(0.001)


async def read(task: Task[int]) -> list[int]:
    return [item async for item in task]


def test_asyncio_reads_without_a_thread(scheduler: Scheduler) -> None:
    before = set(threading.enumerate())

    async def main() -> list[list[int]]:
        replies = await asyncio.gather(*(read(scheduler.submit(counting(50))) for _ in range(20)))
        assert begun(before) == 1
        return replies

    assert asyncio.run(main()) == [list(range(50))] * 20


def test_a_task_cancelled_twice_still_waits_for_the_call(scheduler: Scheduler) -> None:
    async def main() -> None:
        long = Long()
        task = asyncio.create_task(read(scheduler.submit(long)))
        await asyncio.sleep(0)
        await until(long.begun)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        long.release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert long.ended.is_set()

    asyncio.run(main())


def test_a_loop_that_ends_waits_for_the_call(scheduler: Scheduler) -> None:
    long = Long()

    async def main() -> None:
        task = asyncio.create_task(read(scheduler.submit(long)))
        await asyncio.sleep(0)
        await until(long.begun)
        assert not task.done()  # and nobody waits for it
        threading.Timer(0.05, long.release.set).start()

    asyncio.run(main())
    assert long.ended.is_set()


def test_an_error_reaches_asyncio(scheduler: Scheduler) -> None:
    def steps(work: Work[int]) -> Steps:
        work.check()
        yield
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(read(scheduler.submit(steps)))
