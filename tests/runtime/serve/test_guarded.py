"""Guard and monitor behind a real port: what a client sees of keys, limits, policy, origins and figures."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import jsonschema
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.serve.cli import serve_main
from gemma_edge.runtime.serve.guard.keys import KeyFile, new_key
from gemma_edge.runtime.serve.monitor.alerts import Thresholds
from gemma_edge.runtime.serve.settings import ServeError, Settings
from tests.runtime.serve.running import MODEL, running

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "And it came to pass in those days"}
GREEDY = {"temperature": 0, "max_tokens": 40}
POLICY = """
[limits]
requests = 1000

[[category]]
name = "names"
words = ["lord"]
output = "mask"
replacement = "#"

[[category]]
name = "rude"
words = ["blockhead"]
input = "refuse"
"""


def _ask(client: httpx.Client, **request: Any) -> httpx.Response:
    return client.post(CHAT, json={"messages": [USER], **GREEDY, **request})


def _deltas(client: httpx.Client, **request: Any) -> list[Any]:
    """Each event of a stream but its end."""
    with client.stream("POST", CHAT, json={"messages": [USER], **GREEDY, "stream": True, **request}) as reply:
        assert reply.status_code == 200, reply.read()
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def _text(events: list[Any]) -> list[str]:
    return [event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]]


@pytest.fixture(scope="module")
def plain(engine: Engine) -> str:
    """What the model says where nobody minds."""
    with running(engine) as server, httpx.Client(base_url=server.url, timeout=300) as client:
        found: str = _ask(client).json()["choices"][0]["message"]["content"]
    assert "LORD" in found
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """keys and policy.toml."""
    folder = tmp_path_factory.mktemp("guard")
    (folder / "policy.toml").write_text(POLICY)
    return folder


@pytest.fixture(scope="module")
def client(engine: Engine, files: Path) -> Iterator[httpx.Client]:
    """With a key."""
    key = new_key(files / "keys", "phone")
    options = {"api_key_file": files / "keys", "policy_file": files / "policy.toml", "metrics": True}
    headers = {"Authorization": f"Bearer {key}"}
    with (
        running(engine, cors_origins=("https://chat.example",), **options) as server,
        httpx.Client(base_url=server.url, timeout=300, headers=headers) as client,
    ):
        yield client


def test_a_masked_word_never_leaves_whole_or_streamed(client: httpx.Client, plain: str) -> None:
    masked = plain.replace("LORD", "#")
    assert _ask(client).json()["choices"][0]["message"]["content"] == masked
    pieces = _text(_deltas(client))
    assert "".join(pieces) == masked
    assert len(pieces) > 10


def test_a_reply_that_is_refused_ends_with_content_filter(engine: Engine, files: Path, plain: str) -> None:
    path = files / "strict.toml"
    path.write_text(POLICY.replace('"mask"', '"refuse"'))
    with running(engine, policy_file=path) as server, httpx.Client(base_url=server.url, timeout=300) as client:
        events = _deltas(client)
        assert "".join(_text(events)) == plain[: plain.index("LORD")]
        assert events[-1]["choices"][0]["finish_reason"] == "content_filter"
        answer = _ask(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "RESPONSE_FILTERED")
        assert client.get("/v1/stats").json()["performance"]["total_requests"] == 1  # a refusal is no failure


def test_a_prompt_that_is_refused_is_not_run(client: httpx.Client) -> None:
    answer = _ask(client, messages=[{"role": "user", "content": "You BLOCK\u200bHEAD"}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "CONTENT_FILTERED")
    answer = client.post("/v1/completions", json={"prompt": "you blockhead", **GREEDY})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "CONTENT_FILTERED")
    tool = {"type": "function", "function": {"name": "f", "description": "for a blockhead"}}
    assert _ask(client, tools=[tool]).json()["error"]["code"] == "CONTENT_FILTERED"


def test_log_probabilities_would_tell_what_was_masked(client: httpx.Client) -> None:
    for path, request in (
        (CHAT, {"messages": [USER], "logprobs": True}),
        ("/v1/completions", {"prompt": "a", "logprobs": 1}),
    ):
        error = client.post(path, json={**GREEDY, **request}).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "logprobs")
        assert "are not told where a content policy filters replies; leave logprobs out" in error["message"]


def test_a_reply_that_breaks_its_schema_is_not_quoted_where_it_is_filtered(engine: Engine, tmp_path: Path) -> None:
    schema = {"type": "array", "items": {"const": "falcon"}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
    wanted = {"type": "json_schema", "json_schema": {"name": "birds", "schema": schema}}
    (tmp_path / "policy.toml").write_text(POLICY.replace("lord", "falcon"))
    said = []
    for options in ({}, {"policy_file": tmp_path / "policy.toml"}):
        with running(engine, **options) as server, httpx.Client(base_url=server.url, timeout=300) as client:
            answer = _ask(client, response_format=wanted, max_tokens=60)
            assert answer.status_code == 422
            said.append(answer.json()["error"]["message"])
    assert "falcon" in said[0]
    assert said[1] == "the reply breaks its JSON schema; ask again"


def test_without_the_key_only_the_page_and_health_are_shown(client: httpx.Client) -> None:
    with httpx.Client(base_url=client.base_url) as stranger:
        for path in ("/v1/models", "/v1/stats", "/v1/usage", "/metrics", "/openapi.json", "/nothing"):
            answer = stranger.get(path)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), path
        assert stranger.get("/health").json()["errors"] == []
        page = stranger.get("/")
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert 'data-key="needed"' in page.text
        assert _ask(stranger).status_code == 401


def test_usage_and_figures_are_told(client: httpx.Client) -> None:
    before = client.get("/v1/usage").json()
    tokens = _ask(client).json()["usage"]["total_tokens"]
    after = client.get("/v1/usage").json()
    assert after["name"] == "phone"
    assert after["requests_last_hour"] - before["requests_last_hour"] == 1
    assert after["remaining_requests"] == 1000 - after["requests_last_hour"]
    assert after["tokens_last_hour"] - before["tokens_last_hour"] == tokens
    stats = client.get("/v1/stats").json()
    assert stats["state"]["model"] == MODEL
    assert stats["performance"]["first_token"]["p50"] > 0
    assert 0 < stats["quality"]["avg_safety"] <= 1
    scrape = client.get("/metrics")
    assert scrape.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(scrape.text)}
    counted = sum(
        sample.value for sample in families["gemma_edge_first_token_seconds"].samples if sample.name.endswith("_count")
    )
    assert counted == stats["performance"]["total_requests"]
    assert families["gemma_edge_memory_bytes"].samples[0].value > 1 << 20


def test_figures_are_as_the_document_describes_them(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["security"] == [{"key": []}]
    for path, name in (("/v1/stats", "Stats"), ("/v1/usage", "CallerUsage"), ("/health", "Health")):
        assert path in document["paths"]
        jsonschema.validate(client.get(path).json(), document["components"]["schemas"][name])


def test_a_limit_is_told_with_when_to_come_back(engine: Engine, files: Path) -> None:
    path = files / "limited.toml"
    path.write_text("[limits]\nrequests = 2\nwindow_s = 600\n")
    with running(engine, policy_file=path) as server, httpx.Client(base_url=server.url, timeout=300) as client:
        began = time.monotonic()
        assert [_ask(client, max_tokens=2).status_code for _ in range(2)] == [200, 200]
        refused = _ask(client)
        passed = time.monotonic() - began
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "RATE_LIMIT_EXCEEDED")
        assert 600 - passed <= int(refused.headers["Retry-After"]) <= 600
        assert client.get("/health").status_code == 200


def test_tokens_that_were_set_aside_come_back(engine: Engine, files: Path) -> None:
    path = files / "tokens.toml"
    path.write_text("[limits]\nrequests = 0\ntokens = 300\n")
    with running(engine, policy_file=path) as server, httpx.Client(base_url=server.url, timeout=300) as client:
        assert [_ask(client, max_tokens=200, stop=["e"]).status_code for _ in range(4)] == [200] * 4
        answer = _ask(client, max_tokens=400)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "RATE_LIMIT_EXCEEDED")


def test_only_named_origins_may_ask_from_a_browser(client: httpx.Client, engine: Engine) -> None:
    def preflight(client: httpx.Client, origin: str) -> httpx.Response:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        with httpx.Client(base_url=client.base_url) as stranger:  # a browser sends no key with it
            return stranger.options(CHAT, headers={"Origin": origin, **asked})

    allowed = preflight(client, "https://chat.example")
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://chat.example"
    assert "Access-Control-Allow-Origin" not in preflight(client, "https://evil.example").headers
    own = client.get("/v1/models", headers={"Origin": "https://chat.example"})
    assert own.headers["Access-Control-Allow-Origin"] == "https://chat.example"
    with running(engine) as server, httpx.Client(base_url=server.url) as closed:
        headers = closed.get("/v1/models", headers={"Origin": "https://chat.example"}).headers
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/", "https://", "null"])
def test_an_origin_is_checked(origin: str) -> None:
    with pytest.raises(ServeError, match=r"is no origin, expected such as https://chat\.example, without a path"):
        Settings(model_id="m", cors_origins=(origin,))


def test_an_alert_is_sent_where_it_was_asked_for(engine: Engine) -> None:
    arrived: SimpleQueue[Any] = SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arrived.put((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Quiet."""

    listener = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{listener.server_port}/alerts"
        thresholds = Thresholds(max_response_s=1e-6, min_tokens_per_s=None)
        with (
            running(engine, webhook=address, thresholds=thresholds) as server,
            httpx.Client(base_url=server.url, timeout=300) as client,
        ):
            assert _ask(client).status_code == 200
            path, alert = arrived.get(timeout=300)
            health = client.get("/health").json()
            alerts = client.get("/v1/stats").json()["alerts"]
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
    assert path == "/alerts"
    assert (alert["model_name"], alert["type"], alert["severity"]) == (MODEL, "performance", "medium")
    assert health["status"] == "degraded"
    assert alert["message"] in health["reasons"]
    assert alert["message"] in [each["message"] for each in alerts]


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    for arguments, message in (
        (["--alert", "speed=1"], '"speed=1" names no threshold'),
        (["--cors-origin", "here"], '"here" is no origin'),
    ):
        failed = CliRunner().invoke(serve_main, [str(tmp_path / "none.litertlm"), *arguments])
        assert message in str(failed.exception)


def test_the_command_makes_a_key_and_shows_it_once(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    done = CliRunner().invoke(serve_main, ["--new-key", "phone", "--api-key-file", str(path)])
    assert done.exit_code == 0, done.output
    key = done.stdout.strip()
    found = KeyFile(path).find(key)
    assert found is not None
    assert found.name == "phone"
    assert key not in path.read_text()
    assert f"This is the only time that the key of phone is shown; {path} has its hash." in done.stderr
    for arguments, message in (
        (["--new-key", "phone"], "--new-key needs --api-key-file FILE"),
        ([], "Missing argument 'BUNDLE'."),
        (["--print-unit", "--profile", "phone-2gb"], "say for which BUNDLE; a key is made by a command of its own"),
    ):
        failed = CliRunner().invoke(serve_main, arguments)
        assert (failed.exit_code, message in failed.output) == (2, True), failed.output
