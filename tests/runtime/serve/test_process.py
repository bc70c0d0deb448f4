"""`gemma-edge serve` as a process: started, loaded, attacked, stopped."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from gemma_edge.profiles.budget import OverBudget
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.executors.open import plan_of
from gemma_edge.runtime.formats.model import open_model
from gemma_edge.runtime.serve.cli import serve_main
from tools.serve_hostile import hostile
from tools.serve_load import load, report
from tools.serving import serving

ASKED = {"messages": [{"role": "user", "content": "And it came to pass " * 12}], "temperature": 0, "max_tokens": 4}


def test_it_stops_when_told_and_finds_its_chats_again(serve_model: Path, tmp_path: Path) -> None:
    options = ("--cache-dir", str(tmp_path), "--model-id", "old-books", "--slots", "2")
    with serving(serve_model, *options) as server:
        first = httpx.post(
            f"{server.url}/v1/chat/completions", json={**ASKED, "model": "old-books", "stream": True}, timeout=300
        )
        assert first.status_code == 200
        assert httpx.get(f"{server.url}/metrics", timeout=300).status_code == 404
        log = server.log
        assert re.search(r"old-books at http://127.0.0.1:\d+/v1, 2 slots of 512 tokens", log.read_text())
        server.process.terminate()
        assert server.process.wait(120) == 0
        assert "Traceback" not in log.read_text()
    with serving(serve_model, *options, "--metrics") as server:
        usage = httpx.post(f"{server.url}/v1/chat/completions", json=ASKED, timeout=300).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
        assert "gemma_edge_requests_total" in httpx.get(f"{server.url}/metrics", timeout=300).text


def test_many_clients_get_their_own_replies(serve_model: Path, serve_cache: Path) -> None:
    with serving(serve_model, "--cache-dir", str(serve_cache), "--queue", "8", "--threads", "1") as server:
        seen = asyncio.run(load(server, clients=24, seconds=5, answers=21))
        assert not seen.problems, (report(seen), seen.problems[:5])
        assert seen.counts["answered"] > 20
        assert seen.counts["left"]
        assert "Traceback" not in server.log.read_text()


def test_hostile_requests_are_answered_as_documented(serve_model: Path, serve_cache: Path) -> None:
    with serving(serve_model, "--cache-dir", str(serve_cache), "--threads", "1") as server:
        seen = asyncio.run(hostile(server, requests=300, seed=2))
        assert not seen.problems, seen.problems[:5]
        assert {"200", "400", "413", "422"} <= seen.statuses.keys()
        assert "Traceback" not in server.log.read_text()
        assert max(seen.hard_kib) - seen.hard_kib[0] < 96 << 10


def test_a_port_that_is_taken(serve_model: Path, serve_cache: Path) -> None:
    with serving(serve_model, "--cache-dir", str(serve_cache)) as server:
        port = server.url.rpartition(":")[2]
        done = CliRunner().invoke(serve_main, [str(serve_model), "--port", port, "--cache-dir", str(serve_cache)])
        assert isinstance(done.exception, GemmaEdgeError)
        assert re.match(rf"127.0.0.1:{port} cannot be listened on \(.*\); choose another port", str(done.exception))


def test_a_host_that_is_none(serve_model: Path, serve_cache: Path) -> None:
    options = ["--host", "none.invalid", "--port", "0", "--cache-dir", str(serve_cache)]
    done = CliRunner().invoke(serve_main, [str(serve_model), *options])
    assert isinstance(done.exception, GemmaEdgeError)
    assert re.fullmatch(r"none.invalid:0 cannot be listened on \([^(]+\); choose another host", str(done.exception))


@pytest.mark.parametrize("slots", ["none", "0", "-1"])
def test_slots_that_are_none(serve_model: Path, slots: str) -> None:
    done = CliRunner().invoke(serve_main, [str(serve_model), "--slots", slots])
    assert done.exit_code
    assert "is no number, expected one or auto" in done.output or "slots is" in str(done.exception)


def test_a_slot_that_does_not_fit_is_refused_with_numbers(serve_model: Path, tmp_path: Path) -> None:
    plan = plan_of(open_model(serve_model))
    two, three = (plan.footprint(None, anonymous_weights=False, slots=slots) for slots in (2, 3))
    assert three.total_bytes > two.total_bytes
    text = (Path(__file__).parents[3] / "profiles" / "phone-2gb.toml").read_text()
    small = tmp_path / "small.toml"
    small.write_text(text.replace('"2 GiB"', f'"{two.total_bytes // 1024} KiB"', 1))
    done = CliRunner().invoke(serve_main, [str(serve_model), "--profile", str(small), "--slots", "3"])
    assert isinstance(done.exception, OverBudget), done.output
    assert re.search(r"needs .* MiB .*, the budget is .* MiB, .* too much; slots=1 would need", str(done.exception))
