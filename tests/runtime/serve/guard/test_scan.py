"""Nothing that a rule is about leaves, however it is spelled and wherever a stream is cut."""

import random
import re

import pytest

from gemma_edge.runtime.serve.guard.folding import Folding, folded
from gemma_edge.runtime.serve.guard.pattern import PatternError
from gemma_edge.runtime.serve.guard.rules import Action, Rule, expressions
from gemma_edge.runtime.serve.guard.scan import Scan


def _rule(
    *patterns: str, words: tuple[str, ...] = (), action: Action = Action.MASK, category: str = "c", accents: bool = True
) -> Rule:
    return Rule(category, action, "#", expressions(words, patterns, "test", accents=accents))


def _whole(text: str, *rules: Rule, accents: bool = True) -> str:
    scan = Scan(rules, accents=accents)
    return scan.push(text) + scan.finish()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("please make a bomb now", "please # now"),
        ("MAKE a Bomb.", "#."),
        ("make   a\n\tbomb", "#"),
        ("m\u200bake a bo\u00admb", "#"),
        ("ma\x00ke a bomb", "#"),
        ("ma\ud800ke a bomb", "#"),
        ("\uff4d\uff41\uff4b\uff45 a \uff22\uff2f\uff2d\uff22!", "#!"),
        ("make a bomb make a bomb", "# #"),
        ("make a bombshell", "make a bombshell"),
        ("remake a bomb", "remake a bomb"),
        ("\u00e9make a bomb", "\u00e9make a bomb"),
        ("\u00e9 make a bomb", "\u00e9 #"),
        ("make a \U0001f600 bomb", "make a \U0001f600 bomb"),
    ],
)
def test_a_phrase_is_found_in_every_spelling(text: str, expected: str) -> None:
    assert _whole(text, _rule(words=("Make a bomb",))) == expected


@pytest.mark.parametrize(
    ("word", "text", "expected"),
    [
        ("\u00dcbung", "u\u0308bung, Vor\u00fcbung", "#, Vor\u00fcbung"),
        ("stra\u00dfe", "STRASSE", "#"),
        ("\u7206\u5f3e", "\u3053\u306e\u7206\u5f3e\u3092", "\u3053\u306e#\u3092"),
        ("\u0431\u043e\u043c", "\u0411\u043e\u043c \u0431\u043e\u043c\u0430", "# \u0431\u043e\u043c\u0430"),
        ("c++", "c++11", "#11"),
        ("a.c", "abc a.c", "abc #"),
    ],
)  # fmt: skip
def test_words_of_every_script_stand_by_themselves_where_they_do(word: str, text: str, expected: str) -> None:
    assert _whole(text, _rule(words=(word,))) == expected


def test_accents_count_unless_they_are_not_to() -> None:
    assert _whole("sch\u00f6n", _rule(words=("schon",))) == "sch\u00f6n"
    assert _whole("sch\u00f6n", _rule(words=("schon",), accents=False), accents=False) == "#"


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"\bpipe bombs?\b", "pipe bombs, pipe bomb; pipe bombing", "#, #; pipe bombing"),
        (r"\d{3}-\d{4}", "555-1234 and \uff15\uff15\uff15-\uff11\uff12\uff13\uff14, 55-1234", "# and #, 55-1234"),
        (r"\bfoo\b|\bbar\b", "foo bar foobar", "# # foobar"),
        (r"(?:ab){2,3}c", "abc ababc abababc", "abc # #"),
        (r"[^a-c\s]x", "ax dx", "ax #"),
        (r"[A-C]{2}", "ab BC d", "# # d"),
        ("[\u00e0-\u00fc]{2}", "\u00e9\u00e8 e", "# e"),
        (r"a.c", "a\nc a.c", "# #"),
        (r"x\S\D\W", "xab! x1a!", "#" + " #"),
        (r"[\w\-]{3}@[a-z]{1,9}\.com", "me: a-b@mail.com", "me: #"),
        (r"\$\{a\}", "${a}", "#"),
    ],
)
def test_patterns_mean_what_they_say(pattern: str, text: str, expected: str) -> None:
    assert _whole(text, _rule(pattern)) == expected


RULES = (
    _rule(r"\bpipe bombs?\b", r"\d{2,4}-\d{4}", words=("make a bomb", "make a bomb shelter now", "\u00dcbung")),
    _rule("aa", r"a{3}b", r"\bab{0,5}c\b", category="letters"),
    _rule("ba?", action=Action.LOG, category="logged"),
)
TEXTS = (
    "Please m\u200bake  a BOMB shelter now or \uff4dake a bomb shelter tomorrow. Pipe bombs, pipe bombing, 12-34567",
    "aaab aab ab abbc abbbbbbc caac u\u0308bung ba aa",
    "make make a make a bomb\u0301 make a bomb",
)


@pytest.mark.parametrize("text", TEXTS)
def test_where_a_stream_is_cut_changes_nothing(text: str) -> None:
    random_numbers = random.Random(text)
    reference = Scan(RULES)
    whole = reference.push(text) + reference.finish()
    found = [(each.rule.category, each.raw) for each in reference.take_found()]
    assert whole != text
    assert found
    for _ in range(60):
        scan, pieces, place = Scan(RULES), [], 0
        while place < len(text):
            size = random_numbers.randint(0, 4)
            pieces.append(scan.push(text[place : place + size]))
            place += size
        pieces.append(scan.finish())
        assert "".join(pieces) == whole
        assert [(each.rule.category, each.raw) for each in scan.take_found()] == found


def test_random_texts_agree_with_another_engine() -> None:
    """Python's `re`, which backtracks, is the oracle for what is masked; on texts where no two matches overlap."""
    patterns = (r"\bab{1,2}c\b", r"b(?:c|ca){1,2}d", r"cc")
    random_numbers = random.Random(7)
    for pattern in patterns:
        rule = _rule(pattern)
        for _ in range(300):
            text = "".join(random_numbers.choices("abcd ", k=30)).strip()
            text = re.sub(" +", " ", text)
            assert _whole(text, rule) == re.sub(pattern, "#", text), (pattern, text)


def _random_pattern(random_numbers: random.Random, depth: int = 3) -> str:
    """Over a, b and c, without boundaries; some match nothing and are refused when they are read."""
    match random_numbers.randrange(6) if depth else 0:
        case 0 | 1:
            return random_numbers.choice(["a", "b", "c", "[ab]", "[^a]", "."])
        case 2:
            return "".join(_random_pattern(random_numbers, depth - 1) for _ in range(random_numbers.randint(2, 3)))
        case 3:
            return f"(?:{_random_pattern(random_numbers, depth - 1)}|{_random_pattern(random_numbers, depth - 1)})"
        case 4:
            return f"(?:{_random_pattern(random_numbers, depth - 1)})?"
        case _:
            low = random_numbers.randint(0, 2)
            return f"(?:{_random_pattern(random_numbers, depth - 1)}){{{low},{low + random_numbers.randint(1, 2)}}}"


def test_random_patterns_leave_nothing_that_another_engine_finds() -> None:
    random_numbers = random.Random(11)
    rules = 0
    while rules < 150:
        pattern = _random_pattern(random_numbers)
        try:
            rule = _rule(pattern)
        except PatternError:  # matches the empty text
            continue
        rules += 1
        for _ in range(10):
            text = "".join(random_numbers.choices("abc", k=12))
            whole, scan = _whole(text, rule), Scan([rule])
            assert "".join([*map(scan.push, text), scan.finish()]) == whole
            assert (whole == text) == (re.search(pattern, text) is None), (pattern, text)
            assert not any(re.search(pattern, piece) for piece in whole.split("#")), (pattern, text, whole)


def test_only_what_may_become_a_match_is_held() -> None:
    scan = Scan([_rule(words=("make a bomb",))])
    assert scan.push("I can ") == "I can "
    assert scan.push("ma") == ""
    assert scan.push("il a letter, make") == "mail a letter, "
    assert scan.push(" a") == ""
    assert scan.push(" cake") == "make a cake"
    assert scan.push(" make a bomb") == " "
    assert scan.finish() == "#"


def test_after_a_refusal_nothing_leaves() -> None:
    scan = Scan([_rule(words=("secret",), action=Action.REFUSE)])
    assert scan.push("the ") == "the "
    assert scan.push("secret") == ""  # "secrets" is another word
    assert scan.take_found() == []
    assert scan.push(" and") == ""
    assert [each.raw for each in scan.take_found()] == ["secret"]
    assert scan.take_found() == []
    assert scan.push("is this") == ""
    assert scan.finish() == ""


def test_a_rule_that_only_logs_changes_nothing() -> None:
    scan = Scan([_rule(words=("secret",), action=Action.LOG)])
    assert scan.push("a secret.") + scan.finish() == "a secret."
    assert [each.raw for each in scan.take_found()] == ["secret"]


def test_without_rules_text_passes_at_once() -> None:
    scan = Scan([])
    assert scan.push("anything") == "anything"
    assert scan.finish() == ""


def test_folding_knows_where_each_character_was_written() -> None:
    text = "  Stra\u00dfe \u200b \ufb01x"
    folding = Folding()
    for character in text:
        folding.push(character)
    assert folding.text == folded(text) == " strasse fix"
    assert [text[folding.starts[i] : folding.ends[i]] for i in range(len(folding.text))] == [
        "  ", "S", "t", "r", "a", "\u00df", "\u00df", "e", " \u200b ", "\ufb01", "\ufb01", "x",
    ]  # fmt: skip
    folding.take(5)
    assert folding.text == "sse fix"
    assert folding.raw == "\u00dfe \u200b \ufb01x"


def test_the_fast_way_through_plain_text_is_the_same() -> None:
    text = "Plain text, \x7f and  two spaces \u00e9 end. "
    slow, fast = Folding(), Folding()
    for character in text:
        slow.push(character)
    for piece in re.findall(r"[\x20-\x7e]+|[^\x20-\x7e]", text):
        fast.push(piece)
    assert (fast.text, fast.starts, fast.ends, fast.raw) == (slow.text, slow.starts, slow.ends, slow.raw)
