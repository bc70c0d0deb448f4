"""Our OpenAPI document, against the server: every reply is one that it describes."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gemma_edge.runtime.engine import Engine
from tests.runtime.serve.running import running

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_schemathesis_finds_nothing(engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(engine, max_output_tokens=4, read_s=1.0) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", CHECKS]
        command += ["--max-examples", "10", "--seed", "1", "--no-color"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "Tested: 10" in done.stdout
    [cases] = re.findall(r"(\d+) generated, (\d+ )?passed", done.stdout)[:1] or [("0", "")]
    assert int(cases[0]) > 300, done.stdout[-2000:]
    assert "Traceback" not in caplog.text


def test_the_document_names_every_route(engine: Engine) -> None:
    with running(engine) as server:
        document = httpx.get(f"{server.url}/openapi.json", timeout=300).json()
        shown = {str(path): set(item) & {"get", "post"} for path, item in document["paths"].items()}
        assert document["openapi"].startswith("3.1")
        for path, methods in shown.items():
            wrong = "delete"
            reply = httpx.request(wrong, server.url + path.replace("{model}", "tiny"))
            assert reply.status_code == 405
            assert {method.lower() for method in reply.headers["allow"].split(", ")} - {"head"} == methods
