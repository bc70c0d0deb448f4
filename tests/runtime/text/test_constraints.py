"""Constrained decoding: whatever the model would like to say, the reply keeps to the format."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_edge.runtime.text.constraints import ConstraintError, ConstraintFactory, ResponseFormat
from gemma_edge.runtime.text.tokenizer import Tokenizer

END_OF_TURN, EOS = 11, 1
LOGITS_LENGTH = 2080  # Gemma 3n's head is longer than its tokenizer: those ids never come


@pytest.fixture(scope="module")
def tokenizer(tiny_gemma3: Path) -> Tokenizer:
    return Tokenizer((tiny_gemma3 / "tokenizer.model").read_bytes())


@pytest.fixture(scope="module")
def factory(tokenizer: Tokenizer) -> ConstraintFactory:
    return ConstraintFactory(tokenizer, [END_OF_TURN, EOS])


def say_anything(factory: ConstraintFactory, tokenizer: Tokenizer, response_format: ResponseFormat, seed: int) -> str:
    """What a model with random logits writes under the constraint, until it stops."""
    rng = np.random.default_rng(seed)
    constraint = factory.create(response_format)
    ids: list[int] = []
    while len(ids) < 500:
        logits = constraint.mask(rng.normal(size=LOGITS_LENGTH).astype(np.float32))
        assert np.all(logits[tokenizer.size :] == -np.inf)
        token_id = int(np.argmax(logits))
        if token_id in (END_OF_TURN, EOS):
            return tokenizer.decode(ids)
        constraint.accept(token_id)
        ids.append(token_id)
    raise AssertionError(f"no end: {tokenizer.decode(ids)!r}")


@pytest.mark.parametrize("pattern", ["yes|no", "[0-9]{3}-[0-9]{4}", "(na ){2,4}batman", "prix: [0-9]+ \u20ac", ""])
def test_a_reply_matches_the_regular_expression(factory: ConstraintFactory, tokenizer: Tokenizer, pattern: str) -> None:
    for seed in range(5):
        assert re.fullmatch(pattern, say_anything(factory, tokenizer, ResponseFormat.regex(pattern), seed))


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "full name": {"enum": ["Elizabeth Bennet", "Zo\u00eb \U0001f600"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["full name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_a_reply_is_json_of_the_schema(
    factory: ConstraintFactory, tokenizer: Tokenizer, schema: dict[str, Any] | str
) -> None:
    for seed in range(5):
        reply = json.loads(say_anything(factory, tokenizer, ResponseFormat.json(schema), seed))
        assert reply["full name"] in SCHEMA["properties"]["full name"]["enum"]
        assert 0 <= reply["age"] <= 120
        assert all(isinstance(tag, bool) for tag in reply["tags"])


def test_json_does_not_go_on_with_blanks_for_ever(factory: ConstraintFactory, tokenizer: Tokenizer) -> None:
    constraint = factory.create(ResponseFormat.json(SCHEMA))
    constraint.accept(tokenizer.encode("{")[0])
    logits = np.zeros(LOGITS_LENGTH, np.float32)
    [blank] = tokenizer.encode("\n")
    blanks = 0
    while constraint.mask(logits)[blank] == 0:
        constraint.accept(blank)
        blanks += 1
    assert blanks == 16


def test_stop_tokens_come_only_at_the_end(factory: ConstraintFactory, tokenizer: Tokenizer) -> None:
    """<end_of_turn> is text to SentencePiece, and a JSON string could hold it; it would cut the reply short."""
    constraint = factory.create(ResponseFormat.regex("a.*z"))
    zeros = np.zeros(LOGITS_LENGTH, np.float32)
    for token_id in tokenizer.encode("a"):
        assert constraint.mask(zeros)[END_OF_TURN] == -np.inf
        constraint.accept(token_id)
    assert constraint.mask(zeros)[END_OF_TURN] == -np.inf
    for token_id in tokenizer.encode("z"):
        constraint.accept(token_id)
    assert constraint.mask(zeros)[END_OF_TURN] == 0


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        (ResponseFormat.regex("(yes"), "the regular expression cannot constrain a reply: unclosed group; "),
        (ResponseFormat.regex("(?=a)b"), "the regular expression cannot constrain a reply: look-around, "),
        (ResponseFormat.json({"type": "word"}), "the JSON schema cannot constrain a reply: Invalid type: word; "),
        (
            ResponseFormat.json("3"),
            "the JSON schema cannot constrain a reply: Expecting object schema to apply options; ",
        ),
    ],
)
def test_what_llguidance_does_not_take(
    factory: ConstraintFactory, response_format: ResponseFormat, message: str
) -> None:
    with pytest.raises(ConstraintError) as caught:
        factory.create(response_format)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("see llguidance's documentation for what it supports")


def test_a_schema_that_is_not_json() -> None:
    with pytest.raises(ConstraintError) as caught:
        ResponseFormat.json("{'a'}")
    assert str(caught.value) == (
        "the JSON schema is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1); "
        "pass a dict or valid JSON text"
    )


def test_a_token_the_mask_forbade(factory: ConstraintFactory, tokenizer: Tokenizer) -> None:
    constraint = factory.create(ResponseFormat.regex("yes"))
    with pytest.raises(ConstraintError, match=r"^constrained decoding stopped: .*; simplify the response format$"):
        constraint.accept(tokenizer.encode("no")[0])
