"""A server that runs in a thread of the test, on a port of its own."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.serve.app import create_app
from gemma_edge.runtime.serve.server import Server, config
from gemma_edge.runtime.serve.service import Service
from gemma_edge.runtime.serve.settings import Settings

MODEL = "tiny"


@dataclass(frozen=True)
class Running:
    """url: without a path."""

    url: str
    engine: Engine
    service: Service


@contextmanager
def running(engine: Engine, *, guard: Any = None, monitor: Any = None, **settings: Any) -> Iterator[Running]:
    """The engine stays open; chats are saved at the end as `settings` ask."""
    asked = Settings(model_id=MODEL, port=0, **settings)
    app = create_app(engine, asked, guard=guard, monitor=monitor)
    server = Server(config(app, asked), app.state.service, lambda _address: None)
    server.config.port = 0
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", engine, app.state.service)
    finally:
        server.should_exit = True
        thread.join()
