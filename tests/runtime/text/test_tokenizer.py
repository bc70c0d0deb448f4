"""The tokenizer of a bundle, and text that grows token by token."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.runtime.formats.litertlm import Bundle, BundleError, SectionKind, SectionSpec
from gemma_edge.runtime.text.tokenizer import Detokenizer, Tokenizer, TokenizerError
from tests.bundles import write_bundle

TEXTS = [
    "In the beginning",
    " leading and trailing ",
    "naïve — “quoted” 日本語 \U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467",  # no pieces: bytes, several emoji
    "<start_of_turn>user\nHello<end_of_turn>\n",
    "tab\t, spaces     and\n\n\nlines",
    "",
]


@pytest.fixture(scope="module")
def tokenizer(tiny_gemma3: Path) -> Tokenizer:
    return Tokenizer((tiny_gemma3 / "tokenizer.model").read_bytes())


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_in_text_become_their_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<start_of_turn>user")
    assert tokenizer.piece(ids[0]) == "<start_of_turn>"
    assert not tokenizer.is_control(ids[0])
    assert tokenizer.is_control(2)
    assert tokenizer.piece_bytes(2) == b""


def test_pieces_as_bytes_make_up_the_text(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        assert b"".join(map(tokenizer.piece_bytes, tokenizer.encode(text))).decode() == text


@pytest.mark.parametrize("text", TEXTS)
def test_streaming_never_splits_a_character(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token_id) for token_id in tokenizer.encode(text)]
    assert "".join(pieces) == text  # nothing is left for flush
    assert not any("\ufffd" in piece for piece in pieces)
    assert detokenizer.flush() == ""


def test_any_tokens_stream_to_what_they_decode_to(tokenizer: Tokenizer) -> None:
    """Random bytes among pieces: unfinished, overlong and impossible characters, all over the place."""
    rng = random.Random(0)
    byte_ids = [token_id for token_id in range(tokenizer.size) if tokenizer.is_byte(token_id)]
    assert len(byte_ids) == 256
    emoji = tokenizer.encode("日本語 \U0001f600 é")
    for _ in range(3000):
        ids = [rng.choice(byte_ids) if rng.random() < 0.7 else rng.randrange(tokenizer.size) for _ in range(8)]
        ids = emoji[rng.randrange(len(emoji)) :] + ids
        detokenizer = Detokenizer(tokenizer)
        assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == tokenizer.decode(ids)


def test_text_waits_only_for_its_own_character(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    euro = tokenizer.encode("\u20ac")  # three bytes
    assert [detokenizer.push(token_id) for token_id in euro] == ["", "", "\u20ac"]
    assert detokenizer.push(euro[0]) == ""
    assert detokenizer.push(tokenizer.encode("a")[0]) == "\ufffda"


@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_a_bundles_tokenizer(tiny_bundle: Callable[[str, str], Path], tokenizer: Tokenizer, family: str) -> None:
    bundled = Tokenizer.of_bundle(Bundle.open(tiny_bundle(family, "int4")))
    for text in TEXTS:
        assert bundled.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("call", [lambda t: t.decode([5, 2048]), lambda t: Detokenizer(t).push(2048)])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, call: Callable[[Tokenizer], str]) -> None:
    with pytest.raises(TokenizerError) as caught:
        call(tokenizer)
    assert str(caught.value) == "token id 2048 has no piece, expected 0 to 2047; use this bundle's ids"


def test_text_that_is_none_is_refused(tokenizer: Tokenizer) -> None:
    """Where Python reads a command line or a file that is not UTF-8."""
    with pytest.raises(TokenizerError) as caught:
        tokenizer.encode(b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert str(caught.value) == r"the text has '\udce9' at 3, which is no character; read its source as UTF-8"


def test_a_broken_model_is_refused() -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer(b"not a model", "model.litertlm")
    assert str(caught.value) == "model.litertlm: its SentencePiece model does not load; convert the model again"


def test_a_bundle_without_sentencepiece_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.litertlm"
    write_bundle(path, [SectionSpec(SectionKind.HUGGING_FACE_TOKENIZER, 4)], [b"1234"])
    with pytest.raises(BundleError) as caught:
        Tokenizer.of_bundle(Bundle.open(path))
    assert str(caught.value) == (
        f"{path}: found sections hugging_face_tokenizer, expected sentencepiece_tokenizer; "
        "convert the checkpoint with gemma-edge, which derives one from tokenizer.json"
    )
