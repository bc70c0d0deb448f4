"""Closing while a reply is being written ends the reply: nobody reads it any more."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import ClosedError
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from gemma_edge.runtime.text.sampler import SamplerConfig

GREEDY = SamplerConfig(top_k=1)
PROMPT = "In the beginning"
MORE = 3  # steps that may be under way, or begin before the news is there


class Steps:
    """Decode steps, each of at least 10 ms; the context holds 500 of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.begun = threading.Event()
        decode = LitertSlot.decode

        def counted(slot: LitertSlot, token_id: int) -> object:
            self.count += 1
            if self.count >= 5:
                self.begun.set()
            time.sleep(0.01)
            return decode(slot, token_id)

        monkeypatch.setattr(LitertSlot, "decode", counted)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


@pytest.fixture
def engine(tiny_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(
        str(tiny_bundle("gemma3", "fp32")), Backend.CPU(thread_count=1), cache_dir=str(tmp_path_factory.mktemp("cache"))
    )


def closed_meanwhile(read: Callable[[], object], close: Callable[[], None], steps: Steps) -> list[object]:
    """What `read` gives, or raises, where `close` is called from another thread while it reads."""
    found: list[object] = []

    def reader() -> None:
        try:
            found.append(read())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=reader)
    thread.start()
    assert steps.begun.wait(60)
    close()
    at = steps.count
    thread.join(60)
    assert not thread.is_alive()
    time.sleep(0.1)
    assert steps.count <= at + MORE
    return found


async def read_async(conversation: Conversation) -> str:
    return "".join([str(piece) async for piece in conversation.asend_message_async(PROMPT)])


READS: dict[str, Callable[[Conversation], object]] = {
    "a stream": lambda conversation: "".join(map(str, conversation.send_message_async(PROMPT))),
    "a message": lambda conversation: str(conversation.send_message(PROMPT)),
    "an asynchronous stream": lambda conversation: asyncio.run(read_async(conversation)),
    "an asynchronous message": lambda conversation: str(asyncio.run(conversation.asend_message(PROMPT))),
}


@pytest.mark.parametrize("kind", READS)
def test_a_conversation(kind: str, engine: Engine, steps: Steps) -> None:
    with engine:
        conversation = engine.create_conversation(sampler_config=GREEDY)
        [text] = closed_meanwhile(lambda: READS[kind](conversation), conversation.close, steps)
        assert isinstance(text, str)
        assert conversation.finish_reason == "cancelled"
        assert engine.create_conversation(sampler_config=GREEDY).send_message("x", max_output_tokens=2)


def test_a_session(engine: Engine, steps: Steps) -> None:
    with engine:
        session = engine.create_session(sampler_config=GREEDY)
        session.run_prefill([PROMPT])
        [pieces] = closed_meanwhile(lambda: list(session.run_decode_async()), session.close, steps)
        assert isinstance(pieces, list)


def test_the_with_block_of_a_conversation(engine: Engine, steps: Steps) -> None:
    """As where the client of a server has gone."""
    with engine, engine.create_conversation(sampler_config=GREEDY) as conversation:
        stream = conversation.send_message_async(PROMPT)
        next(stream)
    at = steps.count
    time.sleep(0.1)
    assert steps.count <= at + MORE


@pytest.mark.parametrize("kind", READS)
def test_the_engine(kind: str, engine: Engine, steps: Steps) -> None:
    """Whoever reads is told so."""
    conversation = engine.create_conversation(sampler_config=GREEDY)
    [error] = closed_meanwhile(lambda: READS[kind](conversation), engine.close, steps)
    assert isinstance(error, ClosedError)
    assert str(error) == "the executor is closed; create a new engine"
