"""A policy file: what it may say, and the one line that each mistake in it gets."""

import re
import tomllib
from pathlib import Path

import pytest

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.serve.guard import rules
from gemma_edge.runtime.serve.guard.classify import load_classifier
from gemma_edge.runtime.serve.guard.limits import LimitError, Limits
from gemma_edge.runtime.serve.guard.pattern import PatternError, phrases
from gemma_edge.runtime.serve.guard.policy import MOST_BYTES, Direction, Policy
from gemma_edge.runtime.serve.guard.rules import Action, PolicyError
from gemma_edge.runtime.serve.guard.sanitise import Sanitising

FULL = """
replacement = "[...]"
accents = false
log_text = true
classifier = "shield"

[limits]
requests = 0
tokens = 5000
window_s = 60

[input]
messages = 10

[[category]]
name = "weapons"
words = ["make a bomb"]
patterns = ['\\bpipe bombs?\\b']
input = "refuse"
output = "mask"

[[category]]
name = "secrets"
words = ["falcon"]
output = "log"
replacement = "*"
"""


def _file(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_policy_is_read_whole(tmp_path: Path) -> None:
    policy = Policy.read(_file(tmp_path, FULL))
    told = {
        direction: [(rule.category, rule.action, rule.replacement) for rule in found]
        for direction, found in policy.rules.items()
    }
    assert told == {
        Direction.INPUT: [("weapons", Action.REFUSE, "[...]")],
        Direction.OUTPUT: [("weapons", Action.MASK, "[...]"), ("secrets", Action.LOG, "*")],
    }
    assert policy.limits == Limits(requests=None, tokens=5000, window_s=60.0)
    assert policy.sanitising == Sanitising(messages=10)
    assert (policy.accents, policy.log_text, policy.classifier) == (False, True, "shield")


def test_the_policy_that_is_shown_is_read(repository: Path) -> None:
    text = (repository / "runtime" / "serve" / "SAFETY.md").read_text()
    blocks = [tomllib.loads(block) for block in re.findall("```toml\n(.*?)```", text, re.DOTALL)]
    limits, content = (Policy.of(block) for block in blocks)
    assert limits.limits == Limits(tokens=200_000)
    assert content.sanitising == Sanitising()
    assert content.accents == Policy().accents
    assert [len(content.rules[direction]) for direction in Direction] == [1, 1]


def test_an_empty_policy_allows_everything() -> None:
    assert Policy.of({}) == Policy(rules={Direction.INPUT: (), Direction.OUTPUT: ()})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = ", "no TOML in UTF-8"),
        ("colour = 1", "colour is not known; take it out or correct it"),
        ("log_text = 1", "log_text is 1, expected true or false; correct it"),
        ("[limits]\nrequests = -1", "[limits]: requests is -1, expected 0 or more; 0 means no limit"),
        ("[limits]\nrequests = true", "requests is True, expected a number, 0 for no limit"),
        ("[limits]\nrate = 1", "[limits]: rate is not known"),
        ("[input]\nroles = [1]", "roles has 1, expected texts; put it in quotes"),
        ("input = 1", "input is 1, expected a table, [input]"),
        ("category = [1]", "category is a list, expected tables, [[category]]; write them so"),
        ("[[category]]", "category 1: no name; give it one"),
        ("[[category]]\nname = 'w'\ninput = 'log'", "category 1 (w): neither words nor patterns"),
        ("[[category]]\nname = 'w'\nwords = ['a']", "(w): neither input nor output; say what happens"),
        (
            "[[category]]\nname = 'w'\nwords = ['a']\ninput = 'drop'",
            '(w): input is "drop", expected one of refuse, mask, log',
        ),
        ("[[category]]\nname = 'w'\nwords = ['\u200b']\ninput = 'log'", "has nothing that can be seen; take it out"),
        ("[[category]]\nname = 'w'\nwords = ['']\ninput = 'log'", "has nothing that can be seen; take it out"),
        (
            f"[[category]]\nname = 'w'\nwords = ['{'a' * 257}']\ninput = 'log'",
            "a word of 257 characters, expected at most 256; shorten it",
        ),
        (
            f"[[category]]\nname = 'w'\npatterns = ['{'a' * 1001}']\ninput = 'log'",
            "a pattern of 1001 characters, expected at most 1000; split it",
        ),
        ("[[category]]\nname = 'w'\npatterns = ['a+']\ninput = 'log'", "(w): pattern 'a+', character 2: \"+\" has no"),
    ],
)
def test_every_mistake_gets_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(PolicyError) as caught:
        Policy.read(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_pattern_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RE2_BYTES", 1 << 16)
    with pytest.raises(PolicyError, match=r"category 1 \(w\): too large for RE2 \(pattern too large"):
        Policy.of({"category": [{"name": "w", "patterns": [r"\w{1,100}"], "input": "log"}]})


def test_a_file_that_is_not_there_or_too_large_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot read \(No such file or directory\); name a policy file"):
        Policy.read(tmp_path / "none.toml")
    with pytest.raises(PolicyError, match=f"more than {MOST_BYTES} bytes; expected a policy"):
        Policy.read(_file(tmp_path, "#" * (MOST_BYTES + 1)))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a*", r'character 2: "*" has no upper bound; write {0,40} or {1,40}'),
        ("a{3,}", "character 3: has no upper bound; write {fewest,most}"),
        ("a{x}", "character 3: expected {count} or {fewest,most}"),
        ("a{300}", "counts 300 to 300, expected an ascending range within 0 to 256"),
        ("a{3,2}", "counts 3 to 2, expected an ascending range"),
        ("(a+)+", 'character 3: "+" has no upper bound'),
        ("a{2}{3}", "a second quantifier; put the first with what it counts into (...)"),
        (" {2}", "counts what cannot repeat"),
        (r"\b?a", "counts what cannot repeat"),
        ("(?=x)", "expected (...) or (?:...); look-around and flags are not read"),
        ("(?i)x", "expected (...) or (?:...)"),
        (r"(a)\1", r"\1 is not read; known are"),
        (r"a\k", r"\k is not read; known are"),
        ("a\\", "\\ is not read; known are"),
        ("^a", '"^" cannot stand here; text has no lines here'),
        ("{a", '"{" cannot stand here; write a backslash before it'),
        ("(a", "a ( without its )"),
        ("a)", "a ) without its ("),
        ("[a", "a [ without its ]"),
        ("[\u200b]", "[...] names only characters that nobody sees"),
        ("[^\u00e9]", "[^...] names a letter with an accent or a ligature"),
        ("[b-a]", "the range b-a runs backwards"),
        (r"\bfoo\bbar", r"\b stands inside, expected at the beginning or end"),
        ("a?", "matches the empty text; leave something that must be there"),
        ("", "matches the empty text"),
        ("(a{200}){2}", "matches up to 400 characters, expected at most 256; lower its counts"),
        ("(" * 33 + "a" + ")" * 33, "more than 32 groups inside each other; take some out"),
    ],
)
def test_a_pattern_that_is_not_read_says_where(pattern: str, message: str) -> None:
    with pytest.raises(PatternError) as caught:
        phrases(pattern)
    assert message in str(caught.value)


def test_a_long_list_of_words_is_ready_in_time_and_finds_its_last() -> None:
    words = [f"word{number}x" for number in range(3000)]
    policy = Policy.of({"category": [{"name": "many", "words": words, "input": "refuse"}]})
    [rule] = policy.rules[Direction.INPUT]
    assert len(rule.expressions) == 15
    assert [span for each in rule.expressions for span in each.spans("\na word2999x.\n")] == [(3, 12)]


def test_limits_are_checked() -> None:
    with pytest.raises(LimitError, match="requests is 0, expected at least 1, or None for no limit"):
        Limits(requests=0)
    with pytest.raises(LimitError, match="window_s is 0, expected more than 0 seconds"):
        Limits(window_s=0)


def test_a_classifier_that_is_not_installed_is_named() -> None:
    with pytest.raises(GemmaEdgeError, match=r'classifier "none-such" is not installed \(found none\)'):
        load_classifier("none-such")
