"""What becomes of calls as models write them: run, or the model is told; the user never sees a fence."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.runtime.chat.messages import Content, Contents, Message
from gemma_edge.runtime.chat.tools import ToolLoopError
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from tests.runtime.chat.scripted import scripted


@pytest.fixture(scope="module")
def engine(tiny_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path, cache = tiny_bundle("gemma3", "fp32"), tmp_path_factory.mktemp("cache")
    with Engine(str(path), Backend.CPU(thread_count=1), cache_dir=str(cache)) as engine:
        yield engine


def fence(code: str) -> str:
    return f"```tool_code\n{code}\n```"


def price(item: str, count: int = 1) -> str:
    """Tells a price."""
    return f"{count} {item}"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (fence('price("tea", count=+2)'), "2 tea"),
        ('Let me see.\n```tool_code print(default_api.price(item="tea"))```', "1 tea"),
        ('```tool_code\nprice(item="green\\ttea")', "1 green\ttea"),
        (fence('{"name": "price", "arguments": {"item": "tea"}}'), "1 tea"),
        (fence('# how much?\ncost = price(item="tea", count=2)'), "2 tea"),
        (fence("price()"), "Error: price() missing 1 required positional argument: 'item'"),
        (fence('cost(item="tea")'), "Error: tool cost not found, there are price"),
    ],
)
def test_a_call_is_run(engine: Engine, written: str, told: str) -> None:
    conversation = scripted(engine, [written, "It is cheap."], tools=[price])
    pieces = list(conversation.send_message_async("How much is it?"))
    assert "```" not in "".join(map(str, pieces))
    assert "".join(map(str, pieces)).endswith("It is cheap.")
    assert conversation.history[2]["content"][0]["response"] == told


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("price(item=tea)", "tea is no value; write the value itself"),
        ("price('tea', 1, 2)", "price takes 2 arguments, 3 were given"),
        ("if hungry:\n    price('tea')", "line 1: only calls are run here, no If"),
        ("price(", "line 1: '(' was never closed"),
    ],
)
def test_the_model_is_told_about_a_call_that_is_none(engine: Engine, code: str, error: str) -> None:
    replies = ["Wait. " + fence(code), fence('price("tea")'), "It is cheap."]
    conversation = scripted(engine, replies, tools=[price])
    reply = conversation.send_message("How much is it?")
    assert str(reply) == "It is cheap."
    assert [message["role"] for message in conversation.history] == [
        "user", "assistant", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert conversation.history[1]["content"] == [{"type": "text", "text": replies[0]}]
    assert conversation.history[2]["content"] == f"Error: the call could not be read: {error}"
    assert f"Error: the call could not be read: {error}" in engine.detokenize(list(conversation.token_ids)[1:])

    streamed = scripted(engine, replies, tools=[price]).send_message_async("How much is it?")
    assert "".join(map(str, streamed)) == "Wait. It is cheap."


def test_calls_and_mistakes_in_one_reply_are_both_answered(engine: Engine) -> None:
    conversation = scripted(engine, [fence("price('tea')") + fence("price(tea)"), "done"], tools=[price])
    assert str(conversation.send_message("go")) == "done"
    assert [message["role"] for message in conversation.history[2:4]] == ["tool", "tool"]


def test_a_model_that_never_writes_a_call_that_can_be_read(engine: Engine) -> None:
    conversation = scripted(engine, [fence("price(tea)")] * 3, tools=[price], max_tool_rounds=2)
    with pytest.raises(ToolLoopError) as caught:
        conversation.send_message("go")
    assert str(caught.value) == (
        "the model called tools 3 times in a row, 2 rounds are allowed; "
        "raise max_tool_rounds or make the tools' results clearer"
    )
    assert conversation.history == ()


def test_a_call_that_is_cut_off_ends_the_turn_and_is_not_shown(engine: Engine) -> None:
    conversation = scripted(engine, ["Well. " + fence('price(item="tea")')], tools=[price])
    limit = len(engine.tokenize('Well. ```tool_code\nprice(item="te'))
    assert str(conversation.send_message("go", max_output_tokens=limit)) == "Well. "
    assert len(conversation.history) == 2


def test_calls_that_the_program_answers_itself(engine: Engine) -> None:
    """With names for all arguments; a fence that is none stays text, since nobody else would see it."""
    options: dict[str, Any] = {"tools": [price], "automatic_tool_calling": False}
    conversation = scripted(engine, [fence('price("tea", 2)'), "2 tea it is.", fence("price(tea)")], **options)
    reply = conversation.send_message("go")
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [("price", {"item": "tea", "count": 2})]
    answer = Message.tool(Contents.of(Content.ToolResponse("price", "2 tea")))
    assert str(conversation.send_message(answer)) == "2 tea it is."
    assert str(conversation.send_message("again")) == fence("price(tea)")


def test_an_async_tool_of_an_async_program(engine: Engine) -> None:
    async def serve() -> str:
        loop = asyncio.get_running_loop()

        async def where() -> str:
            """Tells where it runs."""
            await asyncio.sleep(0)
            return "here" if asyncio.get_running_loop() is loop else "elsewhere"

        conversation = scripted(engine, [fence("where()"), "done"], tools=[where])
        assert str(await conversation.asend_message("go")) == "done"
        response: str = conversation.history[2]["content"][0]["response"]
        return response

    assert asyncio.run(serve()) == "here"
