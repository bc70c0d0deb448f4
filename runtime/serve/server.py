"""uvicorn, with bounds: on connections, on how long a request's head may take, and on how long a stop may."""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from gemma_edge.runtime.serve.deploy.notify import Notifier, keep_alive
from gemma_edge.runtime.serve.service import Service
from gemma_edge.runtime.serve.settings import Settings

_HEAD_BYTES = 64 << 10
_KEEP_ALIVE_S = 15


def _protocol(settings: Settings) -> type[asyncio.Protocol]:
    """One that closes a connection on which no whole head of a request arrives in time: uvicorn waits for ever."""

    class Bounded(H11Protocol):
        _head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head = self.loop.call_later(settings.read_s, self._too_late)

        def data_received(self, data: bytes) -> None:
            if self._head is None and (self.cycle is None or self.cycle.response_complete):
                self._head = self.loop.call_later(settings.read_s, self._too_late)
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before and self._head is not None:
                self._head.cancel()
                self._head = None

        def connection_lost(self, exc: Exception | None) -> None:
            if self._head is not None:
                self._head.cancel()
            super().connection_lost(exc)

        def _too_late(self) -> None:
            self._head = None
            self.transport.abort()

    return Bounded


class Server(uvicorn.Server):
    """Tells systemd how it is doing, and refuses who waits as soon as it is told to stop: not when all replies end."""

    def __init__(self, config: uvicorn.Config, service: Service, began: Callable[[str], None]) -> None:
        """began: called with the address, once connections are taken."""
        super().__init__(config)
        self._service, self._began = service, began
        self._notifier = Notifier.of_environment()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """As uvicorn's, which then raises the signal again, before the engine is closed."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self._began(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        self._notifier.ready()

    async def main_loop(self) -> None:
        alive = asyncio.ensure_future(keep_alive(self._notifier, self._service.engine.health))
        try:
            await super().main_loop()
        finally:
            alive.cancel()
            self._service.stop()
            self._notifier.stopping()


def serve(app: Starlette, settings: Settings, *, began: Callable[[str], None] = lambda _address: None) -> None:
    """Serve until SIGINT or SIGTERM; replies that are being written then have `settings.shutdown_s`.

    began: called with the address, once connections are taken. Raises OSError: the address cannot be had.
    """
    listener = socket.create_server((settings.host, settings.port), family=_family(settings.host), backlog=256)
    Server(config(app, settings), app.state.service, began).run(sockets=[listener])


def config(app: Starlette, settings: Settings) -> uvicorn.Config:
    """What uvicorn is told."""
    return uvicorn.Config(
        app,
        http=cast("Any", _protocol(settings)),
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_s)),
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
