"""Constrained decoding: whatever the model would like to say, the reply keeps to the format."""

import json
import re
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
import pytest
from llguidance.numpy import apply_token_bitmask_inplace

from gemma_edge.runtime.text import constraints
from gemma_edge.runtime.text.constraints import (
    _JSON_OPTIONS,
    Constraint,
    ConstraintError,
    ConstraintFactory,
    ResponseFormat,
)
from gemma_edge.runtime.text.logits import Logits
from gemma_edge.runtime.text.tokenizer import Tokenizer
from tools.schema_suite import can_be_written

END_OF_TURN, EOS = 11, 1
LOGITS_LENGTH = 2080  # Gemma 3n's head is longer than its tokenizer: those ids never come


@pytest.fixture(scope="module")
def tokenizer(tiny_gemma3: Path) -> Tokenizer:
    return Tokenizer((tiny_gemma3 / "tokenizer.model").read_bytes())


@pytest.fixture(scope="module")
def factory(tokenizer: Tokenizer) -> ConstraintFactory:
    return ConstraintFactory(tokenizer, [END_OF_TURN, EOS])


def masked(constraint: Constraint, logits: Logits) -> Logits:
    """Logits [V] with -inf at what may not follow."""
    found, token_ids = constraint.narrow(logits.copy())
    if token_ids is None:
        return found
    result = np.full_like(logits, -np.inf)
    result[token_ids] = found
    return result


def say_anything(factory: ConstraintFactory, tokenizer: Tokenizer, response_format: ResponseFormat, seed: int) -> str:
    """What a model with random logits writes under the constraint, until it stops."""
    rng = np.random.default_rng(seed)
    constraint = factory.create(response_format)
    ids: list[int] = []
    while len(ids) < 500:
        logits = masked(constraint, rng.normal(size=LOGITS_LENGTH).astype(np.float32))
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


@pytest.mark.parametrize("length", [LOGITS_LENGTH - 40, LOGITS_LENGTH, LOGITS_LENGTH + 500])
def test_what_is_drawn_from_is_what_llguidances_own_mask_leaves(
    factory: ConstraintFactory, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Wherever few tokens may follow or nearly all; and as without what the factory prepares for strings."""
    wanted = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 40}}, "required": ["a"]}
    constraint = factory.create(ResponseFormat.json(wanted))
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(wanted), defaults=_JSON_OPTIONS)
    plain = llguidance.LLMatcher(factory._tokenizer.with_slices([]), grammar)
    logits = np.random.default_rng(0).normal(size=length).astype(np.float32)
    allowed = set()
    for token_id in [*tokenizer.encode('{"a": "once upon a time there was'), *tokenizer.encode('"}'), END_OF_TURN]:
        words = np.frombuffer(plain.compute_bitmask(), np.int32)
        expected = logits.copy()
        apply_token_bitmask_inplace(expected, words)
        assert np.array_equal(masked(constraint, logits), expected)
        assert [constraint.allows(i) for i in range(length)] == [bool(x > -np.inf) for x in expected]
        ids = np.arange(length)
        for slow_s in (-1.0, np.inf):  # each token is asked for; all are, with a mask
            monkeypatch.setattr(constraints, "_SLOW_MASK_S", slow_s)
            assert np.array_equal(constraint.allowed(ids), expected > -np.inf)
        assert constraint.is_wide() == bool(np.mean(expected > -np.inf) > 0.5)
        allowed.add(bool(np.mean(expected > -np.inf) > 0.5))
        constraint.accept(token_id)
        plain.consume_token(token_id)
    assert allowed == {False, True}


def test_forced_tokens_are_all_that_the_masks_leave(factory: ConstraintFactory) -> None:
    random, forced_tokens = np.random.default_rng(0), 0
    for _ in range(5):
        constraint = factory.create(ResponseFormat.json(SCHEMA))
        while True:
            logits = random.normal(size=LOGITS_LENGTH).astype(np.float32)
            for token_id in constraint.forced():
                assert np.flatnonzero(masked(constraint, logits) > -np.inf).tolist() == [token_id]
                constraint.accept(token_id)
                forced_tokens += 1
            token_id = int(np.argmax(masked(constraint, logits)))
            if token_id in (END_OF_TURN, EOS):
                break
            constraint.accept(token_id)
    assert forced_tokens > 5


def test_json_does_not_go_on_with_blanks_for_ever(factory: ConstraintFactory, tokenizer: Tokenizer) -> None:
    constraint = factory.create(ResponseFormat.json(SCHEMA))
    constraint.accept(tokenizer.encode("{")[0])
    logits = np.zeros(LOGITS_LENGTH, np.float32)
    [blank] = tokenizer.encode("\n")
    blanks = 0
    while masked(constraint, logits)[blank] == 0:
        constraint.accept(blank)
        blanks += 1
    assert blanks == 16


def test_stop_tokens_come_only_at_the_end(factory: ConstraintFactory, tokenizer: Tokenizer) -> None:
    """<end_of_turn> is text to SentencePiece, and a JSON string could hold it; it would cut the reply short."""
    constraint = factory.create(ResponseFormat.regex("a.*z"))
    zeros = np.zeros(LOGITS_LENGTH, np.float32)
    for token_id in tokenizer.encode("a"):
        assert masked(constraint, zeros)[END_OF_TURN] == -np.inf
        assert not constraint.allows(END_OF_TURN)
        constraint.accept(token_id)
    assert masked(constraint, zeros)[END_OF_TURN] == -np.inf
    assert not constraint.allows(END_OF_TURN)
    for token_id in tokenizer.encode("z"):
        constraint.accept(token_id)
    assert masked(constraint, zeros)[END_OF_TURN] == 0
    assert constraint.allows(END_OF_TURN)


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        (ResponseFormat.regex("(yes"), "the regular expression cannot constrain a reply: unclosed group; "),
        (ResponseFormat.regex("(?=a)b"), "the regular expression cannot constrain a reply: look-around, "),
        (ResponseFormat.json({"type": "word"}), "the JSON schema cannot constrain a reply: Invalid type: word; "),
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


TEXT = {"type": "string"}
INTEGER = {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "string", "format": "password"}, ['"x"'], ["1"]),
        ({"type": "string", "format": "binary", "maxLength": 2}, ['"xy"'], ['"xyz"']),
        ({"properties": {"format": {"const": "path"}}, "required": ["format"]}, ['{"format": "path"}'], ["{}"]),
        ({"type": "string", "format": "ipv4"}, ['"127.0.0.1"'], ['"localhost"']),  # one that says something
        ({"items": {"anyOf": [{"type": "string", "format": "email-ish"}]}}, ['["x"]'], ["[1]"]),
        ({"type": "string", "format": "regex"}, ['"a+"', '"x"'], ['"*"', '"("']),  # checked when it is complete
        ({"properties": {"to": {"format": "idn-email"}}}, ['{"to": "a@b"}', '{"to": 1}'], ['{"to": "ab"}']),
        ({"type": "array", "items": INTEGER, "uniqueItems": True}, ["[1, 2]", "[]"], ["[1, 1]"]),
        ({"type": "array", "items": INTEGER, "uniqueItems": True, "maxItems": 1}, ["[1]"], ["[1, 1]"]),
        ({"type": "array", "items": INTEGER, "uniqueItems": False}, ["[1, 1]"], ['["x"]']),
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, ['{"a": [1, 2]}'], ['{"a": [[1], [1]]}']),
        (
            {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": INTEGER},
            ['{"a": 1}', '{"b": 2}', "{}"],
            ['{"c": 1}', '{"a": "x"}'],
        ),
        (
            {"type": "object", "propertyNames": {"const": "a"}, "properties": {"a": TEXT, "b": TEXT}},
            ['{"a": "x"}'],
            ['{"b": "x"}', '{"a": 1}'],
        ),
        (
            {"type": "object", "propertyNames": {"pattern": "^[a-z]$"}, "additionalProperties": INTEGER},
            ['{"a": 1}'],
            ['{"A": 1}', '{"a": "x"}'],
        ),
        ({"type": "object", "propertyNames": {"type": "string"}}, ['{"x": 1}'], ["1"]),
        ({"oneOf": [INTEGER, {"type": "number"}]}, ["1.5"], ["1", '"x"']),
        ({"oneOf": [{"type": "integer", "maximum": 5}, {"type": "integer", "minimum": 5}]}, ["4", "6"], ["5"]),
        ("true", ["1", '{"a": []}'], []),
        (True, ["null"], []),
    ],
)
def test_schemas_that_pydantic_writes(
    factory: ConstraintFactory, tokenizer: Tokenizer, schema: Any, valid: list[str], invalid: list[str]
) -> None:
    wanted = ResponseFormat.json(schema)
    given = [t for t in (*valid, *invalid) if can_be_written(factory.create(wanted), tokenizer, END_OF_TURN, t)]
    assert given == valid


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "integer", "not": {"const": 3}}, "4", "3"),
        ({"type": "array", "contains": INTEGER}, '["x", 1]', '["x"]'),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, '{"a": 1, "b": 2}', '{"a": 1}'),
        ({"type": "integer", "if": {"minimum": 5}, "then": {"multipleOf": 2}}, "6", "7"),
    ],
)
def test_words_that_no_grammar_has_by_option(
    factory: ConstraintFactory, tokenizer: Tokenizer, schema: Any, valid: str, invalid: str
) -> None:
    with pytest.raises(ConstraintError) as caught:
        factory.create(ResponseFormat.json(schema))
    assert str(caught.value).startswith("the JSON schema cannot constrain a reply: Unimplemented keys: [")
    assert str(caught.value).endswith(
        "; ResponseFormat.json(schema, lenient=True) checks that when the reply is complete"
    )
    wanted = ResponseFormat.json(schema, lenient=True)
    assert can_be_written(factory.create(wanted), tokenizer, END_OF_TURN, valid)
    assert not can_be_written(factory.create(wanted), tokenizer, END_OF_TURN, invalid)


def test_a_reply_that_breaks_what_is_checked_at_its_end(factory: ConstraintFactory) -> None:
    constraint = factory.create(ResponseFormat.json({"properties": {"a": {"type": "array", "uniqueItems": True}}}))
    constraint.check('{"a": [1, 2]}')
    with pytest.raises(ConstraintError) as caught:
        constraint.check('{"a": [1, 1]}')
    assert str(caught.value) == (
        "the reply breaks the JSON schema: $.a: [1, 1] has non-unique elements (uniqueItems); "
        "ask again, or loosen the schema"
    )


@pytest.mark.parametrize(
    ("schema", "error"),
    [
        ([1], "the JSON schema is not JSON: the JSON object must be str, bytes or bytearray, not list"),
        (None, "the JSON schema is not JSON: the JSON object must be str, bytes or bytearray, not NoneType"),
        ("[1]", "the JSON schema is list, expected an object"),
        ("3", "the JSON schema is int, expected an object"),
    ],
)
def test_what_is_no_schema(schema: Any, error: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        ResponseFormat.json(schema)
    assert str(caught.value).partition(";")[0] == error


@pytest.mark.parametrize("schema", [False, "false"])
def test_a_schema_that_accepts_nothing(factory: ConstraintFactory, schema: Any) -> None:
    with pytest.raises(ConstraintError) as caught:
        factory.create(ResponseFormat.json(schema))
    assert str(caught.value) == (
        "the JSON schema cannot constrain a reply: false accepts nothing; "
        "see llguidance's documentation for what it supports"
    )
