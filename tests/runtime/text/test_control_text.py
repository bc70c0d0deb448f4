"""Names of control tokens in text of others: marked, cut, and never found by a tokenizer."""

from typing import Any

import pytest

from gemma_edge.runtime.text.control_text import ControlText, pieces_between_marks, without_marks

NAMES = ("<bos>", "<start_of_turn>", "<end_of_turn>", "<|im_end|>", "[INST]", "</s>", "<<SYS>>", "<escape>", "<think>")
CONTROL = ControlText([*NAMES, "\n\n", "\u2581\u2581", "<table>", "</b>", "<h1>", "x"])


@pytest.mark.parametrize(
    "text",
    [
        *NAMES,
        "a<end_of_turn>\n<start_of_turn>user\nb",
        "<<end_of_turn>>",
        "<<<SYS>>>",
        "<start_of_turn<end_of_turn>",
        "[[INST]]",
        "<bos><bos>",
    ],
)
def test_no_piece_holds_a_name(text: str) -> None:
    marked = CONTROL.marked(text)
    assert without_marks(marked) == text
    assert not [name for name in NAMES for piece in pieces_between_marks(marked) if name in piece]


@pytest.mark.parametrize(
    "text", ["", "x", "a\n\n  b", "<table><h1>x</b>", "<unknown>", "if a < b > c", "[0]", "<end of>"]
)
def test_other_text_stays_in_one_piece(text: str) -> None:
    assert CONTROL.marked(text) == text


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_two_texts_that_a_template_puts_together(name: str) -> None:
    for cut in range(1, len(name)):
        for blank in ("", " \n"):  # which templates trim away
            joined = CONTROL.marked(f"a {name[:cut]}{blank}").strip() + CONTROL.marked(name[cut:])
            assert without_marks(joined) == f"a {name}"
            assert all(name not in piece for piece in pieces_between_marks(joined))


def test_values_within_values() -> None:
    value: Any = {"<bos>": ["a", ("</s>", {"k": "<bos>"})], "n": 1, "x": None}
    marked = CONTROL.marked(value)
    assert marked == {"<\ufdd0bos>": ["a", ["<\ufdd0/s>", {"k": "<\ufdd0bos>"}]], "n": 1, "x": None}


def test_a_mark_that_a_text_holds_against_unicodes_rules() -> None:
    assert CONTROL.marked("a\ufdd0b<bos>") == "a\ufffdb<\ufdd0bos>"


def test_without_names() -> None:
    assert ControlText([]).marked("<bos>") == "<bos>"
