"""Who runs and who waits: in order, bounded, and nobody's place is lost with a client that leaves."""

import asyncio

import pytest

from gemma_edge.runtime.serve.admission import Admission
from gemma_edge.runtime.serve.errors import Code, RefusedError


async def hold(admission: Admission, name: str, log: list[str], leave: asyncio.Event, rows: int = 0) -> None:
    async with admission.turn(rows):
        log.append(name)
        await leave.wait()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_turns_come_in_order() -> None:
    async def main() -> None:
        admission, log = Admission(1, 8, 5, 0), list[str]()
        leaving = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.ensure_future(hold(admission, str(i), log, event)) for i, event in enumerate(leaving)]
        await settled()
        assert (log, admission.active, admission.waiting) == (["0"], 1, 2)
        for event in leaving:
            event.set()
        await asyncio.gather(*tasks)
        assert (log, admission.active, admission.waiting) == (["0", "1", "2"], 0, 0)

    asyncio.run(main())


def test_the_queue_is_bounded() -> None:
    async def main() -> None:
        admission, log, leave = Admission(1, 1, 5, 0), list[str](), asyncio.Event()
        tasks = [asyncio.ensure_future(hold(admission, str(i), log, leave)) for i in range(2)]
        await settled()
        with pytest.raises(RefusedError, match="1 requests run and 1 wait, no more may; ask again later") as refused:
            await admission.turn(0).__aenter__()
        assert (refused.value.status, refused.value.code) == (429, Code.QUEUE_FULL)
        assert int(refused.value.headers["Retry-After"]) >= 1
        leave.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_nobody_waits_for_ever() -> None:
    async def main() -> None:
        admission, log, leave = Admission(1, 8, 0.05, 0), list[str](), asyncio.Event()
        task = asyncio.ensure_future(hold(admission, "first", log, leave))
        await settled()
        with pytest.raises(RefusedError, match=r"no turn came within 0\.05 s, 1 requests run") as refused:
            await admission.turn(0).__aenter__()
        assert (refused.value.status, refused.value.code) == (503, Code.QUEUE_TIMEOUT)
        assert admission.waiting == 0
        leave.set()
        await task
        async with admission.turn(0):
            assert admission.active == 1

    asyncio.run(main())


def test_who_leaves_the_queue_is_passed_over() -> None:
    async def main() -> None:
        admission, log = Admission(1, 8, 5, 0), list[str]()
        leaving = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.ensure_future(hold(admission, str(i), log, event)) for i, event in enumerate(leaving)]
        await settled()
        tasks[1].cancel()
        await settled()
        assert admission.waiting == 1
        leaving[0].set()
        leaving[2].set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (log, admission.active) == (["0", "2"], 0)

    asyncio.run(main())


def test_who_leaves_as_its_turn_comes_gives_it_on() -> None:
    async def main() -> None:
        admission, log = Admission(1, 8, 5, 0), list[str]()
        leaving = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.ensure_future(hold(admission, str(i), log, event)) for i, event in enumerate(leaving)]
        await settled()
        leaving[0].set()
        await tasks[0]  # the second has its turn, and has not run since
        tasks[1].cancel()
        leaving[2].set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert log[-1] == "2"
        assert (admission.active, admission.waiting) == (0, 0)

    asyncio.run(main())


def test_rows_of_images_are_counted() -> None:
    async def main() -> None:
        admission, log, leave = Admission(4, 8, 5, 100), list[str](), asyncio.Event()
        tasks = [asyncio.ensure_future(hold(admission, str(i), log, leave, 60)) for i in range(2)]
        await settled()
        assert (admission.active, admission.waiting) == (1, 1)
        with pytest.raises(RefusedError, match="take 101 bytes encoded, the server has 100 for them") as refused:
            await admission.turn(101).__aenter__()
        assert (refused.value.status, refused.value.code) == (413, Code.OVER_BUDGET)
        leave.set()
        await asyncio.gather(*tasks)
        assert log == ["0", "1"]

    asyncio.run(main())


def test_nobody_is_admitted_while_the_server_stops() -> None:
    async def main() -> None:
        admission, log, leave = Admission(1, 8, 5, 0), list[str](), asyncio.Event()
        tasks = [asyncio.ensure_future(hold(admission, str(i), log, leave)) for i in range(2)]
        await settled()
        admission.stop()
        with pytest.raises(RefusedError, match="the server is being stopped") as waiting:
            await tasks[1]
        with pytest.raises(RefusedError, match="the server is being stopped"):
            await admission.turn(0).__aenter__()
        assert (waiting.value.status, waiting.value.code) == (503, Code.SHUTTING_DOWN)
        leave.set()
        await tasks[0]
        assert log == ["0"]

    asyncio.run(main())
