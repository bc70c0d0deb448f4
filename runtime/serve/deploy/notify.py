"""Tells systemd how the service is doing: datagrams to the socket it names, as sd_notify(3) describes them.

Where nobody listens (a terminal, a container) nothing is sent.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from gemma_edge.profiles.errors import GemmaEdgeError

_PATIENCE_S = 1.0
_log = logging.getLogger(__name__)


class NotifyError(GemmaEdgeError, OSError):
    """The socket that systemd named cannot be reached."""


@dataclass(frozen=True)
class Notifier:
    """address: of a unix datagram socket, "@" first where it is abstract; None: nobody listens.

    watchdog_s: how often `watchdog` has to be called at least, or systemd restarts the service; None: it does not ask.
    """

    address: str | None = None
    watchdog_s: float | None = None

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """As systemd told this process. Raises NotifyError: what it told makes no sense."""
        address = environment.get("NOTIFY_SOCKET") or None
        if address is not None and not address.startswith(("/", "@")):
            raise NotifyError(f"NOTIFY_SOCKET is {address!r}, expected a path or @NAME; unset it outside systemd")
        meant_pid, period_us = environment.get("WATCHDOG_PID"), environment.get("WATCHDOG_USEC")
        if address is None or period_us is None or meant_pid not in (None, str(os.getpid())):
            return cls(address)
        if not period_us.isdecimal() or not int(period_us):
            raise NotifyError(f"WATCHDOG_USEC is {period_us!r}, expected microseconds; unset it outside systemd")
        return cls(address, int(period_us) / 1e6)

    def ready(self) -> None:
        """The port is open."""
        self._send("READY=1")

    def stopping(self) -> None:
        """No new request is taken."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The service is alive. sd_watchdog_enabled(3) advises to say so at half of `watchdog_s`."""
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        """Raises NotifyError: nobody has opened the socket, or reads from it."""
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_PATIENCE_S)  # a queue that nobody reads is soon full
                sender.connect(address)
                sender.sendall(text.encode())
        except OSError as error:
            raise NotifyError(
                f"cannot tell systemd {text.partition('=')[0]} at {self.address} ({error.strerror or error}); "
                "unset NOTIFY_SOCKET outside systemd"
            ) from error


async def keep_alive(notifier: Notifier, prove: Callable[[], None]) -> None:
    """Tell systemd that the service is alive, at half of the time it asks for, as long as `prove` returns.

    prove: runs in a thread of its own, and raises GemmaEdgeError where the service cannot do its work: systemd then
    hears nothing and restarts it. Ends at once where systemd does not ask.
    """
    while notifier.watchdog_s is not None:
        try:
            await asyncio.to_thread(prove)
            notifier.watchdog()
        except GemmaEdgeError as error:
            _log.error("not alive: %s", error)
        await asyncio.sleep(notifier.watchdog_s / 2)
