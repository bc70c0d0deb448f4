"""A short request behind a long prompt: the model is shared step by step."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from tests.runtime.serve.running import running

LONG = "And it came to pass in those days, " * 150


@pytest.fixture(scope="module")
def long_model(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fair") / "fair.litertlm"
    convert("custom-int4", tiny_gemma3, out, context=2048, prefill=(8, 32))
    return out


def test_a_short_request_waits_for_a_chunk_and_no_longer(
    long_model: Path, serve_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two of its calls into the model there is at most one of the long prompt beside it."""
    calls: list[int] = []
    begun = threading.Event()
    run: Callable[..., None] = LitertSlot._run

    def noted(slot: LitertSlot, *of: Any) -> None:
        calls.append(id(slot))
        if len(calls) == 5:
            begun.set()
        run(slot, *of)

    with Engine(str(long_model), cache_dir=str(serve_cache), slots=2) as engine, running(engine) as server:
        monkeypatch.setattr(LitertSlot, "_run", noted)
        tokens = []

        def ask(text: str) -> None:
            body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 2, "stream": True}
            with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as reply:
                reply.read()
            tokens.append(text[:5])

        long = threading.Thread(target=ask, args=(LONG,))
        long.start()
        assert begun.wait(30)
        ask("Short")
        long.join()
    assert tokens == ["Short", LONG[:5]]
    first = calls[0]
    short = [index for index, slot in enumerate(calls) if slot != first]
    assert len(short) >= 3
    assert sum(slot == first for slot in calls) > 40  # of 32 tokens each
    assert max(b - a for a, b in itertools.pairwise(short)) <= 2
