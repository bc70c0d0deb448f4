"""A conversation that is held has the tokens of the same one restored from what was said."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.text.sampler import SamplerConfig
from tests.runtime.chat.scripted import scripted

CREATIVE = SamplerConfig(top_k=40, top_p=0.95, temperature=1.5, seed=5)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{{ p.text }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text.split('</think>')[-1] }}{% endfor %}[end]"
    "{% endfor %}{% if add_generation_prompt %}[assistant]<think>{% endif %}"
)


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def engine(
    request: pytest.FixtureRequest, tiny_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    path, cache = tiny_bundle(request.param, "fp32"), tmp_path_factory.mktemp("cache")
    with Engine(str(path), Backend.CPU(thread_count=1), cache_dir=str(cache)) as engine:
        yield engine


def prompt_ids(engine: Engine, held: Conversation, options: dict[str, Any], message: Any) -> list[int]:
    """The prompt of a restored conversation."""
    with engine.create_conversation(**{**options, "messages": held.history}) as restored:
        restored.send_message(message, max_output_tokens=1)
        return list(restored.token_ids)[:-1]


def text_of(engine: Engine, conversation: Conversation) -> str:
    return engine.detokenize(list(conversation.token_ids)[1:])


REPLIES = [
    "plain",
    " spaces around \n",
    "\n\nnew lines before",
    "a\n\n\nb",
    "",
    "emoji \U0001f600 and \u65e5",
    "<end",
    "ok",
]


@pytest.mark.parametrize("template", [None, CHATML, THINKING])
def test_held_and_restored_are_the_same(engine: Engine, template: str | None) -> None:
    options: dict[str, Any] = {} if template is None else {"chat_template": template}
    held = scripted(engine, REPLIES, **options)
    for index, _ in enumerate(REPLIES):
        wanted = prompt_ids(engine, held, options, f"question {index}")
        held.send_message(f"question {index}")
        assert list(held.token_ids)[: len(wanted)] == wanted
        assert [message["role"] for message in held.history] == ["user", "assistant"] * (index + 1)


def test_replies_that_the_model_draws_and_that_are_cut(engine: Engine) -> None:
    """Cut within words and characters; of tokens that the same text would not have."""
    held = engine.create_conversation(sampler_config=CREATIVE)
    for limit in (1, 2, 3, 7, 20):
        wanted = prompt_ids(engine, held, {}, "and then?")
        held.send_message("and then?", max_output_tokens=limit)
        assert list(held.token_ids)[: len(wanted)] == wanted
    assert text_of(engine, held).count("<end_of_turn>") in (9, 10)  # the last reply may have ended by itself


def test_calls_and_results(engine: Engine) -> None:
    def price(item: str) -> dict[str, str]:
        """Tells a price."""
        return {"of": item}

    call = "Let me see.\n```tool_code\nprice( item = 'tea' )\n```"
    held = scripted(engine, [call, "It is cheap.", call, "Still."], tools=[price])
    held.send_message("How much?")
    wanted = prompt_ids(engine, held, {"tools": [price]}, "And now?")
    held.send_message("And now?")
    assert list(held.token_ids)[: len(wanted)] == wanted
    assert text_of(engine, held).count("<start_of_turn>") == text_of(engine, held).count("<end_of_turn>")


def test_a_cut_reply_is_closed_once(engine: Engine) -> None:
    held = scripted(engine, ["one two three"])
    held.send_message("a", max_output_tokens=2)
    held.send_message("b", max_output_tokens=1)
    assert text_of(engine, held).startswith(
        "<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\n"
        f"{engine.detokenize(engine.tokenize('one two three')[:2])}<end_of_turn>\n"
        "<start_of_turn>user\nb<end_of_turn>\n<start_of_turn>model\n"
    )


def test_going_back_restores_the_tokens_as_they_were(engine: Engine) -> None:
    held = scripted(engine, [" one \n", "two ", "\nthree", "four", "five"])
    states = [(held.token_ids, held.history)]
    for question in "abc":
        held.send_message(question)
        states.append((held.token_ids, held.history))
    for turns in (1, 2):
        held.rewind(turns)
        del states[-turns:]
        assert (held.token_ids, held.history) == states[-1]
    assert held.token_count == 0


def test_a_turn_that_fails_leaves_the_tokens_as_they_were(engine: Engine) -> None:
    held = scripted(engine, [" one \n", "two"])
    held.send_message("a")
    before = held.token_ids
    stream = held.send_message_async("b")
    next(stream)
    assert held.token_ids[: len(before)] != before  # trimmed by the template, and closed
    stream.close()
    assert held.token_ids == before


def test_why_a_reply_ended(engine: Engine) -> None:
    def price(item: str) -> str:
        return item

    held = scripted(engine, ["one", "two three four", "```tool_code\nprice('tea')\n```", "five"])
    assert held.send_message("a").finish_reason == "stop"
    assert held.send_message("b", max_output_tokens=1).finish_reason == "length"
    assert "finish_reason" not in held.send_message("c")
    streamed = scripted(engine, ["one two"])
    stream = streamed.send_message_async("a")
    assert (next(stream).finish_reason, streamed.finish_reason) == (None, None)
    assert {piece.finish_reason for piece in stream} == {None}
    assert streamed.finish_reason == "stop"
    asked = scripted(engine, ["```tool_code\nprice('tea')\n```"], tools=[price], automatic_tool_calling=False)
    assert asked.send_message("a").finish_reason == "tool_calls"
    answered = scripted(engine, ["```tool_code\nprice('tea')\n```", "ok"], tools=[price])
    assert answered.send_message("a").finish_reason == "stop"
    full = scripted(engine, ["word " * 600])
    assert full.send_message("a").finish_reason == "length"
    assert full.token_count == engine.max_num_tokens
    stopped = engine.create_conversation()
    for _ in stopped.send_message_async("a"):
        stopped.cancel_process()
    assert stopped.finish_reason == "cancelled"


def test_only_what_differs_is_run_again(engine: Engine) -> None:
    held = scripted(engine, ["It is a man.", "He went."])
    held.send_message("Who is it?")
    held.send_message("and then?")
    added = "\n<start_of_turn>user\nand then?<end_of_turn>\n<start_of_turn>model\n"
    assert held.get_benchmark_info().last_prefill_token_count == len(engine.tokenize(added))
