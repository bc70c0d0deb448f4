"""Chats find their keys and values again: between other requests, and after a restart."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.engine import Engine
from tests.runtime.serve.running import Running, running

CHATS, TURNS = 8, 20
OPENINGS = (
    "In the beginning God created the heaven and the earth",
    "It is a truth universally acknowledged",
    "And they answered, saying",
    "He went to the house of the king",
    "And it came to pass in those days",
    "The sun rose upon the water",
    "Now there was a man in the land",
    "Let us go up to the mountain",
)
TITLE = "Write a title of three words for this talk: "


@pytest.fixture(scope="module")
def long_model(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Context 2048, window 64, rings of 96 slots."""
    out = tmp_path_factory.mktemp("long") / "long.litertlm"
    convert("custom-int4", tiny_gemma3, out, context=2048, prefill=(8, 32))
    return out


@pytest.fixture(scope="module")
def open_engine(long_model: Path, serve_cache: Path) -> Callable[[], Engine]:
    return lambda: Engine(str(long_model), cache_dir=str(serve_cache), slots=4)


class Chat:
    """One user's, whose client sends all of it each time."""

    def __init__(self, opening: str) -> None:
        self.opening = opening
        self.messages: list[Any] = []
        self.prompt_tokens = 0  # of the last request
        self.run = self.new = 0  # tokens of prompts that ran, and that were not in the chat before

    async def say(self, client: httpx.AsyncClient, text: str) -> dict[str, Any]:
        self.messages.append({"role": "user", "content": text})
        request = {"messages": self.messages, "temperature": 0, "max_tokens": 12, "stream": True}
        reply = await self._streamed(client, {**request, "stream_options": {"include_usage": True}})
        self.messages.append({"role": "assistant", "content": reply["text"]})
        usage: dict[str, Any] = reply["usage"]
        self.run += usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        self.new += usage["prompt_tokens"] - self.prompt_tokens
        self.prompt_tokens = usage["prompt_tokens"]
        return usage

    @staticmethod
    async def _streamed(client: httpx.AsyncClient, request: Any) -> dict[str, Any]:
        text, usage = "", dict[str, Any]()
        async with client.stream("POST", "/v1/chat/completions", json=request) as reply:
            assert reply.status_code == 200
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    usage = chunk["usage"] or usage
                    text += "".join(choice["delta"].get("content", "") for choice in chunk["choices"])
        return {"text": text, "usage": usage}


async def ask_for_a_title(client: httpx.AsyncClient, chat: Chat) -> None:
    """What a chat's page asks beside it."""
    content = TITLE + str(chat.messages[-1]["content"])
    request = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 4}
    assert (await client.post("/v1/chat/completions", json=request)).status_code == 200


async def talk(server: Running, chats: Sequence[Chat], turns: range) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        for turn in turns:
            for chat in chats:
                await chat.say(client, f"{chat.opening}, and what then? {turn}")
                await ask_for_a_title(client, chat)


def test_eight_chats_run_little_but_what_is_new(
    open_engine: Callable[[], Engine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On four slots, with titles in between; and again after a restart."""
    chats = [Chat(opening) for opening in OPENINGS]
    with open_engine() as engine, running(engine, cache_dir=tmp_path) as server:
        asyncio.run(talk(server, chats, range(TURNS)))
    run, new = sum(chat.run for chat in chats), sum(chat.new for chat in chats)
    with capsys.disabled():
        print(f"\n{CHATS} chats of {TURNS} turns: {run} tokens of prompts ran, {new} were new: {run / new:.3f}")
    assert run <= 1.1 * new
    assert len(list((tmp_path / "chats").rglob("*.kv"))) >= CHATS
    before = [chat.prompt_tokens for chat in chats]
    with open_engine() as engine, running(engine, cache_dir=tmp_path) as server:
        shares = asyncio.run(go_on(server, chats))
    with capsys.disabled():
        print(f"after a restart: {max(shares):.3f} of a fresh prefill at most")
    assert min(before) > 500
    assert max(shares) <= 0.1


async def go_on(server: Running, chats: Sequence[Chat]) -> list[float]:
    """Of each chat's next prompt, the share that had to run."""
    shares = []
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        for chat in chats:
            usage = await chat.say(client, "Go on")
            shares.append(1 - usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"])
    return shares


def test_titles_leave_chats_their_slots(open_engine: Callable[[], Engine]) -> None:
    """Three chats and titles on four slots, without a place to save anything."""
    chats = [Chat(opening) for opening in OPENINGS[:3]]
    with open_engine() as engine, running(engine) as server:
        asyncio.run(talk(server, chats, range(6)))
    assert sum(chat.run for chat in chats) <= 1.1 * sum(chat.new for chat in chats)


def test_a_chat_that_is_silent_is_saved(open_engine: Callable[[], Engine], tmp_path: Path) -> None:
    with open_engine() as engine, running(engine, cache_dir=tmp_path, idle_save_s=0.2) as server:
        asyncio.run(one_turn(server))
        for _ in range(2000):
            if list((tmp_path / "chats").rglob("*.kv")):
                break
            asyncio.run(asyncio.sleep(0.05))
        assert len(list((tmp_path / "chats").rglob("*.kv"))) == 1


async def one_turn(server: Running) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        await Chat(OPENINGS[0]).say(client, OPENINGS[0] * 3)


def test_a_damaged_file_is_run_again(open_engine: Callable[[], Engine], tmp_path: Path) -> None:
    chat = Chat(OPENINGS[0])
    with open_engine() as engine, running(engine, cache_dir=tmp_path) as server:
        asyncio.run(talk(server, [chat], range(3)))
    [path] = (tmp_path / "chats").rglob("*.kv")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF  # in the middle of keys and values
    path.write_bytes(content)
    said = list(chat.messages)
    with open_engine() as engine, running(engine, cache_dir=tmp_path) as server:
        [share] = asyncio.run(go_on(server, [chat]))
    assert share == 1
    fresh = Chat(OPENINGS[0])
    fresh.messages = said
    with open_engine() as engine, running(engine) as server:
        asyncio.run(go_on(server, [fresh]))
    assert chat.messages == fresh.messages


def test_files_take_no_more_than_they_may(open_engine: Callable[[], Engine], tmp_path: Path) -> None:
    chats = [Chat(opening) for opening in OPENINGS[:6]]
    most = 3_000_000
    with open_engine() as engine, running(engine, cache_dir=tmp_path, saved_bytes=most) as server:
        asyncio.run(talk(server, chats, range(3)))
    files = list((tmp_path / "chats").rglob("*.kv"))
    assert files
    assert sum(path.stat().st_size for path in files) <= most
