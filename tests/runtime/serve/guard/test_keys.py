"""Keys: made once, kept as hashes, found by their id, compared whole."""

import hmac
import json
import logging
import stat
from pathlib import Path

import pytest

from gemma_edge.runtime.serve.guard.keys import KeyFile, KeyFileError, new_key, read_keys, sent_key


def test_a_key_is_made_and_found_and_its_secret_is_in_no_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first, second = new_key(path, "phone"), new_key(path, "desk", requests=5, tokens=1000)
    keys = KeyFile(path)
    found = [keys.find(key) for key in (first, second)]
    assert [(key.name, key.requests, key.tokens) for key in found if key] == [
        ("phone", None, None),
        ("desk", 5, 1000),
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    for key in (first, second):
        prefix, identity, secret = key.split("-", 2)
        assert (prefix, len(secret)) == ("ge", 43)
        assert identity in text
        assert secret not in text
    assert len({json.loads(line)["salt"] for line in text.splitlines()}) == 2


def test_only_the_whole_key_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key, other = new_key(path, "phone"), new_key(path, "desk")
    keys = KeyFile(path)
    identity, secret = key.split("-", 2)[1:]
    for wrong in (
        "", "-", "--", "ge-", key[:-1], key + "a", key.upper(), f"xx-{identity}-{secret}", secret, f"ge--{secret}",
        f"ge-{other.split('-')[1]}-{secret}", f"ge-{identity}-", "ge-\u00e9\ud800-x",
    ):  # fmt: skip
        assert keys.find(wrong) is None, wrong


def test_an_unknown_id_is_compared_as_a_wrong_secret_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    key = new_key(path, "phone")
    keys = KeyFile(path)
    compared = []
    real = hmac.compare_digest

    def counted(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    for sent in (key, key + "x", "ge-000000000000-x", "nonsense"):
        keys.find(sent)
    assert compared == [(32, 32)] * 4


def test_a_deleted_line_ends_its_key_and_a_broken_file_lets_nobody_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    key, other = new_key(path, "phone"), new_key(path, "desk")
    keys = KeyFile(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[1])
    assert keys.find(key) is None
    assert keys.find(other) is not None
    path.write_text("{}\n")
    with caplog.at_level(logging.ERROR):
        assert keys.find(other) is None
    [record] = caplog.records
    assert record.getMessage().startswith(f"no key is accepted until this is repaired: {path}, line 1: no key")
    path.write_text(lines[1] + "\n")
    assert keys.find(other) is not None


def test_a_pseudonym_outlives_a_restart_and_is_no_part_of_the_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key = new_key(path, "phone")
    [once], [again] = read_keys(path).values(), read_keys(path).values()
    assert once.pseudonym == again.pseudonym
    assert len(once.pseudonym) == 16
    assert once.pseudonym not in key + path.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "expected a name, a salt of at least 16 bytes and a hash of 32, in hexadecimal"),
        ({"salt": "zz"}, "expected a name, a salt"),
        ({"hash": "00"}, "expected a name, a salt"),
        ({"name": 1}, "name is 1, expected text"),
        ({"requests": 0}, "requests is 0, expected a number of at least 1"),
        ({"tokens": "many"}, "tokens is 'many', expected a number of at least 1"),
        ({"colour": "red"}, "no key as --new-key writes it"),
    ],
)
def test_a_line_that_is_no_key_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "keys"
    new_key(path, "phone")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(KeyFileError) as caught:
        KeyFile(path)
    assert str(caught.value).startswith(f"{path}, line 1: {message}")
    assert str(caught.value).endswith("; delete the line and make a new key")


def test_mistakes_with_a_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(KeyFileError, match=r"cannot read \(No such file or directory\); make it with gemma-edge serve"):
        KeyFile(path)
    new_key(path, "phone")
    with pytest.raises(KeyFileError, match="there is a key phone already; choose another name, or delete its line"):
        new_key(path, "phone")
    with pytest.raises(KeyFileError, match=r"the name of a key is ' ', expected what can be read"):
        new_key(path, " ")
    path.write_text(path.read_text() * 2)
    with pytest.raises(KeyFileError, match=r"line 2: the id [0-9a-f]{12} is there twice; delete one of the lines"):
        read_keys(path)
    path.write_text("\n" * ((1 << 20) + 1))
    with pytest.raises(KeyFileError, match="more than 1048576 bytes, expected a line for each key"):
        read_keys(path)


def test_a_key_comes_in_either_header() -> None:
    assert sent_key({"authorization": "Bearer  ge-1-2 "}) == "ge-1-2"
    assert sent_key({"authorization": "bearer ge-1-2"}) == "ge-1-2"
    assert sent_key({"x-api-key": "ge-1-2"}) == "ge-1-2"
    assert sent_key({"authorization": "Basic abc"}) is None
    assert sent_key({"authorization": "Bearer"}) is None
    assert sent_key({}) is None
