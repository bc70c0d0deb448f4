"""Programs written for litert_lm run here with only the import changed, and its own tests' assertions hold.

The assertions are those of LiteRT-LM's messages_test, tool_test, model_info_test and engine_test (Apache-2.0), said
anew for our fixtures. Left out, with reasons:
- what looks into its C library (settings, handles, `_handle_tool_calls`): there is none here;
- NPU, LoRA, embedding models, speculative decoding: not converted, refused by name where they are asked for;
- several results in one tool message, and `<|"|>` around arguments: newer than 0.18.1, and Gemma 4's;
- one score for a decoded reply, which is always 0.0 there;
- "response_format cannot be used unless ...": here it can.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemma_edge import runtime as litert_lm  # the line that is changed
from tests.runtime.chat.scripted import scripted


@pytest.fixture(scope="module")
def model_path(tiny_bundle: Callable[[str, str], Path]) -> str:
    return str(tiny_bundle("gemma3", "fp32"))


@pytest.fixture(scope="module")
def engine(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[litert_lm.Engine]:
    cache = str(tmp_path_factory.mktemp("cache"))
    with litert_lm.Engine(model_path, litert_lm.Backend.CPU(), cache_dir=cache, enable_benchmark=True) as engine:
        assert engine.cache_dir == cache
        yield engine


def multiply(a: int, b: int) -> int:
    """Multiplies two integers.

    Args:
        a: The first integer.
        b: The second integer.
    """
    return a * b


# ---------------------------------------------------------------- six programs


def test_a_chat(engine: litert_lm.Engine) -> None:
    with engine.create_conversation(
        messages=[{"role": "system", "content": "You are a helpful assistant."}], max_output_tokens=8
    ) as conversation:
        for line in ("Hello", "And you?"):
            message = conversation.send_message(line)
            assert message["role"] == "assistant"
            assert message["content"][0]["type"] == "text"
            assert "".join(item.get("text", "") for item in message.get("content", [])) == str(message)


def test_a_tool_agent(engine: litert_lm.Engine) -> None:
    class Handler(litert_lm.ToolEventHandler):
        def approve_tool_call(self, tool_call: dict[str, Any]) -> bool:
            return bool(tool_call["function"]["name"] == "multiply")

        def process_tool_response(self, tool_response: Any) -> Any:
            return tool_response

    handler = Handler()
    conversation = scripted(
        engine,
        ["```tool_code\nmultiply(a=6, b=7)\n```", "It is 42."],
        tools=[multiply],
        tool_event_handler=handler,
    )
    assert (conversation.tools, conversation.tool_event_handler) == ([multiply], handler)
    assert str(conversation.send_message("How much is it?")) == "It is 42."


def test_json_extraction(engine: litert_lm.Engine) -> None:
    config = litert_lm.ConstrainedDecodingConfig(
        enable=True, provider=litert_lm.LiteRtLmConstraintProviderType.LL_GUIDANCE
    )
    schema = {"type": "object", "properties": {"age": {"enum": [1, 2]}}, "required": ["age"]}
    with engine.create_conversation(constrained_decoding_config=config) as conversation:
        reply = conversation.send_message(
            "Extract.", response_format=litert_lm.ResponseFormat.json({**schema, "additionalProperties": False})
        )
    assert json.loads(reply["content"][0]["text"])["age"] in (1, 2)


def test_scoring(engine: litert_lm.Engine) -> None:
    with engine.create_session(apply_prompt_template=False) as session:
        assert isinstance(session, litert_lm.AbstractSession)
        session.run_prefill(["Hello", " world!"])
        responses = session.run_text_scoring(["Hello"], store_token_lengths=True)
        assert (responses.texts, len(responses.scores), len(responses.token_lengths)) == (["Hello"], 1, 1)
        assert len(responses.token_scores[0]) == responses.token_lengths[0]
        assert all(isinstance(score, float) for score in responses.token_scores[0])
        assert session.run_text_scoring(["Hello"]).token_lengths == []


def test_a_streaming_handler(engine: litert_lm.Engine) -> None:
    with engine.create_conversation(max_output_tokens=6) as conversation:
        pieces = []
        for chunk in conversation.send_message_async({"role": "user", "content": "Hello world!"}):
            pieces += [item["text"] for item in chunk.get("content", []) if item.get("type") == "text"]
        assert 0 < len(pieces) <= 6
        info = conversation.get_benchmark_info()
        assert isinstance(info, litert_lm.BenchmarkInfo)
        assert min(info.last_prefill_token_count, info.last_decode_token_count) > 0
    with engine.create_conversation(max_output_tokens=1) as conversation:
        assert len(list(conversation.send_message_async("Hello world!"))) == 1


def test_an_image_question(engine: litert_lm.Engine) -> None:
    """This bundle cannot see, and says so as litert_lm's programs expect it: by a RuntimeError."""
    contents = litert_lm.Contents.of(litert_lm.Content.ImageFile("/a.png"), "What is this?")
    with engine.create_conversation() as conversation, pytest.raises(RuntimeError, match="no vision encoder"):
        conversation.send_message(contents)


# ---------------------------------------------------------------- its own tests


def test_a_message_is_a_dict() -> None:
    raw: dict[str, Any] = {
        "role": "assistant",
        "content": [{"type": "text", "text": "hello world"}],
        "channels": {"thought": "reasoning"},
        "reasoning_content": "reasoning",
    }
    message = litert_lm.Message.from_json(raw)
    assert isinstance(message, dict)
    assert (message.role, str(message), message.channels) == (litert_lm.Role.MODEL, "hello world", raw["channels"])
    assert (message.get("reasoning_content"), message.get("nonexistent"), len(message)) == ("reasoning", None, 4)
    assert "tool_calls" not in message
    assert (message == raw, raw == message, message.to_json() == raw) == (True, True, True)
    assert json.dumps(message) == json.dumps(raw)
    message["role"] = "user"
    assert message.role is litert_lm.Role.USER
    del message["role"]
    message.role = litert_lm.Role.SYSTEM
    assert message["role"] == "system"


def test_a_message_of_every_part() -> None:
    raw = {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Here is an image:"},
            {"type": "image", "path": "/tmp/test.png"},
            {"type": "image", "blob": "ZmFrZV9pbWFnZV9kYXRh"},
            {"type": "audio", "path": "/tmp/test.mp3"},
            {"type": "audio", "blob": "ZmFrZV9hdWRpb19kYXRh"},
            {"type": "tool_response", "name": "calc", "response": 42},
        ],
        "tool_calls": [
            {"type": "function", "id": "call_1", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}},
            {"type": "function", "function": {"name": "text", "arguments": '{"city": "Tokyo"}'}},
            {"type": "function", "function": {"name": "none", "arguments": None}},
        ],
    }
    message = litert_lm.Message.from_json(raw)
    kinds = ("Text", "ImageFile", "ImageBytes", "AudioFile", "AudioBytes", "ToolResponse")
    assert [type(part) for part in message.contents.contents] == [getattr(litert_lm.Content, kind) for kind in kinds]
    assert message.contents[2] == litert_lm.Content.ImageBytes(b"fake_image_data")
    assert [call.arguments for call in message.tool_calls] == [{"city": "Paris"}, {"city": "Tokyo"}, {}]
    assert message.tool_calls[0].id == "call_1"
    assert message.to_json() == raw


def test_contents_are_a_list() -> None:
    one, two = litert_lm.Content.Text("hello"), litert_lm.Content.Text(" world")
    contents = litert_lm.Contents.of([one, two])
    assert isinstance(contents, list)
    assert (contents, contents[1:], contents.contents is contents, str(contents)) == (
        [one, two], [two], True, "hello world",
    )  # fmt: skip
    assert not litert_lm.Contents.empty()
    assert repr(litert_lm.Contents.of("a")).startswith("Contents(")


def test_tools_of_a_conversation(engine: litert_lm.Engine) -> None:
    tool = litert_lm.tool_from_function(multiply)
    assert isinstance(tool, litert_lm.Tool)
    assert tool.execute({"a": 2, "b": 3}) == 6

    class Malformed(litert_lm.Tool):
        def get_tool_description(self) -> dict[str, Any]:
            return {"missing": "function_key"}

        def execute(self, _param: Any) -> None:
            return None

    with engine.create_conversation(tools=[multiply], automatic_tool_calling=False) as conversation:
        assert (conversation.tools, conversation.automatic_tool_calling) == ([multiply], False)
    with pytest.raises(ValueError, match=r"\['function'\]\['name'\]"):
        engine.create_conversation(tools=[Malformed()])


def test_settings_of_a_conversation(engine: litert_lm.Engine) -> None:
    template = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    sampler = litert_lm.SamplerConfig(top_k=10, top_p=0.95, temperature=0.8, seed=123)
    messages = [litert_lm.Message.system("Be helpful."), litert_lm.Message.user("Hello")]
    with engine.create_conversation(
        messages=messages, chat_template=template, sampler_config=sampler, extra_context={"key": "value"}
    ) as conversation:
        assert isinstance(conversation, litert_lm.AbstractConversation)
        assert (conversation.messages, conversation.chat_template) == (messages, template)
        assert (conversation.sampler_config, conversation.extra_context) == (sampler, {"key": "value"})
        assert "Hello world!" in conversation.render_message_to_string("Hello world!")
        assert conversation.token_count == 0


def test_an_engine(engine: litert_lm.Engine, model_path: str) -> None:
    assert isinstance(engine, litert_lm.AbstractEngine)
    assert all(isinstance(token_id, int) for token_id in engine.tokenize("Hello world!"))
    assert all(isinstance(ids, list) for ids in engine.eos_token_ids)
    with pytest.raises(RuntimeError):
        litert_lm.Engine("/non/existent/path")
    with pytest.warns(DeprecationWarning, match="Passing Backend class CPU is deprecated"):
        legacy = litert_lm.Engine(model_path, litert_lm.Backend.CPU, max_num_tokens=64, cache_dir=engine.cache_dir)
    assert isinstance(legacy.backend, litert_lm.Backend.CPU)
    legacy.close()
    assert litert_lm.Backend.CPU() == litert_lm.Backend.CPU(thread_count=None) != litert_lm.Backend.CPU(thread_count=4)


@pytest.mark.parametrize("setting", [{"top_k": 0}, {"top_p": -0.1}, {"top_p": 1.1}, {"temperature": -0.1}])
def test_samplers_are_checked(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        litert_lm.SamplerConfig(**setting)


def test_a_model_info(model_path: str) -> None:
    with litert_lm.ModelInfo(model_path) as info:
        assert info.is_llm_model
        assert info.llm is not None
        assert isinstance(info.llm.default_sampler_params, litert_lm.SamplerConfig)
        assert (info.max_context_tokens, info.input_modalities.text, info.input_modalities.vision) == (512, True, False)
    for name in ("llm", "input_modalities"):
        with pytest.raises(RuntimeError, match="closed"):
            getattr(info, name)
    with pytest.raises(FileNotFoundError):
        litert_lm.ModelInfo("/non/existent/path")


def test_how_much_is_logged() -> None:
    logger = logging.getLogger("gemma_edge")
    before = logger.level
    try:
        litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
        assert (logger.isEnabledFor(logging.WARNING), logger.isEnabledFor(logging.ERROR)) == (False, True)
        litert_lm.set_min_log_severity(litert_lm.LogSeverity.SILENT)
        assert not logger.isEnabledFor(logging.CRITICAL)
    finally:
        logger.setLevel(before)


def test_errors_are_runtime_errors_where_litert_lms_are(engine: litert_lm.Engine) -> None:
    conversation = engine.create_conversation(chat_template="{{ 1 / 0 }}")
    with pytest.raises(RuntimeError, match="chat template"):
        conversation.send_message("x")
    with pytest.raises(RuntimeError, match="no character"):
        engine.tokenize("\ud800")
    with pytest.raises(RuntimeError, match="context overflow"):
        engine.create_conversation().send_message("word " * 600)
