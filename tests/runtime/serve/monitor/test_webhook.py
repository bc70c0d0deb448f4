"""Alerts on their way to a real server on this machine."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from gemma_edge.runtime.serve.monitor.alerts import Alert, Severity, Subject
from gemma_edge.runtime.serve.monitor.webhook import Webhook, WebhookError

ALERT = Alert(Subject.MEMORY, "9000 MiB of memory", Severity.HIGH, 1000.0)


class _Handler(BaseHTTPRequestHandler):
    got: ClassVar[list[object]] = []
    may_answer = threading.Event()

    def do_POST(self) -> None:
        self.may_answer.wait(10)
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
        else:
            self.send_response(500 if self.path == "/broken" else 204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    _Handler.got.clear()
    _Handler.may_answer.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_alert_arrives(server: str) -> None:
    webhook = Webhook(f"{server}/alerts", "tiny")
    webhook(ALERT, False)
    webhook(ALERT, True)
    webhook.close()
    assert _Handler.got == [
        {
            "model_name": "tiny", "type": "memory", "message": "9000 MiB of memory", "severity": "high",
            "timestamp": 1000.0, "ended": ended,
        }
        for ended in (False, True)
    ]  # fmt: skip


@pytest.mark.parametrize(("path", "what"), [("/broken", "HTTP Error 500"), ("/moved", "HTTP Error 302")])
def test_what_is_not_taken_is_logged_without_the_path(
    server: str, path: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    webhook = Webhook(server + path, "tiny")
    with caplog.at_level(logging.WARNING, logger="gemma_edge.monitor"):
        webhook(ALERT, False)
        webhook.close()
    [record] = caplog.records
    assert record.getMessage().startswith(f"alert not sent to http://127.0.0.1: {what}")
    assert len(_Handler.got) == 1  # a redirect is not followed


def test_a_server_that_does_not_answer_holds_up_nobody(server: str, caplog: pytest.LogCaptureFixture) -> None:
    _Handler.may_answer.clear()
    webhook = Webhook(server, "tiny")
    with caplog.at_level(logging.WARNING, logger="gemma_edge.monitor"):
        for _ in range(30):
            webhook(ALERT, False)
    lost = sum("16 wait already" in record.getMessage() for record in caplog.records)
    assert 13 <= lost <= 14
    _Handler.may_answer.set()
    webhook.close()
    assert len(_Handler.got) == 30 - lost


@pytest.mark.parametrize("url", ["ftp://example.org", "/etc/passwd", "file:///etc/passwd", "http://", ""])
def test_only_web_addresses_are_taken(url: str) -> None:
    with pytest.raises(WebhookError, match=r"is no address for alerts, expected http://\.\.\. or https://\.\.\."):
        Webhook(url, "tiny")


def test_nothing_is_started_before_there_is_an_alert() -> None:
    before = set(threading.enumerate())
    webhook = Webhook("http://127.0.0.1:9", "tiny")
    assert "gemma-edge alerts" not in [thread.name for thread in set(threading.enumerate()) - before]
    webhook.close()
