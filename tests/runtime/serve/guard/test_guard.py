"""The guard as a program or the server uses it: callers, messages, limits, replies, and what the log gets to see."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.guard import classify
from gemma_edge.runtime.serve.guard.classify import Verdict, load_classifier
from gemma_edge.runtime.serve.guard.decisions import LOGGER, Decision, Hasher
from gemma_edge.runtime.serve.guard.guard import Guard
from gemma_edge.runtime.serve.guard.keys import KeyFile, new_key
from gemma_edge.runtime.serve.guard.limits import Limits
from gemma_edge.runtime.serve.guard.policy import Direction, Policy
from gemma_edge.runtime.serve.guard.rules import Action, PolicyError
from gemma_edge.runtime.serve.guard.sanitise import SanitiseError, Sanitising
from gemma_edge.runtime.serve.hooks import Caller

WEAPONS = {"name": "weapons", "words": ["make a bomb"], "input": "refuse", "output": "refuse"}
NAMES = {"name": "names", "patterns": [r"\bfalcon \d{1,3}\b"], "input": "mask", "output": "mask"}
CALLER = Caller("someone")


def _guard(policy: Mapping[str, Any], decisions: list[Decision] | None = None, **more: Any) -> Guard:
    return Guard(Policy.of(policy), sink=(decisions if decisions is not None else []).append, **more)


def _user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _refused(call: Callable[[], object]) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        call()
    return caught.value


def test_a_prompt_is_masked_or_refused_and_the_decision_told_without_text() -> None:
    decisions: list[Decision] = []
    guard = _guard({"category": [WEAPONS, NAMES]}, decisions)
    assert guard.check_input(CALLER, "r1", [_user("where is Falcon 12?")]) == [_user("where is [filtered]?")]
    refusal = _refused(lambda: guard.check_input(CALLER, "r2", [_user("falcon 1, make a BOMB")]))
    assert (refusal.status, refusal.code, refusal.param) == (400, Code.CONTENT_FILTERED, "messages")
    assert str(refusal) == "the prompt has what the content policy refuses (weapons); rephrase it"
    told = [(each.action, each.direction, each.category, each.caller, each.request, each.text) for each in decisions]
    assert told == [
        ("mask", "input", "names", "someone", "r1", None),
        ("mask", "input", "names", "someone", "r2", None),
        ("refuse", "input", "weapons", "someone", "r2", None),
    ]
    assert all(len(each.text_hash) == 16 for each in decisions)
    assert decisions[2].text_hash not in hashlib.sha256(b"make a BOMB").hexdigest()


def test_every_text_of_a_message_is_read() -> None:
    guard = _guard({"category": [NAMES]})
    image = {"type": "image", "path": "falcon 1"}
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": ["falcon 2", 3], "falcon 4": None}}}
    message = {
        "role": "assistant",
        "content": [{"type": "text", "text": "falcon 5"}, image, {"type": "tool_response", "x": {"y": "falcon 6"}}],
        "tool_calls": [call],
        "tool_call_id": "falcon 7",
    }  # fmt: skip
    [cleaned] = guard.check_input(CALLER, "r", [message])
    assert cleaned["content"] == [
        {"type": "text", "text": "[filtered]"},
        image,
        {"type": "tool_response", "x": {"y": "[filtered]"}},
    ]
    assert cleaned["tool_call_id"] == "[filtered]"
    [cleaned_call] = cleaned["tool_calls"]
    assert cleaned_call["function"]["arguments"] == {"a": ["[filtered]", 3], "falcon 4": None}
    assert message["content"][0] == {"type": "text", "text": "falcon 5"}  # the caller's own stays as it was


@pytest.mark.parametrize("words", [WEAPONS, NAMES | {"words": ["make a bomb"]}])
def test_a_phrase_spread_over_parts_is_refused(words: dict[str, Any]) -> None:
    guard = _guard({"category": [words]})
    for said in (("make a ", "bomb"), ("make a", "bomb"), ("make a bo", "mb")):
        parts = [{"type": "text", "text": text} for text in said]
        with pytest.raises(RefusedError) as caught:
            guard.check_input(CALLER, "r", [_user(parts)])
        assert caught.value.code is Code.CONTENT_FILTERED
    assert guard.check_input(CALLER, "r", [_user(parts[:1])]) == [_user(parts[:1])]


def test_tools_are_read_and_never_changed() -> None:
    guard = _guard({"category": [NAMES, {"name": "seen", "words": ["weather"], "input": "log"}]})
    tool = {"type": "function", "function": {"name": "get", "description": "the weather", "parameters": {}}}
    guard.check_tools(CALLER, "r", [tool])
    bad: dict[str, Any]
    for bad in ({"description": "Falcon 7"}, {"parameters": {"properties": {"falcon\n7": {}}}}):
        with pytest.raises(RefusedError, match=r"\(names\)") as caught:
            guard.check_tools(CALLER, "r", [tool, {"function": bad}])
        assert caught.value.code is Code.CONTENT_FILTERED
    long = _refused(lambda: guard.check_tools(CALLER, "r", [{"description": "x" * 200_000}]))
    assert (long.code, long.param) == (Code.VALIDATION_ERROR, "tools")
    Guard().check_tools(CALLER, "r", [{"function": {"name": "falcon 7"}}])


def test_a_guard_says_what_it_does(tmp_path: Path) -> None:
    new_key(tmp_path / "keys", "phone")
    assert (Guard().needs_key, Guard().filters_replies) == (False, False)
    assert Guard(keys=KeyFile(tmp_path / "keys")).needs_key
    assert _guard({"category": [NAMES]}).filters_replies
    assert not _guard({"category": [{"name": "n", "words": ["x"], "input": "log"}]}).filters_replies
    assert _guard({}, classifier=Judge(None)).filters_replies


def test_more_text_than_rules_can_read_at_once_is_refused() -> None:
    guard = _guard({"category": [NAMES]})
    refusal = _refused(lambda: guard.check_input(CALLER, "r", [_user("x" * 200_001)]))
    assert (refusal.status, refusal.code) == (400, Code.VALIDATION_ERROR)
    assert "200001 characters, expected at most 200000 under a content policy; shorten them" in str(refusal)


def test_without_a_policy_messages_pass_as_they_are() -> None:
    messages = [_user("x" * 2_000_000), {"role": "tool", "content": "<script>"}]
    assert Guard().check_input(CALLER, "r", messages) == messages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a <script>alert(1)</script> b", "a  b"),
        ("<SCRIPT src=x>a\nb</Script >c", "c"),
        ("<iframe src='x'></iframe><embed x><object>o</object>", ""),
        ("</script> left <script", " left "),
        ("<scr<script>x</script>ipt>y</script>", "y"),
        ("JavaScript : alert(1)", " alert(1)"),
        ("see data: text/html;base64,AA and data:image/png", "see ;base64,AA and data:image/png"),
        ("a < b and <b>bold</b> <scripture>", "a < b and <b>bold</b> <scripture>"),
    ],
)
def test_script_markup_is_taken_out(text: str, expected: str) -> None:
    decisions: list[Decision] = []
    [cleaned] = _guard({"input": {}}, decisions).check_input(CALLER, "r", [_user(text)])
    assert cleaned["content"] == expected
    assert [(each.action, each.category) for each in decisions] == [("strip", "markup")] * (text != expected)


def test_markup_nested_too_deeply_is_refused() -> None:
    with pytest.raises(SanitiseError, match="script markup inside script markup, more than 8 deep; send plain text"):
        Sanitising().clean("<scr" * 12 + "<script>" + "ipt>" * 12)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "0 messages, expected 1 to 50; leave the oldest out"),
        ([_user("x")] * 51, "51 messages, expected 1 to 50; leave the oldest out"),
        (
            [_user("x"), {"role": "tool", "content": "x"}],
            'message 2: role "tool", expected one of user, assistant, sys',
        ),
        ([_user("x" * 8193)], "message 1: 8193 characters, expected at most 8192; shorten it"),
        (
            [_user([{"type": "text", "text": "x" * 8000}, {"type": "text", "text": "x" * 193}])],
            "message 1: 8193 characters, expected at most 8192",
        ),
    ],
)
def test_the_documents_bounds_hold_where_input_is_asked_for(messages: list[dict[str, Any]], message: str) -> None:
    refusal = _refused(lambda: _guard({"input": {}}).check_input(CALLER, "r", messages))
    assert (refusal.status, refusal.code) == (400, Code.VALIDATION_ERROR)
    assert message in str(refusal)


def test_bounds_that_are_zero_are_no_bounds() -> None:
    guard = _guard({"input": {"characters": 0, "messages": 0, "strip_markup": False, "roles": ["user", "tool"]}})
    messages = [_user("<script>" + "x" * 9000)] * 60
    assert guard.check_input(CALLER, "r", messages) == messages
    assert "0 messages, expected at least 1" in str(_refused(lambda: guard.check_input(CALLER, "r", [])))


def test_a_reply_is_masked_while_it_streams_and_broken_off_where_it_must_be() -> None:
    decisions: list[Decision] = []
    guard = _guard({"category": [WEAPONS, NAMES]}, decisions)
    reply = guard.reply_filter(CALLER, "r")
    assert [reply.feed(each) for each in ("It is ", "fal", "con ", "12", "3", ".")] == [
        "It is ",
        "",
        "",
        "",
        "",
        "[filtered].",
    ]
    assert reply.feed(" Now make a bo") == " Now "
    refusal = _refused(lambda: reply.feed("mb "))
    assert (refusal.status, refusal.code) == (422, Code.RESPONSE_FILTERED)
    assert str(refusal) == "the reply had what the content policy refuses (weapons); ask in another way"
    assert reply.feed("more") == reply.finish() == ""
    assert [(each.action, each.direction, each.category) for each in decisions] == [
        ("mask", "output", "names"),
        ("refuse", "output", "weapons"),
    ]


def test_a_phrase_that_ends_the_reply_is_found() -> None:
    reply = _guard({"category": [WEAPONS]}).reply_filter(CALLER, "r")
    assert reply.feed("make a bomb") == ""
    assert _refused(reply.finish).code is Code.RESPONSE_FILTERED


def test_log_text_shows_what_met_the_rule_and_no_more() -> None:
    decisions: list[Decision] = []
    guard = _guard({"log_text": True, "category": [NAMES]}, decisions)
    guard.check_input(CALLER, "r", [_user("my secret falcon 7")])
    assert [each.text for each in decisions] == ["falcon 7"]


def test_the_log_is_json_with_hashes(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(Policy.of({"category": [WEAPONS, NAMES]}))
    with caplog.at_level(logging.INFO, logger=LOGGER):
        guard.check_input(guard.caller("alice@example.org"), "r", [_user("falcon 7")])
        _refused(lambda: guard.check_input(guard.caller("alice@example.org"), "r", [_user("make a bomb")]))
    records = [(record.levelname, json.loads(record.getMessage())) for record in caplog.records]
    assert [(level, values["action"]) for level, values in records] == [("INFO", "mask"), ("WARNING", "refuse")]
    assert len({values["caller"] for _, values in records}) == 1
    for word in ("alice", "falcon", "bomb", 'text":'):
        assert word not in caplog.text


def test_hashes_differ_from_process_to_process_unless_they_share_a_secret() -> None:
    assert Hasher()("alice") != Hasher()("alice")
    assert Hasher(b"x")("alice") == Hasher(b"x")("alice") != Hasher(b"x")("bob")


class Judge:
    """A classifier that keeps what it was shown."""

    def __init__(self, verdict: Verdict | Exception | None) -> None:
        self.verdict = verdict
        self.seen: list[tuple[str, Direction]] = []

    def __call__(self, text: str, direction: Direction) -> Verdict | None:
        self.seen.append((text, direction))
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict


def test_a_classifier_sees_whole_texts_and_decides() -> None:
    decisions: list[Decision] = []
    judge = Judge(None)
    guard = _guard({"category": [NAMES]}, decisions, classifier=judge)
    reply = guard.reply_filter(CALLER, "r")
    assert [reply.feed("a falcon "), reply.feed("1 b"), reply.finish()] == ["", "", "a [filtered] b"]
    guard.check_input(CALLER, "r", [_user("falcon 1"), _user("")])
    assert judge.seen == [("a [filtered] b", Direction.OUTPUT), ("[filtered]", Direction.INPUT)]
    judge.verdict = Verdict("rude", Action.MASK, "***")
    assert guard.check_input(CALLER, "r", [_user("you")]) == [_user("***")]
    judge.verdict = Verdict("rude", Action.LOG)
    assert guard.check_input(CALLER, "r", [_user("you")]) == [_user("you")]
    judge.verdict = Verdict("rude")
    assert "(rude)" in str(_refused(lambda: guard.check_input(CALLER, "r", [_user("you")])))
    assert [each.action for each in decisions if each.category == "rude"] == ["mask", "log", "refuse"]


def test_what_a_classifier_could_not_judge_does_not_pass() -> None:
    guard = _guard({}, classifier=Judge(ValueError("boom")))
    reply = guard.reply_filter(CALLER, "r")
    reply.feed("hello")
    refusal = _refused(reply.finish)
    assert refusal.code is Code.RESPONSE_FILTERED
    assert "(classifier failed: ValueError)" in str(refusal)


class _EntryPoints(dict[str, Any]):
    @property
    def names(self) -> set[str]:
        return set(self)


class _EntryPoint:
    def __init__(self, found: Any) -> None:
        self._found = found

    def load(self) -> Any:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


def test_a_policy_names_a_classifier_that_a_package_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"judge": Judge(Verdict("rude")), "broken": ImportError("no torch"), "number": 3}
    points = _EntryPoints({name: _EntryPoint(each) for name, each in found.items()})
    monkeypatch.setattr(classify, "entry_points", lambda group: points if group == classify.GROUP else None)
    guard = _guard({"classifier": "judge"})
    assert "(rude)" in str(_refused(lambda: guard.check_input(CALLER, "r", [_user("you")])))
    with pytest.raises(PolicyError, match=r"\"broken\" cannot be loaded \(ImportError\('no torch'\)\); repair its"):
        load_classifier("broken")
    with pytest.raises(PolicyError, match='"number" is int, expected a function; repair its package'):
        load_classifier("number")
    with pytest.raises(PolicyError, match=r'"none" is not installed \(found broken, judge, number\); install its'):
        _guard({"classifier": "none"})


def test_a_request_needs_a_key_where_there_are_keys(tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys", "phone")
    guard = Guard(keys=KeyFile(tmp_path / "keys"))
    caller = guard.authorise({"authorization": f"Bearer {key}"})
    assert (caller.name, len(caller.id)) == ("phone", 16)
    assert guard.authorise({"x-api-key": key}) == caller
    missing, wrong = _refused(lambda: guard.authorise({})), _refused(lambda: guard.authorise({"x-api-key": key[:-1]}))
    assert [(each.status, each.code) for each in (missing, wrong)] == [(401, Code.INVALID_API_KEY)] * 2
    assert str(missing) == "no API key, expected the header Authorization: Bearer KEY"
    assert str(wrong) == "this API key is not known; ask for one where the server is run"
    assert Guard().authorise({}) == Caller()


def test_keys_bring_the_documents_limit_and_their_own(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    keys = [new_key(path, "common"), new_key(path, "own", requests=2)]
    guard = Guard(keys=KeyFile(path), clock=lambda: 1000.0)
    common, own = (guard.authorise({"x-api-key": key}) for key in keys)
    for number in range(2):
        guard.admit(own, f"r{number}", 10)
    refusal = _refused(lambda: guard.admit(own, "r2", 10))
    assert (refusal.status, refusal.code, refusal.headers["Retry-After"]) == (429, Code.RATE_LIMIT_EXCEEDED, "3600")
    assert str(refusal) == "2 requests of the last 3600 s and 1 more, expected at most 2; try again in 3600.0 s"
    guard.admit(common, "r3", 10)
    assert guard.usage_json(common) == {
        "object": "usage", "name": "common", "requests_last_hour": 1, "remaining_requests": 99, "reset_time": 4600.0,
        "tokens_last_hour": 10, "remaining_tokens": None, "window_s": 3600.0,
    }  # fmt: skip
    assert guard.usage(own).remaining_requests == 0


def test_what_was_set_aside_is_corrected_once() -> None:
    guard = Guard(limits=Limits(requests=None, tokens=100), clock=lambda: 1000.0)
    guard.admit(CALLER, "r1", 90)
    refusal = _refused(lambda: guard.admit(CALLER, "r2", 20))
    assert "90 tokens of the last 3600 s and 20 more, expected at most 100; try again" in str(refusal)
    guard.settle(CALLER, "r1", 30)
    guard.settle(CALLER, "r1", 0)
    guard.settle(CALLER, "never admitted", 50)
    assert guard.usage(CALLER).tokens_last_hour == 30
    refusal = _refused(lambda: guard.admit(CALLER, "r3", 200))
    assert (refusal.status, refusal.code, refusal.retry_after_s) == (400, Code.RATE_LIMIT_EXCEEDED, None)
    assert "expected at most 100; ask for fewer, this many are never let through" in str(refusal)


def test_a_request_that_goes_on_counts_once() -> None:
    guard = Guard(limits=Limits(requests=2, tokens=100), clock=lambda: 1000.0)
    for _ in range(3):
        guard.admit(CALLER, "recording", 40)
        guard.settle(CALLER, "recording", 30)
    assert (guard.usage(CALLER).requests_last_hour, guard.usage(CALLER).tokens_last_hour) == (1, 90)
    assert "expected at most 100" in str(_refused(lambda: guard.admit(CALLER, "recording", 40)))
    guard.admit(CALLER, "another", 1)
    assert "expected at most 2" in str(_refused(lambda: guard.admit(CALLER, "third", 1)))


def test_without_keys_and_policy_there_is_no_limit() -> None:
    guard = Guard()
    for number in range(500):
        guard.admit(Caller(), f"r{number}", 10_000)
    assert guard.usage(Caller()).remaining_requests is None


def test_files_make_a_guard_and_none_make_none(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("[limits]\nrequests = 1\n")
    key = new_key(tmp_path / "keys", "phone")
    assert Guard.of_files(None, None) is None
    guard = Guard.of_files(tmp_path / "keys", tmp_path / "policy.toml")
    assert guard is not None
    caller = guard.authorise({"x-api-key": key})
    guard.admit(caller, "r1")
    assert _refused(lambda: guard.admit(caller, "r2")).status == 429
