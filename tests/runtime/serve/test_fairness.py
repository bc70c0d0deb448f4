"""A short request behind a long prompt: the model is shared step by step."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from gemma_edge.runtime.kv.sequence import TokenSequence
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
    """Once it has a slot, none of the long prompt's calls comes before its first token: one ran as it arrived."""
    calls: list[int] = []
    begun, come = threading.Event(), threading.Event()
    run: Callable[..., None] = LitertSlot._run

    def noted(slot: LitertSlot, *of: Any) -> None:
        calls.append(id(slot))
        if len(calls) == 5:
            begun.set()
        if id(slot) == calls[0] and begun.is_set():
            come.wait(60)  # the short request has its turn
            time.sleep(0.02)  # and 30 more of these to reach the model
        run(slot, *of)

    with Engine(str(long_model), cache_dir=str(serve_cache), slots=2) as engine, running(engine) as server:
        monkeypatch.setattr(LitertSlot, "_run", noted)
        new_sequence = engine.new_sequence

        def sequence(**options: Any) -> TokenSequence:
            if begun.is_set():
                come.set()
            return new_sequence(**options)

        monkeypatch.setattr(engine, "new_sequence", sequence)
        first_tokens = []

        def ask(text: str) -> None:
            body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 1}
            httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300).raise_for_status()
            first_tokens.append(text[:5])

        long = threading.Thread(target=ask, args=(LONG,))
        long.start()
        assert begun.wait(60)
        ask("Short, please, " * 4)
        long.join()
    assert first_tokens == ["Short", LONG[:5]]
    first = calls[0]
    short = [index for index, slot in enumerate(calls) if slot != first]
    assert len(short) >= 3
    assert sum(slot == first for slot in calls) > 40  # of 32 tokens each
    assert short == list(range(short[0], short[0] + len(short)))
