"""A question becomes a call or words. The tiny model knows no tools, so its replies are written for it."""

from collections.abc import Callable
from typing import Any

import pytest

from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.services.calling import gemma_function_calling
from gemma_edge.runtime.services.errors import ServiceError
from gemma_edge.runtime.services.functions import described
from gemma_edge.runtime.services.request import GenerationConfig
from tests.runtime.chat.scripted import Script
from tests.runtime.services.test_prompts import FUNCTIONS

CUT = GenerationConfig(max_tokens=30)
Ask = Callable[..., Any]


@pytest.fixture
def ask(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """The answer to a question where the model writes that reply."""
    create = engine.create_conversation

    def with_reply(reply: str, **options: Any) -> Any:
        def scripted(**settings: Any) -> Conversation:
            conversation = create(**settings)
            conversation._sampler = Script(engine, [reply])
            return conversation

        monkeypatch.setattr(engine, "create_conversation", scripted)
        return gemma_function_calling(engine, "Weather in Paris?", FUNCTIONS, **options)

    return with_reply


def fenced(calls: str) -> str:
    return f"```tool_code\n{calls}\n```"


def test_a_call(ask: Ask) -> None:
    assert ask(fenced('get_weather(city="Paris")')) == {"function_name": "get_weather", "parameters": {"city": "Paris"}}


def test_several_calls_are_all_returned(ask: Ask) -> None:
    assert ask(fenced('get_weather("Paris")\nschedule_meeting(title="x", minutes=5)')) == {
        "function_name": "get_weather",
        "parameters": {"city": "Paris"},
        "further_calls": [{"function_name": "schedule_meeting", "parameters": {"title": "x", "minutes": 5}}],
    }


def test_words(ask: Ask) -> None:
    assert ask("I do not know.") == {"response": "I do not know."}


def test_the_model_itself_answers_in_words(engine: Engine) -> None:
    config = GenerationConfig(max_tokens=8, do_sample=False)
    answer = gemma_function_calling(engine, "And God said unto", FUNCTIONS, config)
    assert list(answer) == ["response"]


@pytest.mark.parametrize(
    ("reply", "options", "message"),
    [
        (fenced('fly(to="Rome")'), {}, "unknown function 'fly', expected one of get_weather, schedule_meeting; choose"),
        (fenced('get_weather(city="Rome", unit="K")'), {}, "the model called get_weather with .*'K' is not one of"),
        (fenced("get_weather(city=here)"), {}, "the model wrote a call that is no call: "),
        (fenced(f'get_weather(city="{"Paris " * 20}")'), {"config": CUT}, "the model wrote a call that is cut off: "),
    ],
)
def test_a_call_that_is_none_is_refused(ask: Ask, reply: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        ask(reply, **options)


def test_what_is_only_described_is_not_run() -> None:
    with pytest.raises(
        ServiceError, match=r"get_weather is described and not run here .*; run the call that was returned"
    ):
        described(FUNCTIONS)[0].execute({"city": "Paris"})
