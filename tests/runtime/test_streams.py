"""Several conversations that stream at once on one engine: what each says alone, and no row more than that takes."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from gemma_edge.runtime.executors.onnx.slot import OnnxSlot
from gemma_edge.runtime.text.sampler import SamplerConfig

LENGTH = 12
TURNS = 3
OPENINGS = (
    "In the beginning God created the heaven and the earth",
    "It is a truth universally acknowledged",
    "And they answered, saying",
    "He went to the house of the king",
    "x",
    "And it came to pass in those days, that there went out a decree",
    "The sun rose",
    "Now there was a man, and he said unto them",
)
# Longer than what templates have in common, so that a re-prefill shows.
MESSAGES = [[f"{opening}, turn {turn}. {opening}" for turn in range(TURNS)] for opening in OPENINGS]
GREEDY = SamplerConfig(top_k=1)
DRAWN = SamplerConfig(top_k=40, top_p=0.95, temperature=1.0, seed=3)


class Rows:
    """Tokens that slots were asked to run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for kind in (LitertSlot, OnnxSlot):
            monkeypatch.setattr(kind, "chunks", self._counted(kind.chunks))
            monkeypatch.setattr(kind, "decode", self._counted(kind.decode))

    def _counted(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def counted(slot: Any, tokens: int | Sequence[int]) -> Any:
            self.count += 1 if isinstance(tokens, int) else len(tokens)
            return run(slot, tokens)

        return counted


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    return Rows(monkeypatch)


@pytest.fixture(scope="module")
def open_engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    cache = tmp_path_factory.mktemp("cache")
    return lambda **options: Engine(str(tiny_model), cache_dir=str(cache), **options)


def start(engine: Engine, index: int) -> Conversation:
    return engine.create_conversation(sampler_config=DRAWN if index % 2 else GREEDY, max_output_tokens=LENGTH)


@pytest.fixture(scope="module")
def alone_with_rows(open_engine: Callable[..., Engine]) -> tuple[list[list[str]], list[int]]:
    """The replies of each conversation on an engine of its own, and how many rows they took.

    Rows are fewer than tokens: the last one has none. A reply in other tokens than its text has runs again, as text.
    """
    replies, rows = [], []
    for index, messages in enumerate(MESSAGES):
        said, run = [], 0
        with open_engine(slots=1) as engine, start(engine, index) as conversation:
            for message in messages:
                said.append(str(conversation.send_message(message)))
                run += conversation.usage.run + conversation.usage.generated - 1
            assert run < conversation.token_count + TURNS * LENGTH
        replies.append(said)
        rows.append(run)
    return replies, rows


@pytest.fixture(scope="module")
def alone(alone_with_rows: tuple[list[list[str]], list[int]]) -> list[list[str]]:
    return alone_with_rows[0]


@pytest.fixture(scope="module")
def needed(alone_with_rows: tuple[list[list[str]], list[int]]) -> list[int]:
    return alone_with_rows[1]


def in_threads(conversations: Sequence[Conversation]) -> list[list[str]]:
    def talk(index: int) -> list[str]:
        return ["".join(map(str, conversations[index].send_message_async(message))) for message in MESSAGES[index]]

    with ThreadPoolExecutor(len(conversations)) as pool:
        return list(pool.map(talk, range(len(conversations))))


def in_asyncio(conversations: Sequence[Conversation]) -> list[list[str]]:
    before = set(threading.enumerate())
    most = 0

    async def talk(index: int) -> list[str]:
        return [await said(conversations[index].asend_message_async(message)) for message in MESSAGES[index]]

    async def said(pieces: AsyncIterator[Any]) -> str:
        nonlocal most
        text = ""
        async for piece in pieces:
            text += str(piece)
            most = max(most, len(set(threading.enumerate()) - before))
        return text

    async def main() -> list[list[str]]:
        return await asyncio.gather(*map(talk, range(len(conversations))))

    replies = asyncio.run(main())
    assert most <= 1  # the one that has the model
    return replies


def in_turns(conversations: Sequence[Conversation]) -> list[list[str]]:
    """One piece of each, again and again, in one thread."""

    def talk(index: int) -> Iterator[tuple[int, int, str]]:
        for turn, message in enumerate(MESSAGES[index]):
            for piece in conversations[index].send_message_async(message):
                yield index, turn, str(piece)

    replies = [[""] * TURNS for _ in conversations]
    talks = [talk(index) for index in range(len(conversations))]
    while talks:
        for one in list(talks):
            try:
                index, turn, piece = next(one)
            except StopIteration:
                talks.remove(one)
            else:
                replies[index][turn] += piece
    return replies


@pytest.mark.parametrize("how", [in_threads, in_asyncio, in_turns])
@pytest.mark.parametrize("count", [2, 8])
def test_while_slots_suffice_no_row_runs_twice(
    open_engine: Callable[..., Engine],
    alone: list[list[str]],
    needed: list[int],
    rows: Rows,
    count: int,
    how: Callable[[Sequence[Conversation]], list[list[str]]],
) -> None:
    with open_engine(slots=count) as engine:
        conversations = [start(engine, index) for index in range(count)]
        assert how(conversations) == alone[:count]
        assert rows.count <= sum(needed[:count])  # a common beginning may have been copied
        for conversation in conversations:
            usage = conversation.usage
            assert usage.prompt + usage.generated == conversation.token_count
            assert conversation.finish_reason in ("stop", "length")


@pytest.mark.parametrize("how", [in_threads, in_asyncio, in_turns])
def test_with_fewer_slots_than_chats_a_turn_prefills_at_most_once(
    open_engine: Callable[..., Engine],
    alone: list[list[str]],
    rows: Rows,
    how: Callable[[Sequence[Conversation]], list[list[str]]],
) -> None:
    with open_engine(slots=2) as engine:
        lengths: list[int] = []
        conversations = [start(engine, index) for index in range(5)]
        assert how(conversations) == alone[:5]
        lengths = [conversation.token_count for conversation in conversations]
        assert rows.count <= TURNS * sum(lengths)
        assert engine.memory().kv_cache_bytes == 2 * engine._pool._held[0].slot.nbytes


def test_a_silent_reader_holds_up_nobody(open_engine: Callable[..., Engine], alone: list[list[str]]) -> None:
    with open_engine(slots=1) as engine:
        silent, other = start(engine, 0), start(engine, 1)
        stream = silent.send_message_async(MESSAGES[0][0])
        first = str(next(stream))
        assert str(other.send_message(MESSAGES[1][0])) == alone[1][0]
        assert first + "".join(map(str, stream)) == alone[0][0]


def test_what_several_begin_with_is_copied_not_run_again(open_engine: Callable[..., Engine], rows: Rows) -> None:
    system = "Answer in the manner of an old book, and never in more than one sentence, whoever it may be that asks."
    with open_engine(slots=3) as engine:
        conversations = [
            engine.create_conversation(sampler_config=GREEDY, max_output_tokens=4, system_message=system)
            for _ in range(3)
        ]
        for conversation, opening in zip(conversations, OPENINGS, strict=False):
            conversation.send_message(opening)
        first, *others = (conversation.usage for conversation in conversations)
        assert first.cached == 0
        begins = len(engine.tokenize(system))
        assert all(usage.cached >= begins for usage in others)
        assert rows.count < sum(conversation.token_count for conversation in conversations) - 2 * begins


def test_health_disturbs_nobody(
    open_engine: Callable[..., Engine], alone: list[list[str]], needed: list[int], rows: Rows
) -> None:
    with open_engine(slots=2) as engine:
        conversations = [start(engine, index) for index in range(2)]
        replies: list[list[str]] = []
        for conversation, messages in zip(conversations, MESSAGES, strict=False):
            replies.append([])
            for message in messages:
                text = ""
                for piece in conversation.send_message_async(message):
                    text += str(piece)
                    engine.health()
                    rows.count -= 1  # its own token
                replies[-1].append(text)
        assert replies == alone[:2]
        assert rows.count <= sum(needed[:2])
