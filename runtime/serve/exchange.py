"""One HTTP request and its reply, with a client that may be slow, or leave."""

import asyncio
import json
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any, Self, TypeVar

from starlette.types import Message, Receive, Scope, Send

from gemma_edge.runtime.serve.admission import Bodies
from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.hooks import Caller
from gemma_edge.runtime.serve.settings import Settings

Value = TypeVar("Value")

_JSON = {"content-type": "application/json"}
_EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


class ClientLeftError(Exception):
    """Nobody is there to be answered."""


class Exchange:
    """For one task at a time. To be left as a context manager, which gives back what its body holds of `bodies`."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings, bodies: Bodies) -> None:
        self._receive, self._send = receive, send
        self._settings, self._bodies = settings, bodies
        self._held_bytes = 0
        self._is_read = False
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.caller: Caller = scope.get("state", {}).get("caller", Caller())
        self.status = 0  # of the reply, once it was begun

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bodies.give_back(self._held_bytes)
        self._held_bytes = 0

    async def body(self) -> bytes:
        """All of it. Raises ClientLeftError, RefusedError: 413 where it is too large, 408 where it takes too long, 503
        where the bodies of other requests leave no room."""
        most = self._settings.body_bytes
        length = self.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise _too_large(length, most)
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.read_s):
                while not self._is_read:
                    chunk = await self._chunk()
                    if len(body) + len(chunk) > most:
                        raise _too_large(f"more than {most}", most)
                    self._bodies.take(len(chunk))
                    self._held_bytes += len(chunk)
                    body += chunk
        except TimeoutError:
            raise RefusedError(
                408, Code.TIMEOUT, f"the request did not arrive within {self._settings.read_s:g} s; send it faster"
            ) from None
        return bytes(body)

    async def _chunk(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        self._is_read = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk

    async def while_there(self, work: Awaitable[Value]) -> Value:
        """What comes of the work, which is cancelled when the client leaves. Raises ClientLeftError then."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._left())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not working.done():
                working.cancel()
            await asyncio.wait({working, leaving})
        if working.cancelled():
            raise ClientLeftError
        return working.result()

    async def _left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """A whole reply."""
        body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        await self.whole(status, body, {**_JSON, **(headers or {})})

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """A reply of any kind."""
        await self._start(status, {**headers, "content-length": str(len(body))})
        await self._put({"type": "http.response.body", "body": body})

    async def refuse(self, refusal: RefusedError) -> None:
        """A request that was not read to its end closes its connection."""
        closing = {} if self._is_read else {"connection": "close"}
        with suppress(ClientLeftError):
            await self.json(refusal.status, refusal.to_json(), {**refusal.headers, **closing})

    async def events(self, headers: Mapping[str, str] | None = None) -> None:
        """Begin a stream."""
        await self._start(200, {**_EVENTS, **(headers or {})})

    async def event(self, value: Any) -> None:
        """One event of a stream: JSON, or a word."""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
        await self._put({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})

    async def end(self) -> None:
        """Of a stream."""
        await self._put({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._put({"type": "http.response.start", "status": status, "headers": raw})

    async def _put(self, message: Message) -> None:
        """Raises ClientLeftError: it takes nothing more."""
        try:
            async with asyncio.timeout(self._settings.write_s):
                await self._send(message)
        except (TimeoutError, OSError):
            raise ClientLeftError from None


def _too_large(found: str, most: int) -> RefusedError:
    return RefusedError(413, Code.TOO_LARGE, f"the body has {found[:20]} bytes, at most {most} are read; send less")
