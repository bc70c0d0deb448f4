"""Conversations on the tiny bundles: turns, streaming, tools, errors, cancelling, going back."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gemma_edge.runtime.chat.conversation import Conversation, ConversationError
from gemma_edge.runtime.chat.messages import Content, Contents, Message, Role
from gemma_edge.runtime.chat.options import ThinkingConfig
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.config import Backend, ConfigError
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import ContextOverflowError
from gemma_edge.runtime.formats.litertlm import Bundle, BundleError
from gemma_edge.runtime.media.errors import MediaError
from gemma_edge.runtime.tasks.batch import generate_batch
from gemma_edge.runtime.text.constraints import ConstrainedDecodingConfig, ConstraintError, ResponseFormat
from gemma_edge.runtime.text.sampler import SamplerConfig
from gemma_edge.runtime.text.template import TemplateError

GREEDY = SamplerConfig(top_k=1)
CREATIVE = SamplerConfig(top_k=40, top_p=0.95, temperature=1.0, seed=5)
PROMPTS = ("In the beginning", "x", "And they answered, saying", "It is a truth universally acknowledged")
LENGTH = 25


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def engine(
    request: pytest.FixtureRequest, tiny_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    path, cache = tiny_bundle(request.param, "fp32"), tmp_path_factory.mktemp("cache")
    with Engine(str(path), Backend.CPU(thread_count=2), cache_dir=str(cache)) as engine:
        yield engine


def talk(engine: Engine, config: SamplerConfig = GREEDY, prompts: tuple[str, ...] = PROMPTS) -> list[str]:
    with engine.create_conversation(sampler_config=config) as conversation:
        return [str(conversation.send_message(prompt, max_output_tokens=LENGTH)) for prompt in prompts]


# ---------------------------------------------------------------- turns


def test_turns_are_the_sequence_of_rendered_texts_and_replies(engine: Engine) -> None:
    """What the cache holds after several turns is the rendered conversation; the reply is what its logits say."""
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        for prompt in PROMPTS:
            with engine.create_conversation(messages=conversation.history) as restored:
                text = restored.render_message_to_string(prompt)
            expected = [*engine.text_model.start_tokens, *engine.tokenize(text)]
            conversation.send_message(prompt, max_output_tokens=LENGTH)
            assert list(conversation.token_ids)[: len(expected)] == expected
            reply = list(conversation.token_ids)[len(expected) :]
            fresh = engine.new_sequence()  # the same tokens, prefilled at once
            fresh.append(expected)
            for token_id in reply:
                assert int(fresh.logits().argmax()) == token_id
                fresh.append([token_id])
            expected += reply
            assert list(conversation.token_ids) == expected
            assert conversation.token_count == len(expected)


def test_the_same_seed_gives_the_same_text_and_the_generator_runs_on(engine: Engine) -> None:
    first = talk(engine, CREATIVE)
    assert talk(engine, CREATIVE) == first
    assert talk(engine, SamplerConfig(top_k=40, top_p=0.95, temperature=1.0, seed=6)) != first
    repeated = talk(engine, CREATIVE, ("x", "x"))
    assert repeated[0] != repeated[1]


@pytest.mark.parametrize("config", [GREEDY, CREATIVE])
def test_a_streamed_reply_is_the_blocking_one(engine: Engine, config: SamplerConfig) -> None:
    with engine.create_conversation(sampler_config=config) as conversation:
        for prompt, expected in zip(PROMPTS, talk(engine, config), strict=True):
            pieces = list(conversation.send_message_async(prompt, max_output_tokens=LENGTH))
            assert len(pieces) > 1
            assert "".join(map(str, pieces)) == expected


def test_conversations_take_turns_in_one_cache(engine: Engine) -> None:
    alone = talk(engine), talk(engine, CREATIVE)
    one = engine.create_conversation(sampler_config=GREEDY)
    two = engine.create_conversation(sampler_config=CREATIVE)
    together = [
        (str(one.send_message(p, max_output_tokens=LENGTH)), str(two.send_message(p, max_output_tokens=LENGTH)))
        for p in PROMPTS
    ]
    assert (list(map(list, zip(*together, strict=True)))) == list(map(list, alone))


def test_only_what_is_new_is_prefilled(engine: Engine) -> None:
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        for prompt in PROMPTS:
            before = conversation.token_count
            conversation.send_message(prompt, max_output_tokens=LENGTH)
            info = conversation.get_benchmark_info()
            # The last reply may have been written in other tokens than its text has: those are run again.
            assert info.last_prefill_token_count + info.last_decode_token_count >= conversation.token_count - before
            assert info.last_prefill_token_count < LENGTH + len(engine.tokenize(prompt)) + 20
            # At most what is new, and the last token of the turn before, which had no step of its own.
            usage = conversation.usage
            assert usage.run == usage.prompt - usage.cached
            assert 1 <= usage.run <= info.last_prefill_token_count + bool(before)
            assert usage.generated == info.last_decode_token_count
            assert conversation.finish_reason in ("stop", "length")
            assert len(conversation.timing.token_s) == info.last_decode_token_count - 1
            assert info.time_to_first_token_in_second > 0
            assert info.init_time_in_second == engine.init_s


def test_preface_history_and_thinking(engine: Engine) -> None:
    with engine.create_conversation(
        system_message="Be brief.",
        messages=[Message.user("q"), {"role": "assistant", "content": "a"}],
        thinking_config=ThinkingConfig(),
        chat_template="{{ enable_thinking }}{% for m in messages %}{{ m.role }}:{{ m.content[0].text }};{% endfor %}",
    ) as conversation:
        assert conversation.render_message_to_string("hi") == ("truesystem:Be brief.;user:q;assistant:a;user:hi;")
        reply = conversation.send_message("hi", max_output_tokens=3, thinking_config=ThinkingConfig())
        assert [message["role"] for message in conversation.history] == ["user", "assistant"]
        assert conversation.history[1]["content"][0]["text"] == str(reply)


def test_limits_of_the_reply(engine: Engine) -> None:
    with engine.create_conversation(sampler_config=GREEDY, max_output_tokens=4) as conversation:
        conversation.send_message("x")
        assert conversation.get_benchmark_info().last_decode_token_count == 4
        conversation.send_message("x", max_output_tokens=7)
        assert conversation.get_benchmark_info().last_decode_token_count == 7
        conversation.send_message("x", max_output_tokens=10_000)
        assert conversation.token_count == engine.max_num_tokens


# ---------------------------------------------------------------- going back


def test_going_back_is_as_if_the_turns_had_not_been(engine: Engine) -> None:
    straight = talk(engine)
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        for prompt, expected in zip(PROMPTS, straight, strict=True):
            conversation.send_message("Something else entirely, " * 6, max_output_tokens=60)
            conversation.send_message("and more", max_output_tokens=LENGTH)
            conversation.rewind(2)
            assert str(conversation.send_message(prompt, max_output_tokens=LENGTH)) == expected
        conversation.rewind(len(PROMPTS))
        assert (conversation.token_count, conversation.history) == (0, ())
        assert str(conversation.send_message(PROMPTS[0], max_output_tokens=LENGTH)) == straight[0]


def test_going_back_too_far(engine: Engine) -> None:
    with engine.create_conversation() as conversation:
        conversation.send_message("x", max_output_tokens=1)
        conversation.rewind(0)
        with pytest.raises(ConversationError) as caught:
            conversation.rewind(2)
        assert str(caught.value) == "cannot go back 2 turns, there are 1; ask for fewer"


# ---------------------------------------------------------------- cancelling


def test_cancelling_ends_within_a_token_and_takes_the_turn_back(engine: Engine) -> None:
    straight = talk(engine)
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        conversation.send_message(PROMPTS[0], max_output_tokens=LENGTH)
        before = conversation.token_ids
        pieces = []
        for piece in conversation.send_message_async("Go on", max_output_tokens=200):
            pieces.append(str(piece))
            if len(pieces) == 3:
                conversation.cancel_process()
        assert len(pieces) == 3  # what was written beyond is dropped
        assert conversation.finish_reason == "cancelled"
        assert conversation.token_ids == before
        assert len(conversation.history) == 2
        assert str(conversation.send_message(PROMPTS[1], max_output_tokens=LENGTH)) == straight[1]


def test_cancelling_from_another_thread(engine: Engine) -> None:
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        timer = threading.Timer(0.05, conversation.cancel_process)
        timer.start()
        for _ in range(1000):  # each fills the context; one of them is hit
            reply = conversation.send_message("x", max_output_tokens=480)
            if not conversation.history:
                break
            conversation.rewind()
        timer.join()
        assert conversation.token_count == 0
        assert reply.finish_reason == "cancelled"


def test_leaving_a_stream_takes_the_turn_back(engine: Engine) -> None:
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        stream = conversation.send_message_async("x", max_output_tokens=LENGTH)
        next(stream)
        stream.close()
        assert (conversation.token_count, conversation.history) == (0, ())


def test_asyncio(engine: Engine) -> None:
    straight = talk(engine)

    async def run() -> None:
        conversation = engine.create_conversation(sampler_config=GREEDY)
        assert str(await conversation.asend_message(PROMPTS[0], max_output_tokens=LENGTH)) == straight[0]
        pieces = [str(piece) async for piece in conversation.asend_message_async(PROMPTS[1], max_output_tokens=LENGTH)]
        assert "".join(pieces) == straight[1]
        before = conversation.token_count
        task = asyncio.create_task(conversation.asend_message("x", max_output_tokens=300))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert conversation.token_count == before
        assert str(await conversation.asend_message(PROMPTS[2], max_output_tokens=LENGTH)) == straight[2]

    asyncio.run(run())


# ---------------------------------------------------------------- errors


def test_a_message_that_does_not_fit_leaves_the_conversation_as_it_was(engine: Engine) -> None:
    straight = talk(engine)
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        conversation.send_message(PROMPTS[0], max_output_tokens=LENGTH)
        before = conversation.token_count
        message = "word " * 600
        with engine.create_conversation(messages=conversation.history) as restored:
            asked = len(engine.tokenize(restored.render_message_to_string(message))) + 2  # start token, one of a reply
        with pytest.raises(ContextOverflowError) as caught:
            conversation.send_message(message)
        assert str(caught.value) == (
            f"context overflow: {asked} tokens asked, 512 allowed; "
            "shorten the input, start a new conversation or convert with a longer context"
        )
        assert conversation.token_count == before
        assert str(conversation.send_message(PROMPTS[1], max_output_tokens=LENGTH)) == straight[1]


def test_a_message_may_fill_the_context_but_for_one_token(engine: Engine) -> None:
    template = "{{ messages[0].content[0].text }}"
    words = engine.detokenize(engine.tokenize("a " * 600)[: engine.max_num_tokens - 2])  # and the start token
    with engine.create_conversation(sampler_config=GREEDY, chat_template=template) as conversation:
        conversation.send_message(words)
        assert conversation.token_count == engine.max_num_tokens
        assert conversation.get_benchmark_info().last_decode_token_count == 1


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_no_token(engine: Engine, limit: int) -> None:
    message = f"max_output_tokens is {limit}, expected at least 1; leave it out for no limit"
    with pytest.raises(ConfigError) as caught:
        engine.create_conversation(max_output_tokens=limit)
    assert str(caught.value) == message
    conversation = engine.create_conversation()
    for send in (
        lambda: conversation.send_message("x", max_output_tokens=limit),
        lambda: list(conversation.send_message_async("x", max_output_tokens=limit)),
    ):
        with pytest.raises(ConfigError) as caught:
            send()
        assert str(caught.value) == message
    assert conversation.history == ()


def test_a_message_amid_a_stream(engine: Engine) -> None:
    """It would be answered after half a reply, and lost when the stream ends."""
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        stream = conversation.send_message_async(PROMPTS[0], max_output_tokens=LENGTH)
        first = str(next(stream))
        for call in (lambda: conversation.send_message("x"), conversation.rewind):
            with pytest.raises(ConversationError) as caught:
                call()
            assert str(caught.value) == "a reply is still being written; read its stream to the end or close it first"
        assert first + "".join(map(str, stream)) == talk(engine)[0]
        assert str(conversation.send_message(PROMPTS[1], max_output_tokens=LENGTH)) == talk(engine)[1]


def test_a_closed_conversation(engine: Engine) -> None:
    conversation = engine.create_conversation()
    conversation.close()
    conversation.close()
    conversation.cancel_process()
    for call in (
        lambda: conversation.send_message("x"),
        lambda: conversation.token_count,
        lambda: conversation.render_message_to_string("x"),
        lambda: list(conversation.send_message_async("x")),
    ):
        with pytest.raises(ConversationError) as caught:
            call()
        assert str(caught.value) == "the conversation is closed; create a new one"


def test_images_are_refused(engine: Engine) -> None:
    with engine.create_conversation() as conversation:
        with pytest.raises(MediaError) as caught:
            conversation.send_message(Contents.of("what is this?", Content.ImageFile("/a.png")))
        assert str(caught.value) == (
            f"image content was given, {engine.model_path} has no vision encoder; "
            "leave it out or convert with --modalities text,vision"
        )
        assert conversation.history == ()


def test_a_template_that_rewrites_the_past(engine: Engine) -> None:
    """What it changed is prefilled again; only what a single turn adds can then not be told."""
    template = "{{ messages | length }}{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    with engine.create_conversation(chat_template=template, sampler_config=GREEDY) as conversation:
        conversation.send_message("x", max_output_tokens=1)
        with pytest.raises(TemplateError) as caught:
            conversation.render_message_to_string("y")
        assert str(caught.value) == (
            "the chat template changes what it rendered before when a message is added; "
            "pass a chat_template that only appends"
        )
        said = str(conversation.history[1]["content"][0]["text"])
        conversation.send_message("y", max_output_tokens=1)
        assert engine.detokenize(list(conversation.token_ids)[1:]).startswith(f"3x{said}y")


def test_a_format_where_constraints_are_off(engine: Engine) -> None:
    config = ConstrainedDecodingConfig(enable=False)
    with engine.create_conversation(constrained_decoding_config=config) as conversation:
        with pytest.raises(ConstraintError) as caught:
            conversation.send_message("x", response_format=ResponseFormat.regex("a"))
        assert str(caught.value) == (
            "response_format was given but constrained_decoding_config.enable is False; enable it or leave it out"
        )


def test_a_bundle_without_a_template_or_stop_tokens(engine: Engine) -> None:
    model = TextModel(Bundle.open(Path(engine.model_path)))
    model.metadata.ClearField("jinja_prompt_template")
    model.eos_token_ids = []
    with pytest.raises(BundleError) as caught:
        Conversation(model, engine.new_sequence())
    assert str(caught.value) == (
        f"{engine.model_path}: its metadata has no chat template; pass chat_template or convert the model again"
    )
    with pytest.raises(BundleError) as caught:
        model.constraint(ResponseFormat.regex("a"))
    assert str(caught.value) == (
        f"{engine.model_path}: found no stop token in its metadata, a response format needs one; "
        "convert the model again"
    )


def test_a_batch_is_each_prompt_alone(engine: Engine) -> None:
    expected = [talk(engine, prompts=(prompt,))[0] for prompt in PROMPTS]
    replies = list(generate_batch(engine, PROMPTS, sampler_config=GREEDY, max_output_tokens=LENGTH))
    assert [str(reply) for reply in replies] == expected
    assert all(reply.role is Role.MODEL for reply in replies)
