"""Stop sequences, text as it grows, and what is picked or blamed. The loop otherwise: test_session, test_conversation,
test_litert_lm_parity."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_edge.runtime.executors.base import ExecutorError
from gemma_edge.runtime.kv.generate import Decoding, StopTokens, TurnTiming, as_text, draw
from gemma_edge.runtime.text import constraints
from gemma_edge.runtime.text.constraints import Constraint, ConstraintFactory, ResponseFormat
from gemma_edge.runtime.text.penalties import (
    NoRepeatNgramConfig,
    Penalties,
    RepetitionPenaltyConfig,
    SuppressTokensConfig,
)
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig, SamplerError
from gemma_edge.runtime.text.tokenizer import Tokenizer

GREEDY = SamplerConfig(top_k=1)
SAMPLED = SamplerConfig(top_k=40, top_p=0.95, temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def tokenizer(tiny_gemma3: Path) -> Tokenizer:
    return Tokenizer((tiny_gemma3 / "tokenizer.model").read_bytes())


@pytest.mark.parametrize(
    ("generated", "ended", "pending"),
    [
        ([], 0, 0),
        ([5], 0, 0),
        ([1], 1, 0),
        ([5, 7], 0, 1),
        ([5, 7, 8], 0, 2),
        ([5, 7, 8, 9], 3, 0),
        ([7, 7], 0, 1),
        ([7, 8, 7], 0, 1),
    ],
)
def test_stop_sequences(generated: list[int], ended: int, pending: int) -> None:
    stop = StopTokens([[1], [7, 8, 9], []])
    assert stop.ended(generated) == ended
    assert stop.pending(generated) == pending


def test_a_stop_sequence_is_not_shown_and_what_only_began_like_one_is(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the end of it")
    words = [tokenizer.decode([token_id]) for token_id in ids]
    assert len(ids) >= 4
    stop = StopTokens([ids[2:4]])
    assert list(as_text(iter(ids[:4]), tokenizer, stop)) == words[:2]
    assert "".join(as_text(iter([*ids[:3], ids[0]]), tokenizer, stop)) == tokenizer.decode([*ids[:3], ids[0]])
    assert "".join(as_text(iter(ids[:3]), tokenizer, stop)) == tokenizer.decode(ids[:3])  # ran out of tokens there


def test_no_piece_is_empty_or_splits_a_character(tokenizer: Tokenizer) -> None:
    pieces = list(as_text(iter(tokenizer.encode("a\u20acb")), tokenizer, StopTokens([])))
    assert pieces == ["a", "\u20ac", "b"]
    cut = list(as_text(iter(tokenizer.encode("\u20ac")[:2]), tokenizer, StopTokens([])))
    assert cut == ["\ufffd\ufffd"]  # what SentencePiece makes of it


def test_a_padding_token_that_is_drawn_has_no_text(tokenizer: Tokenizer) -> None:
    """Gemma 3n's logits are longer than its vocabulary."""
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    assert list(as_text(iter([a, tokenizer.size, b, tokenizer.size + 30]), tokenizer, StopTokens([]))) == ["a", "b"]


def test_speeds() -> None:
    timing = TurnTiming(prefill_tokens=25, run_tokens=20, time_to_first_token_s=0.5, token_s=[0.1, 0.3])
    assert (timing.decode_tokens, timing.prefill_tokens_per_s) == (3, 40.0)
    assert timing.decode_tokens_per_s == pytest.approx(5.0)
    assert (TurnTiming().decode_tokens, TurnTiming().prefill_tokens_per_s, TurnTiming().decode_tokens_per_s) == (
        0,
        0,
        0,
    )


@pytest.mark.parametrize("slow_mask_s", [-1.0, np.inf], ids=["each is asked for", "looked up in masks"])
def test_a_sampled_token_in_a_format_is_that_of_masked_logits(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, slow_mask_s: float
) -> None:
    """Within strings, where only the likeliest tokens are looked at, and at their ends."""
    factory = ConstraintFactory(tokenizer, [1])
    text = {"type": "string", "maxLength": 40}
    schema: dict[str, Any] = {"type": "array", "items": text, "minItems": 3, "maxItems": 6}
    penalties = Penalties(RepetitionPenaltyConfig(1.1, 0.1, 0.1))
    narrowed, drawn_tokens, narrow = 0, 0, Constraint.narrow

    def counted(self: Constraint, logits: np.ndarray) -> Any:
        nonlocal narrowed
        narrowed += 1
        return narrow(self, logits)

    for seed in range(4):
        random = np.random.default_rng(seed)
        given = random.normal(scale=3, size=(300, 2080)).astype(np.float32)  # longer than the vocabulary
        given[::3] = np.round(given[::3])  # of equals the first
        given[:, tokenizer.encode('a"')[-1]] += 5  # strings end
        config = SamplerConfig(top_k=40, top_p=0.95, temperature=1.0, seed=seed)
        applied = penalties.start()
        sampler, constraint, expected = Sampler(config), factory.create(ResponseFormat.json(schema)), list[int]()
        while not expected or (expected[-1] != 1 and len(expected) < 300):
            logits = given[len(expected)].copy()
            applied.apply(logits)
            left, token_ids = narrow(constraint, logits)
            picked = sampler.pick(left)
            expected.append(picked if token_ids is None else int(token_ids[picked]))
            if expected[-1] != 1:
                constraint.accept(expected[-1])
                applied.add(expected[-1])
        monkeypatch.setattr(Constraint, "narrow", counted)
        monkeypatch.setattr(constraints, "_SLOW_MASK_S", slow_mask_s)
        rows = iter(given.copy())
        how = Decoding(Sampler(config), StopTokens([[1]]), penalties, factory.create(ResponseFormat.json(schema)))
        drawn = list(draw(lambda _, rows=rows: next(rows), 2, 300, how))  # type: ignore[misc]
        monkeypatch.undo()
        assert [token.token_id for token in drawn] == expected
        assert drawn[-1].sampler_state == sampler.state
        drawn_tokens += len(drawn)
    assert drawn_tokens - narrowed > 100


@pytest.mark.parametrize("sampler", [GREEDY, SAMPLED])
@pytest.mark.parametrize(
    ("penalties", "written", "message"),
    [
        (
            Penalties(suppress=SuppressTokensConfig(range(9))),
            0,
            "suppress_tokens_config forbids all 5 tokens; allow some of them",
        ),
        (
            Penalties(no_repeat_ngram=NoRepeatNgramConfig(1)),
            5,
            "no_repeat_ngram_config forbids all 5 tokens; allow some of them",
        ),
        (
            Penalties(RepetitionPenaltyConfig(2.0), NoRepeatNgramConfig(1), SuppressTokensConfig([0, 4, 7])),
            3,
            "no_repeat_ngram_config and suppress_tokens_config forbid all 5 tokens; allow some of them",
        ),
    ],
)
def test_penalties_that_leave_no_token_are_named(
    sampler: SamplerConfig, penalties: Penalties, written: int, message: str
) -> None:
    how = Decoding(Sampler(sampler), StopTokens([]), penalties)
    drawing = draw(lambda _: np.arange(5, dtype=np.float32), 0, 9, how)
    assert len({next(drawing).token_id for _ in range(written)}) == written
    with pytest.raises(SamplerError) as caught:
        next(drawing)
    assert str(caught.value) == message


@pytest.mark.parametrize("sampler", [GREEDY, SAMPLED])
@pytest.mark.parametrize("pattern", [None, "[a-z]+"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_model_without_numbers_is_blamed_whatever_is_forbidden(
    tokenizer: Tokenizer, sampler: SamplerConfig, pattern: str | None, bad: float
) -> None:
    constraint = None
    if pattern is not None:
        constraint = ConstraintFactory(tokenizer, [1]).create(ResponseFormat.regex(pattern))
    penalties = Penalties(no_repeat_ngram=NoRepeatNgramConfig(1), suppress=SuppressTokensConfig(range(300)))
    how = Decoding(Sampler(sampler), StopTokens([]), penalties, constraint)
    logits = np.full(tokenizer.size, bad, np.float32)
    with pytest.raises(ExecutorError) as caught:
        next(draw(lambda _: logits, 0, 9, how))
    assert str(caught.value) == f"the model's logits are not finite ({bad}); convert the checkpoint again"
