"""Alerts sent to a web address: by a thread of its own, few at a time, and given up soon, so that nothing waits."""

import json
import logging
import threading
import urllib.request
from dataclasses import asdict
from http.client import HTTPException
from queue import Full, Queue
from urllib.parse import urlsplit

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.serve.monitor.alerts import Alert

_log = logging.getLogger("gemma_edge.monitor")
_WAITING = 16  # alerts that may wait to be sent
_TIMEOUT_S = 5.0


class WebhookError(GemmaEdgeError, ValueError):
    """An address that nothing can be sent to."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An alert goes where it was sent, and nowhere else."""

    def redirect_request(self, *_: object) -> None:
        return None


class Webhook:
    """POSTs each alert as JSON: model_name, type, message, severity, timestamp, ended. What cannot be sent is logged
    and dropped: the next alert may get through."""

    def __init__(self, url: str, model_name: str) -> None:
        """Raises WebhookError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WebhookError(f"{url!r} is no address for alerts, expected http://... or https://...")
        self._url = url
        self._where = f"{parts.scheme}://{parts.hostname}"  # a path may hold a secret
        self._model_name = model_name
        self._queue: Queue[bytes | None] = Queue(_WAITING)
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._thread: threading.Thread | None = None

    def __call__(self, alert: Alert, has_ended: bool) -> None:
        """Send it soon. Returns at once."""
        body = json.dumps({"model_name": self._model_name, **asdict(alert), "ended": has_ended}).encode()
        try:
            self._queue.put_nowait(body)
        except Full:
            _log.warning("alert not sent to %s: %d wait already", self._where, _WAITING)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gemma-edge alerts", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Send what waits, and end. Takes no longer than one alert may for each that waits."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (body := self._queue.get()) is not None:
            request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"}, method="POST")
            try:
                with self._opener.open(request, timeout=_TIMEOUT_S) as response:
                    response.read(1)
            except (OSError, HTTPException) as error:
                _log.warning("alert not sent to %s: %s", self._where, error)
