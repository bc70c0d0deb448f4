"""What systemd hears, at real sockets."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.serve.deploy.notify import Notifier, NotifyError, keep_alive


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Its address as systemd writes it, and the socket."""
    name = f"gemma-edge-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name if request.param == "abstract" else name)
        receiver.settimeout(5)
        yield ("@" + name if request.param == "abstract" else name), receiver


def test_systemd_hears_each_state_as_a_datagram(listening: tuple[str, socket.socket]) -> None:
    address, receiver = listening
    notifier = Notifier.of_environment({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.watchdog()
    notifier.stopping()
    heard = [receiver.recv(4096) for _ in range(3)]
    assert heard == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_the_watchdogs_period_is_for_the_process_that_is_meant() -> None:
    told = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000"}
    assert Notifier.of_environment(told).watchdog_s == 30
    assert Notifier.of_environment({**told, "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 30
    assert Notifier.of_environment({**told, "WATCHDOG_PID": str(os.getppid())}).watchdog_s is None
    assert Notifier.of_environment({"NOTIFY_SOCKET": "@x"}).watchdog_s is None
    assert Notifier.of_environment({"WATCHDOG_USEC": "30000000"}).watchdog_s is None


def test_without_systemd_nothing_is_sent() -> None:
    notifier = Notifier.of_environment({})
    assert notifier == Notifier.of_environment({"NOTIFY_SOCKET": ""}) == Notifier()
    notifier.ready()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"NOTIFY_SOCKET": "run/notify"}, r"NOTIFY_SOCKET is 'run/notify', expected a path or @NAME; unset it outside"),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "-1"}, r"WATCHDOG_USEC is '-1', expected microseconds; unset it"),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "0"}, r"WATCHDOG_USEC is '0', expected microseconds; unset it"),
    ],
)
def test_what_makes_no_sense_is_refused(told: dict[str, str], message: str) -> None:
    with pytest.raises(NotifyError, match=message):
        Notifier.of_environment(told)


def test_a_socket_that_nobody_opened(tmp_path: Path) -> None:
    message = r"cannot tell systemd READY at .*nobody \(No such file or directory\); unset NOTIFY_SOCKET outside"
    with pytest.raises(NotifyError, match=message):
        Notifier(str(tmp_path / "nobody")).ready()


def test_a_listener_that_does_not_listen_holds_nobody_up(listening: tuple[str, socket.socket]) -> None:
    def flood() -> None:
        for _ in range(10_000):
            Notifier(listening[0]).watchdog()

    with pytest.raises(NotifyError, match=r"cannot tell systemd WATCHDOG at .* \(timed out\); unset NOTIFY_SOCKET"):
        flood()


async def running(notifier: Notifier, prove: Callable[[], None], is_enough: Callable[[], bool]) -> None:
    """As long as it takes, which is longer where the machine is busy."""
    task = asyncio.create_task(keep_alive(notifier, prove))
    async with asyncio.timeout(60):
        while not is_enough():
            await asyncio.sleep(0.01)
    task.cancel()


def heard(receiver: socket.socket) -> int:
    """How many datagrams wait; all are the watchdog's."""
    receiver.setblocking(False)
    count = 0
    while True:
        try:
            assert receiver.recv(4096) == b"WATCHDOG=1"
        except BlockingIOError:
            return count
        count += 1


def test_a_service_that_works_is_alive(listening: tuple[str, socket.socket]) -> None:
    address, receiver = listening
    proved: list[float] = []
    asyncio.run(
        running(Notifier(address, watchdog_s=0.4), lambda: proved.append(time.monotonic()), lambda: len(proved) > 3)
    )
    assert len(proved) - 1 <= heard(receiver) <= len(proved)
    assert all(later - earlier >= 0.19 for earlier, later in pairwise(proved))  # every 0.2 s at most


def test_a_service_that_fails_or_hangs_is_not(
    listening: tuple[str, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    address, receiver = listening

    def fail() -> None:
        raise GemmaEdgeError("the bundle is gone")

    asyncio.run(
        running(Notifier(address, watchdog_s=0.1), fail, lambda: "not alive: the bundle is gone" in caplog.text)
    )
    goes_on, hung = threading.Event(), threading.Event()

    def hang() -> None:
        hung.set()
        goes_on.wait(60)

    async def hanging() -> None:
        await running(Notifier(address, watchdog_s=0.1), hang, hung.is_set)
        goes_on.set()

    asyncio.run(hanging())
    assert heard(receiver) == 0


def test_where_systemd_does_not_ask_nothing_is_proved() -> None:
    asyncio.run(keep_alive(Notifier("@x"), lambda: pytest.fail("it was")))
