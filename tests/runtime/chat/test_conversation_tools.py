"""Replies in a format, and tools run in between."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.chat.messages import Content, Contents, Message
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.chat.tools import ToolLoopError
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.text.constraints import ResponseFormat
from gemma_edge.runtime.text.sampler import SamplerConfig

GREEDY = SamplerConfig(top_k=1)
CREATIVE = SamplerConfig(top_k=40, top_p=0.95, temperature=1.0, seed=5)


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def engine(
    request: pytest.FixtureRequest, tiny_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    path, cache = tiny_bundle(request.param, "fp32"), tmp_path_factory.mktemp("cache")
    with Engine(str(path), Backend.CPU(thread_count=2), cache_dir=str(cache)) as engine:
        yield engine


def fenced(code: str) -> str:
    return re.escape(f"```tool_code\n{code}\n```")


def test_a_reply_keeps_to_its_format(engine: Engine) -> None:
    with engine.create_conversation(sampler_config=CREATIVE) as conversation:
        for _ in range(3):
            reply = conversation.send_message("x", response_format=ResponseFormat.regex("[a-z]{2,5} [0-9]{2}"))
            assert re.fullmatch("[a-z]{2,5} [0-9]{2}", str(reply))
        schema = {
            "type": "object",
            "properties": {"n": {"enum": [1, 2]}},
            "required": ["n"],
            "additionalProperties": False,
        }
        reply = conversation.send_message("x", response_format=ResponseFormat.json(schema))
        assert json.loads(str(reply))["n"] in (1, 2)
        pieces = list(conversation.send_message_async("x", response_format=ResponseFormat.regex("ab cd")))
        assert "".join(map(str, pieces)) == "ab cd"


class Weather:
    """A tool that counts; what the model asks for is set by a response format on tool answers."""

    def __init__(self) -> None:
        self.cities: list[str] = []

    def __call__(self, city: str) -> dict[str, Any]:
        self.cities.append(city)
        return {"city": city, "degrees": 20 + len(self.cities)}


def with_tool(engine: Engine, weather: Weather, **options: Any) -> Conversation:
    def get_weather(city: str) -> dict[str, Any]:
        """Gets the weather."""
        return weather(city)

    return engine.create_conversation(tools=[get_weather], sampler_config=GREEDY, **options)


def force_call(monkeypatch: pytest.MonkeyPatch, *replies: str) -> None:
    """Makes the model write these replies one after the other: it is too small to call tools by itself."""
    remaining = iter(replies)

    def constraint(self: TextModel, _format: ResponseFormat) -> Any:
        return self._constraints.create(ResponseFormat.regex(re.escape(next(remaining))))

    monkeypatch.setattr(TextModel, "constraint", constraint)
    monkeypatch.setattr(Conversation, "_may_constrain", lambda *_: True)


CALL = '```tool_code\nget_weather(city="Bath")\n```'
FORMAT = ResponseFormat.regex("replaced")


def test_tools_run_and_the_model_answers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    weather = Weather()
    force_call(monkeypatch, "Let me see. " + CALL, CALL, "It is mild.")
    with with_tool(engine, weather) as conversation:
        reply = conversation.send_message("How is the weather?", response_format=FORMAT)
        assert (str(reply), weather.cities) == ("It is mild.", ["Bath", "Bath"])
        assert [message["role"] for message in conversation.history] == [
            "user", "assistant", "tool", "assistant", "tool", "assistant",
        ]  # fmt: skip
        text = engine.detokenize(list(conversation.token_ids)[1:])
        assert '```tool_outputs\n{"city": "Bath", "degrees": 21}\n```' in text
        assert "def get_weather(\n    city: str,\n) -> dict:" in text
        conversation.rewind()
        assert conversation.token_count == 0


def test_a_stream_shows_text_but_not_the_calls_it_answers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    force_call(monkeypatch, "Let me see. " + CALL, "It is mild.")
    with with_tool(engine, Weather()) as conversation:
        pieces = list(conversation.send_message_async("?", response_format=FORMAT))
        assert "".join(map(str, pieces)) == "Let me see. It is mild."
        assert not any(piece.tool_calls for piece in pieces)


def test_without_automatic_calling_the_calls_are_returned(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    weather = Weather()
    force_call(monkeypatch, CALL, CALL, "Mild.")
    with with_tool(engine, weather, automatic_tool_calling=False) as conversation:
        reply = conversation.send_message("?", response_format=FORMAT)
        assert [(call.name, call.arguments) for call in reply.tool_calls] == [("get_weather", {"city": "Bath"})]
        assert conversation.finish_reason == "tool_calls"
        conversation.rewind()
        [streamed] = conversation.send_message_async("?", response_format=FORMAT)
        assert streamed == reply
        answer = Message.tool(Contents.of(Content.ToolResponse("get_weather", {"degrees": 3})))
        assert str(conversation.send_message(answer, response_format=FORMAT)) == "Mild."
        assert conversation.finish_reason == "stop"
        assert weather.cities == []


def test_a_model_that_never_stops_calling(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    weather = Weather()
    force_call(monkeypatch, *[CALL] * 3, "Hello.")
    with with_tool(engine, weather, max_tool_rounds=2) as conversation:
        with pytest.raises(ToolLoopError) as caught:
            conversation.send_message("?", response_format=FORMAT)
        assert str(caught.value) == (
            "the model called tools 3 times in a row, 2 rounds are allowed; "
            "raise max_tool_rounds or make the tools' results clearer"
        )
        assert len(weather.cities) == 2
        assert (conversation.token_count, conversation.history) == (0, ())
        assert str(conversation.send_message("?", response_format=FORMAT)) == "Hello."


def test_with_tools_only_the_answer_is_constrained(engine: Engine) -> None:
    """As in litert_lm: a format for the first reply would forbid the call."""
    with with_tool(engine, Weather()) as conversation:
        reply = conversation.send_message("x", response_format=ResponseFormat.regex("never"), max_output_tokens=5)
        assert str(reply) != "never"
        answer = {"role": "tool", "content": [{"type": "tool_response", "name": "get_weather", "response": 3}]}
        assert str(conversation.send_message(answer, response_format=ResponseFormat.regex("always"))) == "always"
