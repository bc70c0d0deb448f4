"""A local server that speaks the part of the Hugging Face hub's HTTP API that a download needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One repository, and how the server misbehaves.

    files: contents by path.
    token: what a request must carry as a bearer token to get a file; None for an open repository.
    drop_after_bytes: the first transfer longer than this is cut there; None for never.
    requests: every request so far: method, path, Range header or "".
    """

    repository: str
    files: dict[str, bytes]
    token: str | None = None
    drop_after_bytes: int | None = None
    status: HTTPStatus | None = None  # answered to everything
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    endpoint: str = ""

    def fetched(self) -> set[str]:
        """Names of the files of which content was asked for."""
        return {path.split(f"/resolve/{COMMIT}/")[1] for method, path, _ in self.requests if "/resolve/" in path}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run `hub` on a free port of 127.0.0.1; `hub.endpoint` is its address."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        api, files = f"/api/models/{self.hub.repository}/", f"/{self.hub.repository}/resolve/{COMMIT}/"
        if self.hub.status is not None:
            self._refuse(self.hub.status, "")
        elif path.startswith(api + "revision/"):
            if path.removeprefix(api + "revision/") not in ("main", COMMIT):
                self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
            else:
                names = [{"rfilename": name} for name in self.hub.files]
                self._json({"id": self.hub.repository, "sha": COMMIT, "siblings": names})
        elif path == f"{api}tree/{COMMIT}":
            self._json([_tree_entry(name, content) for name, content in self.hub.files.items()])
        elif path.startswith(files) and path.removeprefix(files) in self.hub.files:
            if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
                # As the hub does: 401 to strangers, 403 to users who have not accepted the licence.
                known = "Authorization" in self.headers
                self._refuse(HTTPStatus.FORBIDDEN if known else HTTPStatus.UNAUTHORIZED, "GatedRepo")
            else:
                self._file(self.hub.files[path.removeprefix(files)])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")

    def _file(self, content: bytes) -> None:
        requested = self.headers.get("Range", "")
        begin = int(requested.removeprefix("bytes=").split("-")[0]) if requested else 0
        self.send_response(HTTPStatus.PARTIAL_CONTENT if requested else HTTPStatus.OK)
        if requested:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        for name, value in (
            ("ETag", etag),
            ("X-Linked-ETag", etag),
            ("X-Linked-Size", str(len(content))),
            ("X-Repo-Commit", COMMIT),
            ("Accept-Ranges", "bytes"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.hub.drop_after_bytes
        if limit is not None and len(content) - begin > limit:
            self.hub.drop_after_bytes = None
            self.wfile.write(content[begin : begin + limit])
            self.close_connection = True  # fewer bytes than announced: the client sees the connection break
        else:
            self.wfile.write(content[begin:])

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: HTTPStatus, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the test output clean; `Hub.requests` has it all."""


def _tree_entry(name: str, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    return {
        "type": "file", "path": name, "size": len(content), "oid": digest[:40],
        "lfs": {"oid": digest, "size": len(content), "pointerSize": 134},
    }  # fmt: skip
