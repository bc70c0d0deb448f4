"""Clients that are slow, or leave, or send what is no request: nobody else notices, and nothing stays behind."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import httpx
import pytest

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.serve.errors import Code
from gemma_edge.runtime.serve.events import Finished, Probe
from gemma_edge.runtime.serve.monitor.monitor import Monitor
from tests.runtime.serve.running import MODEL, Running, running

LONG = {"messages": [{"role": "user", "content": "And it came to pass"}], "temperature": 1.5, "stream": True}


class Seen(Monitor):
    """A monitor that keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(MODEL)
        self.events: list[Finished] = []

    def finished(self, event: Finished) -> None:
        self.events.append(event)
        super().finished(event)


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def one(engine: Engine, seen: Seen) -> Iterator[Running]:
    """One request at a time, and little patience with those who do not take their reply."""
    with running(engine, monitor=seen, active=1, waiting=2, write_s=0.5) as server:
        yield server


@pytest.fixture(scope="module")
def impatient(engine: Engine) -> Iterator[Running]:
    """With those who do not send their request."""
    with running(engine, read_s=0.5) as server:
        yield server


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def opened(server: Running, *, receive_bytes: int | None = None) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    found = socket.socket()
    if receive_bytes is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    found.connect((host, int(port)))
    found.settimeout(120)
    return found


def request(body: bytes, *more: str) -> bytes:
    head = ["POST /v1/chat/completions HTTP/1.1", "host: x", f"content-length: {len(body)}", *more, "", ""]
    return "\r\n".join(head).encode() + body


def endless(engine: Engine) -> bytes:
    """A reply that only ends with the context."""
    ends = {str(ids[0]): -100 for ids in engine.eos_token_ids}
    return json.dumps({**LONG, "logit_bias": ends}).encode()


def test_a_reply_ends_when_its_client_leaves(one: Running, seen: Seen) -> None:
    body = endless(one.engine)
    with closing(opened(one)) as client:
        client.sendall(request(body))
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert one.service.admission.active == 1
    until(lambda: one.service.admission.active == 0)
    until(lambda: seen.events[-1:] != [] and seen.events[-1].error_code is Code.CANCELLED)
    assert seen.events[-1].generated_tokens < 400
    assert seen.events[-1].status == 499


def test_who_leaves_the_queue_leaves_no_trace(one: Running, seen: Seen) -> None:
    body = endless(one.engine)
    before = len(seen.events)
    with closing(opened(one)) as first, closing(opened(one)) as second:
        first.sendall(request(body))
        assert first.recv(100)
        second.sendall(request(body))
        until(lambda: one.service.admission.waiting == 1)
        second.close()
        until(lambda: one.service.admission.waiting == 0)
    until(lambda: len(seen.events) == before + 2)
    waited = next(event for event in seen.events[before:] if not event.generated_tokens)
    assert (waited.error_code, waited.prompt_tokens) == (Code.CANCELLED, 0)


def test_a_full_queue_says_when_to_come_back(one: Running) -> None:
    body = endless(one.engine)
    clients = [opened(one) for _ in range(3)]
    for waiting, client in enumerate(clients):
        client.sendall(request(body))
        if not waiting:
            assert client.recv(10)
        until(lambda waiting=waiting: one.service.admission.waiting == waiting)  # type: ignore[misc]
    reply = httpx.post(f"{one.url}/v1/chat/completions", content=body, timeout=300)
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
    assert int(reply.headers["retry-after"]) >= 1
    for client in clients:
        client.close()
    until(lambda: one.service.admission.active == 0)


def test_a_slow_reader_holds_up_nobody(one: Running, seen: Seen) -> None:
    """What is written for it waits in memory; its turn ends, and in the end so does its connection."""
    body, before = endless(one.engine), len(seen.events)
    quick = {**LONG, "stream": False, "max_tokens": 2}
    with closing(opened(one, receive_bytes=1024)) as slow:
        slow.sendall(request(body))
        until(lambda: one.service.admission.active == 1)
        assert httpx.post(f"{one.url}/v1/chat/completions", json=quick, timeout=300).status_code == 200
        until(lambda: len(seen.events) == before + 2)
    assert {event.status for event in seen.events[before:] if event.is_stream} <= {200, 499}
    assert one.service.admission.active == 0


def test_a_body_that_does_not_come_is_given_up(impatient: Running) -> None:
    with closing(opened(impatient)) as client:
        client.sendall(request(b"x" * 100)[:-50])
        reply = b"".join(iter(lambda: client.recv(4096), b""))
        assert reply.startswith(b"HTTP/1.1 408")
        assert b"the request did not arrive within 0.5 s" in reply
        assert b"connection: close" in reply


@pytest.mark.parametrize("head", [b"", b"POST /v1/chat", b"GET / HTTP/1.1\r\nx: "])
def test_a_head_that_does_not_come_is_given_up(impatient: Running, head: bytes) -> None:
    with closing(opened(impatient)) as client:
        client.sendall(head)
        with suppress(ConnectionResetError):
            assert client.recv(4096) == b""


def test_a_body_that_is_too_large_is_not_read(engine: Engine) -> None:
    with running(engine, body_bytes=1000) as server:
        told = httpx.post(f"{server.url}/v1/completions", content=b"x" * 2000, timeout=300)
        assert (told.status_code, told.json()["error"]["code"]) == (413, "request_too_large")
        chunked = httpx.post(f"{server.url}/v1/completions", content=iter([b"x" * 600] * 4), timeout=300)
        assert chunked.status_code == 413
        assert "at most 1000 are read" in chunked.json()["error"]["message"]


def test_bodies_take_no_more_memory_than_they_may(engine: Engine) -> None:
    """They are read before their requests wait for a turn."""
    body = json.dumps({"content": "x" * 900}).encode()
    with running(engine, body_bytes=1000, bodies_bytes=1500) as server:
        with closing(opened(server)) as first:
            first.sendall(request(body)[:-1])
            until(lambda: server.service.bodies.held_bytes == len(body) - 1)
            refused = httpx.post(f"{server.url}/tokenize", content=body, timeout=300)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
            told = refused.json()["error"]["message"]
            assert told == f"bodies of {len(body) - 1} bytes are being answered, at most 1500 are held; ask again later"
            assert int(refused.headers["retry-after"]) >= 1
        until(lambda: server.service.bodies.held_bytes == 0)
        assert httpx.post(f"{server.url}/tokenize", content=body, timeout=300).status_code == 200
        until(lambda: server.service.bodies.held_bytes == 0)


def test_many_who_ask_for_its_health_cost_one_token(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs a key for it."""
    ran, goes_on = list[int](), threading.Event()
    health = engine.health

    def slow() -> None:
        ran.append(1)
        goes_on.wait(60)
        health()

    monkeypatch.setattr(engine, "health", slow)
    with running(engine) as server:
        service = server.service

        async def ask() -> list[Probe]:
            asked = asyncio.gather(*(service.probe() for _ in range(20)))
            await asyncio.sleep(0)
            goes_on.set()
            return await asked

        found = asyncio.run(ask())
        assert len({id(probe) for probe in found}) == 1
        assert (len(ran), found[0].error) == (1, None)
        assert httpx.get(f"{server.url}/health", timeout=300).status_code == 200
        assert len(ran) == 2


def test_old_turns_are_dropped_only_where_that_is_asked_for(engine: Engine) -> None:
    turns = [{"role": role, "content": f"{role} {index} " * 12} for index in range(8) for role in ("user", "assistant")]
    messages = [{"role": "system", "content": "Be brief."}, *turns, {"role": "user", "content": "And now?"}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 8}
    with running(engine) as server:
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300).status_code == 400
    with running(engine, truncate="oldest") as server:
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)
        dropped = int(reply.headers["x-dropped-messages"])
        kept = [messages[0], *messages[1 + dropped :]]
        assert dropped % 2 == 0
        assert reply.json()["usage"]["prompt_tokens"] + 8 <= engine.max_num_tokens
        shorter = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "messages": kept}, timeout=300)
        assert "x-dropped-messages" not in shorter.headers
        assert shorter.json()["choices"] == reply.json()["choices"]
        one_more = {**body, "messages": [messages[0], *messages[dropped - 1 :]]}
        again = httpx.post(f"{server.url}/v1/chat/completions", json=one_more, timeout=300)
        assert int(again.headers["x-dropped-messages"]) == 2
        alone = {**body, "messages": [{"role": "user", "content": "word " * 600}]}
        assert "the context has 512" in httpx.post(f"{server.url}/v1/chat/completions", json=alone, timeout=300).text


def test_replies_come_to_their_end_when_the_server_stops(engine: Engine) -> None:
    body = {**LONG, "max_tokens": 60, "logit_bias": {str(ids[0]): -100 for ids in engine.eos_token_ids}}
    with running(engine) as server, httpx.Client(timeout=300) as client:
        with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.service.stop()
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        refused = client.post(f"{server.url}/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get(f"{server.url}/health").status_code == 503
