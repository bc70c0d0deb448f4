"""Gemma 4's thoughts and calls: told from the answer as litert_lm tells them, whole and in pieces."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.runtime.chat.calls.channels import Channel, ChannelParser, Thought
from gemma_edge.runtime.chat.options import ThinkingConfig
from gemma_edge.runtime.chat.reply import reply_message, streamed_message
from gemma_edge.runtime.engine import Engine
from tests.runtime.chat.scripted import scripted
from tools.litert_lm_writer import Writer

THOUGHT = Channel("thought", "<|channel>thought\n", "<channel|>")
REPLIES = [
    "It is noon.",
    "<|channel>thought\nI think.\n<channel|>Answer",
    "<|channel>thought\nnever closed",
    "a <|channel>thought\nb<channel|> c<|channel>thought\nd<channel|>e",
    "<|channel>other\nb<channel|>c",
    "<|tool_call>call:f{}<tool_call|>",
    'x<|tool_call>call:f{a:<|"|>Paris, } "x"<|"|>,b:[1,-2.5,true,null],c:{d:<|"|><|"|>}}<tool_call|>',
    "hm <|tool_call>call:f{a:1}<tool_call|><|tool_call>call:g{b:<escape>2<escape>}<tool_call|>",
    '<|channel>thought\nuse f<channel|><|tool_call>call:f{a:<|"|>y<|"|>}<tool_call|>',
]


def parsed(text: str, size: int) -> list[str | Thought]:
    parser = ChannelParser([THOUGHT])
    pieces = [part for i in range(0, len(text), size) for part in parser.push(text[i : i + size])]
    return [*pieces, *parser.finish()]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("text", "answer", "thoughts"),
    [
        ("", "", ""),
        ("<|channel", "<|channel", ""),
        ("<|channel>thoughts<channel|>", "<|channel>thoughts<channel|>", ""),
        ("a<|channel>thought\nb<|channel>thought\n<channel|>c<channel|>", "ac<channel|>", "b<|channel>thought\n"),
        ("<|channel>thought\nnever <channel", "", "never <channel"),
        ("<|channel>thought\n<channel|>x", "x", ""),
    ],
)
def test_channels_in_pieces(size: int, text: str, answer: str, thoughts: str) -> None:
    found = parsed(text, size)
    assert "".join(part for part in found if isinstance(part, str)) == answer
    assert "".join(part.text for part in found if isinstance(part, Thought)) == thoughts


def test_a_piece_is_passed_on_as_soon_as_it_cannot_be_a_mark() -> None:
    parser = ChannelParser([THOUGHT])
    assert list(parser.push("so <|chan")) == ["so "]
    assert list(parser.push("ce>")) == ["<|chance>"]
    assert list(parser.push("<|channel>thought\nhm <chan")) == [Thought("thought", "hm ")]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, tiny_gemma4: Path) -> Iterator[Writer]:
    with Writer(tmp_path_factory.mktemp("writer"), "".join(REPLIES), tiny_gemma4) as made:
        yield made


@pytest.fixture(scope="module")
def engine(writer: Writer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The same bundle, with its template and the fences of its calls."""
    with Engine(str(writer.path), cache_dir=str(tmp_path_factory.mktemp("cache"))) as made:
        yield made


def f(a: str = "") -> str:
    """Says it.

    Args:
        a: what
    """
    return f"it is {a}"


def g() -> None:
    """Nothing."""


@pytest.mark.parametrize("text", REPLIES)
def test_a_reply_is_read_as_litert_lm_reads_it(writer: Writer, engine: Engine, text: str) -> None:
    theirs = writer.written(text)
    assert theirs is not None
    with scripted(engine, [text, text], tools=[f, g], automatic_tool_calling=False) as conversation:
        message = conversation.send_message("x")
        assert message.to_json() == theirs
        pieces = [piece.to_json() for piece in conversation.send_message_async("x")]
    assert all(set(piece) - {"role"} for piece in pieces)
    assert _joined(pieces) == _joined([theirs])


def _joined(messages: list[dict[str, Any]]) -> tuple[str, str, list[Any]]:
    texts = [part["text"] for message in messages for part in message.get("content", ())]
    thoughts = [message.get("channels", {}).get("thought", "") for message in messages]
    return "".join(texts), "".join(thoughts), [call for message in messages for call in message.get("tool_calls", ())]


def test_pieces_of_a_message() -> None:
    thought = Thought("thought", "hm")
    assert streamed_message(thought) == {"role": "assistant", "channels": {"thought": "hm"}, "reasoning_content": "hm"}
    assert streamed_message("x") == {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
    assert reply_message([thought])["content"] == [{"type": "text", "text": ""}]


def test_thinking_is_asked_for_in_the_system_turn(engine: Engine) -> None:
    with engine.create_conversation(thinking_config=ThinkingConfig()) as conversation:
        asked = conversation.render_message_to_string("Hi")
    assert asked == "<|turn>system\n<|think|>\n<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"
    with engine.create_conversation(system_message="Be brief.") as conversation:
        told = conversation.render_message_to_string("Hi")
    assert told == "<|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"


def test_a_call_is_answered_within_the_models_turn(engine: Engine) -> None:
    call = '<|channel>thought\nf knows.<channel|><|tool_call>call:f{a:<|"|>y<|"|>}<tool_call|>'
    with scripted(engine, [call, "Done."], tools=[f]) as conversation:
        assert str(conversation.send_message("x")) == "Done."
        roles = [message["role"] for message in conversation.history]
        assert roles == ["user", "assistant", "tool", "assistant"]
        text = engine.text_model.tokenizer.decode(conversation.token_ids)
    assert (
        'call:f{a:<|"|>y<|"|>}<tool_call|><|tool_response>response:f{value:<|"|>it is y<|"|>}<tool_response|>' in text
    )
