"""Prompts for common jobs: what they say, that a model takes them, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.services.chats import conversation_of
from gemma_edge.runtime.services.errors import ServiceError
from gemma_edge.runtime.services.functions import Functions
from gemma_edge.runtime.services.prompts import (
    culturally_aware_prompt,
    cultures,
    function_calling_prompt,
    multimodal_prompt,
    parse_function_calls,
    styles,
)
from gemma_edge.runtime.services.request import GenerationConfig, MultimodalInput

WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]}},
        "required": ["city"],
    },
}


def schedule_meeting(title: str, minutes: int = 30) -> str:
    """Puts a meeting into the calendar.

    Args:
        title: what it is about.
        minutes: how long.
    """
    return f"{title}, {minutes} min"


FUNCTIONS: Functions = [WEATHER, schedule_meeting]


def rendered(engine: Engine, messages: list[Any]) -> str:
    conversation, last = conversation_of(engine, messages, GenerationConfig())
    with conversation:
        conversation.send_message(last, max_output_tokens=1)
        return engine.detokenize(list(conversation.token_ids))


def test_the_prompt_about_cultures_says_all_that_was_asked_for(engine: Engine) -> None:
    assert cultures()[:5] == ["japanese", "american", "german", "brazilian", "indian"]
    assert styles() == ["formal", "casual", "educational"]
    messages = culturally_aware_prompt("How do I greet my host?", ["japanese", "german", "japanese"], "casual")
    assert [message["role"] for message in messages] == ["system", "user"]
    said = messages[0]["content"]
    assert said.count("- Japanese: ") == said.count("- German: ") == 1
    assert "Brazilian" not in said
    assert "casually" in said
    assert "formally" not in said
    text = rendered(engine, messages)
    assert "How do I greet my host?" in text
    assert "- German: Be precise" in text


def test_every_culture_and_style_is_told_from_the_others() -> None:
    said = {
        (culture, style): culturally_aware_prompt("?", [culture], style)[0]["content"]
        for culture in cultures()
        for style in styles()
    }
    assert len(set(said.values())) == len(cultures()) * len(styles())


@pytest.mark.parametrize(
    ("target_cultures", "style", "message"),
    [
        (
            ["german", "martian"],
            "formal",
            "unknown culture 'martian', expected one of japanese, american, german, brazi",
        ),
        (["german"], "rude", "unknown response_style 'rude', expected one of formal, casual, educational; choose"),
        ([], "formal", "no target_cultures, expected some of japanese, american, german, brazilian, indian; name at"),
    ],
)
def test_cultures_and_styles_that_are_not_known_are_refused(
    target_cultures: list[str], style: str, message: str
) -> None:
    with pytest.raises(ServiceError, match=message):
        culturally_aware_prompt("?", target_cultures, style)


def test_images_stand_before_the_question(picture: Path) -> None:
    system, user = multimodal_prompt(
        "What differs?", picture, b"\x89PNG", image_description="two days apart", task_type="comparison"
    )
    assert "compare" in system["content"]
    assert [part["type"] for part in user["content"]] == ["image", "image", "text"]
    assert user["content"][0]["path"] == str(picture)
    assert user["content"][2]["text"] == "What differs?\n\nAdditional context: two days apart"
    assert multimodal_prompt("What is it?", picture)[1]["content"][1]["text"] == "What is it?"


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "a multimodal prompt has no image, expected at least one"),
        ([b""], {"task_type": "poem"}, "unknown task_type 'poem', expected one of analysis, comparison; choose one"),
        ([b""], {"task_type": "comparison"}, "a comparison has one image, expected two, or one and an image_descr"),
        ([3], {}, "an image is int, expected a path, bytes or a Pillow image; pass one"),
    ],
)
def test_a_multimodal_prompt_that_cannot_be(images: list[Any], options: dict[str, str], message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        multimodal_prompt("?", *images, **options)


def test_an_image_in_memory_arrives_as_it_was(picture: Path) -> None:
    import base64
    import io

    with Image.open(picture) as image:
        message = MultimodalInput("What?", [image], audio_path="a.wav").message()
        shown, text, heard = message["content"]
        assert Image.open(io.BytesIO(base64.b64decode(shown["blob"]))).tobytes() == image.tobytes()
    assert (text["text"], heard["path"]) == ("What?", str(Path("a.wav").absolute()))


def test_functions_are_listed_and_calls_of_them_are_read(engine: Engine) -> None:
    messages = function_calling_prompt("Plan my day in Paris", FUNCTIONS, context="It is Monday")
    said = messages[0]["content"]
    assert (
        "- get_weather: The weather in a city.\n  Parameters: city (string), unit (string, optional: one of C, F)"
        in said
    )
    assert (
        "- schedule_meeting: Puts a meeting into the calendar.\n  Parameters: title (string), minutes (integer, opt"
        in said
    )
    assert messages[1]["content"] == "Context: It is Monday\n\nPlan my day in Paris"
    assert "FUNCTION_CALL: name(param1=" in rendered(engine, messages)
    reply = (
        'First:\n  FUNCTION_CALL: get_weather("Paris", unit="C")\n`FUNCTION_CALL: schedule_meeting(title="a(b)")`\nSo.'
    )
    assert parse_function_calls(reply, FUNCTIONS) == [
        {"function_name": "get_weather", "parameters": {"city": "Paris", "unit": "C"}},
        {"function_name": "schedule_meeting", "parameters": {"title": "a(b)"}},
    ]
    assert parse_function_calls("It is sunny.", {"get_weather": WEATHER}) == []


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("FUNCTION_CALL: get_weather(city=", "the reply has a call that cannot be read .*; ask again"),
        ("FUNCTION_CALL: fly(to='Rome')", "unknown function 'fly', expected one of get_weather, schedule_meeting"),
        ("FUNCTION_CALL: get_weather(town='Rome')", "get_weather with .*: it takes no town; ask again"),
        ("FUNCTION_CALL: get_weather(unit='C')", "get_weather with .*: .*'city' is a required property"),
        ("FUNCTION_CALL: get_weather(city='Rome', unit='K')", "get_weather with .*'K' is not one of"),
    ],
)
def test_calls_that_their_function_does_not_take_are_refused(reply: str, message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        parse_function_calls(reply, FUNCTIONS)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([], "there are no functions to call, expected at least one"),
        ([{"description": "?"}], "a function is described as .*expected name, description and parameters"),
        ([{"name": "f", "parameters": {"city": {"type": "string"}}}], "a function is described as .*a JSON schema"),
    ],
)
def test_functions_that_are_not_described(functions: list[Any], message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        function_calling_prompt("?", functions)
