"""What a reply in a format, or from broken logits, must not do in silence."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import ExecutorError
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from gemma_edge.runtime.kv.generate import finite
from gemma_edge.runtime.text.constraints import ConstraintError, ResponseFormat
from gemma_edge.runtime.text.penalties import NoRepeatNgramConfig, SuppressTokensConfig
from gemma_edge.runtime.text.sampler import SamplerConfig, SamplerError
from tests.runtime.chat.scripted import scripted


@pytest.fixture(scope="module")
def engine(tiny_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path, cache = tiny_bundle("gemma3", "fp32"), tmp_path_factory.mktemp("cache")
    with Engine(str(path), Backend.CPU(thread_count=1), cache_dir=str(cache)) as engine:
        yield engine


@pytest.mark.parametrize("sampler", [SamplerConfig(top_k=1), SamplerConfig(top_k=40, seed=3)])
@pytest.mark.parametrize(
    ("pattern", "penalties"),
    [
        ("(ha ){8}", {"no_repeat_ngram_config": NoRepeatNgramConfig(2)}),
        ("x{200}", {"no_repeat_ngram_config": NoRepeatNgramConfig(1)}),
        ("no", {"suppress_tokens_config": SuppressTokensConfig(range(2048))}),
    ],
)
def test_a_ban_on_what_the_format_demands(
    engine: Engine, sampler: SamplerConfig, pattern: str, penalties: dict[str, Any]
) -> None:
    conversation = engine.create_conversation(sampler_config=sampler)
    with pytest.raises(ConstraintError) as caught:
        conversation.send_message("hi", response_format=ResponseFormat.regex(pattern), **penalties)
    assert str(caught.value) == (
        "no_repeat_ngram_config or suppress_tokens_config forbids every token that the response format "
        "allows next; leave one of them out"
    )
    assert conversation.history == ()


@pytest.mark.parametrize("sampler", [SamplerConfig(top_k=1), SamplerConfig(top_k=40, seed=3)])
def test_a_ban_on_every_token(engine: Engine, sampler: SamplerConfig) -> None:
    conversation = engine.create_conversation(sampler_config=sampler)
    with pytest.raises(SamplerError) as caught:
        conversation.send_message("hi", suppress_tokens_config=SuppressTokensConfig(range(5000)))
    assert str(caught.value) == "suppress_tokens_config forbids all 2048 tokens; allow some of them"
    assert conversation.history == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers(engine: Engine, monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    """One NaN is enough; -inf everywhere."""
    real = LitertSlot.decode

    def broken(self: LitertSlot, token_id: int) -> Any:
        logits = real(self, token_id).copy()
        logits[slice(None) if bad == -np.inf else 7] = bad
        return logits

    monkeypatch.setattr(LitertSlot, "decode", broken)
    error = f"the model's logits are not finite ({bad}); convert the checkpoint again"
    for config in (SamplerConfig(top_k=1), SamplerConfig(top_k=40)):
        conversation = engine.create_conversation(sampler_config=config)
        with pytest.raises(ExecutorError) as caught:
            conversation.send_message("hi", max_output_tokens=6)
        assert (str(caught.value), conversation.history) == (error, ())
    with engine.create_session(apply_prompt_template=False) as session:
        session.run_prefill(["In the beginning"])
        with pytest.raises(ExecutorError) as caught:
            session.run_text_scoring([" was"])
        assert str(caught.value) == error


def test_a_token_that_a_penalty_bans_is_no_fault_of_the_model() -> None:
    assert finite(np.array([-np.inf, 1], np.float32)).tolist() == [-np.inf, 1]


def test_a_reply_that_is_cut_inside_its_format_says_so(engine: Engine) -> None:
    wanted = ResponseFormat.json({"type": "array", "items": {"type": "integer"}, "minItems": 30})
    reply = engine.create_conversation().send_message("hi", response_format=wanted, max_output_tokens=9)
    assert (str(reply)[0], str(reply)[-1] == "]", reply.finish_reason) == ("[", False, "length")


def test_a_reply_that_breaks_its_schema_is_no_reply(engine: Engine) -> None:
    """uniqueItems cannot be enforced while it is written."""
    wanted = ResponseFormat.json({"type": "array", "uniqueItems": True})
    good = scripted(engine, ["[1, 2]"])
    assert str(good.send_message("hi", response_format=wanted)) == "[1, 2]"
    bad = scripted(engine, ["[1, 1]"])
    stream = bad.send_message_async("hi", response_format=wanted)
    with pytest.raises(ConstraintError, match="uniqueItems"):
        list(stream)
    assert bad.history == ()


@pytest.mark.parametrize(
    "config", [SamplerConfig(temperature=1.5), SamplerConfig(top_p=0.9), SamplerConfig(temperature=1.0, top_p=1.0)]
)
def test_a_temperature_alone_draws(engine: Engine, config: SamplerConfig) -> None:
    replies = {
        str(
            engine.create_conversation(
                sampler_config=SamplerConfig(top_p=config.top_p, temperature=config.temperature, seed=seed)
            ).send_message("hi", max_output_tokens=8)
        )
        for seed in range(4)
    }
    assert len(replies) > 1
    assert SamplerConfig(seed=3).candidates == 1  # nothing says to draw
