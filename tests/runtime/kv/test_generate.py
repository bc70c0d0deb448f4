"""Stop sequences and text as it grows. The loop itself: test_session, test_conversation, test_litert_lm_parity."""

from pathlib import Path

import pytest

from gemma_edge.runtime.kv.generate import StopTokens, TurnTiming, as_text
from gemma_edge.runtime.text.tokenizer import Tokenizer


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
