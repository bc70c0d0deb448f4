"""Replies with figures, and the values that replies are asked for with."""

import math
from typing import Any

import pytest

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.services.errors import ServiceError
from gemma_edge.runtime.services.levels import LEVELS, optimization_level
from gemma_edge.runtime.services.request import GenerationConfig
from gemma_edge.runtime.services.timed import batch_generate, fast_generate
from gemma_edge.runtime.text.sampler import SamplerConfig, SamplerError

GREEDY = GenerationConfig(max_tokens=12, do_sample=False, repetition_penalty=1.0)
MESSAGES: list[Any] = [
    {"role": "system", "content": "Speak."},
    {"role": "user", "content": "And God said unto"},
    {"role": "assistant", "content": "Moses,"},
    {"role": "user", "content": "And the LORD"},
]


def test_the_reply_is_the_conversations_and_the_figures_are_its_own(engine: Engine) -> None:
    with engine.create_conversation(messages=MESSAGES[:3], sampler_config=SamplerConfig(top_k=1)) as conversation:
        expected = str(conversation.send_message("And the LORD", max_output_tokens=12))
        tokens = conversation.usage.generated
    timed = fast_generate(engine, MESSAGES, GREEDY)
    assert timed["response"] == expected
    assert timed["tokens_generated"] == tokens > 0
    assert timed["generation_time"] > 0
    assert math.isclose(timed["tokens_per_second"], tokens / timed["generation_time"])


def test_a_batch_is_the_same_replies_in_order(engine: Engine) -> None:
    batch = [MESSAGES, MESSAGES[1:2], MESSAGES]
    timed = batch_generate(engine, batch, GREEDY)
    assert timed["responses"] == [fast_generate(engine, messages, GREEDY)["response"] for messages in batch]
    assert math.isclose(timed["average_time_per_item"], timed["batch_generation_time"] / 3)


def test_no_batch_takes_no_time_for_each(engine: Engine) -> None:
    assert batch_generate(engine, [])["average_time_per_item"] == 0


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "there are no messages, expected at least one; send what the user asks"),
        (MESSAGES[:3], "the last message has the role 'assistant', expected user; end with what is to be answered"),
        ([{"content": "x"}], "the last message has the role None, expected user"),
    ],
)
def test_what_cannot_be_answered_is_refused(engine: Engine, messages: list[Any], message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        fast_generate(engine, messages)


def test_the_documents_defaults() -> None:
    config = GenerationConfig()
    assert (config.max_tokens, config.temperature, config.top_p) == (512, 0.7, 0.9)
    assert (config.repetition_penalty, config.do_sample) == (1.05, True)
    assert config.sampler == SamplerConfig(top_p=0.9, temperature=0.7)
    assert config.penalty.repetition_penalty == 1.05
    assert GenerationConfig(do_sample=False).sampler == SamplerConfig(top_k=1)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"max_tokens": 0}, ServiceError, "max_tokens is 0, expected at least 1; ask for a longer reply"),
        ({"top_p": 1.5}, SamplerError, "top_p is 1.5"),
        ({"repetition_penalty": 0.5}, SamplerError, "repetition_penalty is 0.5"),
    ],
)
def test_values_out_of_range_are_refused_at_once(values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GenerationConfig(**values)


def test_levels_are_targets_and_profiles() -> None:
    assert list(LEVELS) == ["maximum_efficiency", "balanced", "performance"]
    assert optimization_level() is LEVELS["balanced"]
    options = optimization_level("maximum_efficiency").convert_options("e2b")
    assert options == ["--target", "e2b-int4", "--profile", "phone-2gb"]


@pytest.mark.parametrize("name", LEVELS)
def test_e2b_fits_the_profile_of_each_level(name: str) -> None:
    from click.testing import CliRunner

    from gemma_edge.converter.cli import main

    planned = CliRunner().invoke(main, ["plan", *LEVELS[name].convert_options("e2b")])
    assert planned.exit_code == 0, planned.output


def test_other_levels_and_models_are_refused() -> None:
    message = "unknown optimization level 'turbo', expected one of maximum_efficiency, balanced, performance; choose"
    with pytest.raises(ServiceError, match=message):
        optimization_level("turbo")
    with pytest.raises(ServiceError, match="unknown model 'e8b', expected one of e4b, e2b, 1b, custom; choose"):
        optimization_level().target("e8b")
