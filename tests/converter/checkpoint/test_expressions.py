"""Expressions match as `re` matches them, and never take long."""

import random
import re

import pytest

from gemma_edge.converter.checkpoint.expressions import ExpressionError, expression

NAMES = [
    "model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj", "model.vision_tower.blocks.3.attn.q_proj",
    "model.language_model.layers.3.mlp.gate_proj", "lm_head", "", "MODEL.layers.0.q_proj", "aab", "a\nb",
]  # fmt: skip
AS_PEFT_USERS_WRITE = [
    r".*\.(q_proj|v_proj)", r"model\.layers\.(\d+)\..*", r"^(?!.*vision).*(?:q_proj|up_proj)$", r"(?i)MODEL.*Q_PROJ",
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\..*)",
    r"model\.layers\.(?!0)\d+\.mlp\.(gate|up)_proj", r".*(?<!vision)\.q_proj", r"(?<=model).*", r"[^.]+(\.[^.]+){3,5}",
    r"(?s:a.b)|\w+\B_\w+", "", "q_proj", r"layers\.0",
]  # fmt: skip
PIECES = [
    "a", "b", ".", "(a|b)", "(?:a*)", "[ab]", "[^a]", "a?", "b+", "(ab)*", "(a|ab)(c|bcd)", r"\b", "^", "$", "(?=a)",
    "(?!b)", "(?<=a)", "(?<!ab)", "a{2,3}", "(b{0,2})*", ".*?", "|", r"\.", "(?i:A)",
]  # fmt: skip


@pytest.mark.parametrize("source", AS_PEFT_USERS_WRITE)
def test_what_peft_users_write(source: str) -> None:
    for name in NAMES:
        assert expression(source).matches(name) == (re.fullmatch(source, name) is not None), name
        if not source.startswith("(?i)"):
            assert expression(source).ends(name) == (re.fullmatch(rf"(.*\.)?({source})", name) is not None), name


def test_any_expression() -> None:
    rng = random.Random(14)
    for _ in range(4000):
        source = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 6)))
        for _ in range(3):
            text = "".join(rng.choice("abcd.A") for _ in range(rng.randrange(8)))
            assert expression(source).matches(text) == (re.fullmatch(source, text) is not None), (source, text)
            assert expression(source).ends(text) == (re.fullmatch(rf"(.*\.)?({source})", text) is not None), (
                source,
                text,
            )


@pytest.mark.parametrize(
    "source", ["(a+)+$", "(.*.*)*x", r"(\w|_|.)*!", "(((((a?)*)*)*)*)*x", "(a|a)" * 40 + "x", "(a|aa){1,99999}x"]
)
def test_what_goes_back_for_ever_elsewhere(source: str) -> None:
    """`re` would take years for each."""
    assert not expression(source).matches("model.layers.0." + "a" * 80)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("[", "unterminated character set"),
        ("(?P<n>", "missing"),
        (r"(a)\1", "groupref cannot be matched in bounded time"),
        ("(?(1)a|b)", "invalid group reference"),
        ("(?<=a+)b", "looking behind needs a fixed width"),
        ("a" * 5000, "5000 characters, at most 4096"),
        ("(" * 2000 + ")" * 2000, "recursion|too deep"),
    ],
)
def test_what_is_refused(source: str, reason: str) -> None:
    with pytest.raises(ExpressionError, match=reason):
        expression(source).matches("aab")


def test_a_text_that_is_too_long() -> None:
    with pytest.raises(ExpressionError, match="a text of 5000 characters, at most 4096"):
        expression(".*").matches("a" * 5000)
