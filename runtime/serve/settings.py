"""How a server is set up: what `gemma-edge serve` asks, as one value."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.serve.monitor.alerts import Thresholds

MIB = 1 << 20


class ServeError(GemmaEdgeError, ValueError):
    """A setting of the server cannot be honoured."""


_ORIGIN = re.compile(r"https?://[^/?#\s]+")
_COUNTS = (
    "active", "waiting", "body_bytes", "media_bytes", "image_pixels", "json_depth", "bodies_bytes", "rows_bytes",
    "connections", "saved_bytes", "max_output_tokens",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every bound of a server. Bytes, seconds and tokens as the names say.

    model_id: what clients call the model; others are refused.
    host, port: where it listens.
    api_key_file: hashes of keys; None: whoever reaches the port may ask.
    policy_file: the content policy; None: none.
    metrics: whether /metrics is served.
    cors_origins: pages of these origins may ask from a browser, such as "https://chat.example"; "*": of any.
    webhook: where alerts are sent; None: nowhere. thresholds: of alerts.
    cache_dir: where chats are saved, in its folder `chats`; None: they live as long as the process.
    saved_bytes: the most that saved chats take there.
    idle_save_s: how long a chat was silent before it is saved.
    truncate: "oldest" drops the oldest turns of a chat that is too long; None refuses it.
    active: requests that run at once; None: as many as the engine has slots.
    waiting: requests that may wait for their turn; more are refused with 429.
    wait_s: the longest wait for a turn; then 503.
    body_bytes: the largest body. media_bytes: of one image or recording in it. image_pixels: of one image.
    json_depth: of a body. bodies_bytes: of all bodies that are being read or answered; more are refused with 503.
    rows_bytes: what encoded images and recordings of all requests may take at once.
    connections: at once; more are refused.
    read_s: the longest that a client may take to send a request. write_s: to take one piece of a stream.
    shutdown_s: how long replies may go on after the server was told to stop.
    max_output_tokens: of a request that does not say; None: what the context holds.
    """

    model_id: str
    host: str = "127.0.0.1"
    port: int = 8080
    api_key_file: Path | None = None
    policy_file: Path | None = None
    metrics: bool = False
    cors_origins: tuple[str, ...] = ()
    webhook: str | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    cache_dir: Path | None = None
    saved_bytes: int = 2048 * MIB
    idle_save_s: float = 60.0
    truncate: Literal["oldest"] | None = None
    active: int | None = None
    waiting: int = 64
    wait_s: float = 120.0
    body_bytes: int = 32 * MIB
    media_bytes: int = 16 * MIB
    image_pixels: int = 24_000_000
    json_depth: int = 64
    bodies_bytes: int = 128 * MIB
    rows_bytes: int = 32 * MIB
    connections: int = 512
    read_s: float = 30.0
    write_s: float = 30.0
    shutdown_s: float = 20.0
    max_output_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.model_id:
            raise ServeError("model_id is empty, expected a name for the model; leave it out for the file's")
        if self.truncate not in (None, "oldest"):
            raise ServeError(f'truncate is "{self.truncate}", expected "oldest"; leave it out to refuse long chats')
        if not 0 <= self.port < 1 << 16:
            raise ServeError(f"port is {self.port}, expected 0 to 65535; leave it out for 8080")
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ServeError(f'"{origin}" is no origin, expected such as https://chat.example, without a path')
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ServeError(f"{name} is {value}, expected at least 1; leave it out for the default")
        if self.bodies_bytes < self.body_bytes:
            raise ServeError(
                f"bodies_bytes is {self.bodies_bytes}, expected at least body_bytes, {self.body_bytes}; raise it"
            )
        for name in ("wait_s", "read_s", "write_s", "shutdown_s", "idle_save_s"):
            value = getattr(self, name)
            if not value > 0:
                raise ServeError(f"{name} is {value}, expected more than 0 seconds; leave it out for the default")
