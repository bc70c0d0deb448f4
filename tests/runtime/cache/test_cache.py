"""The cache folder: what is listed is what executors left, what goes is what was chosen, and nothing else."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.runtime.cache.entries import CacheError, Entry, Kind, State, entries
from gemma_edge.runtime.cache.prune import Rule, remove
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.litert import section_hash

DIGIT = "0123456789abcdef"
DAY_S = 86_400


def weights_name(digit: str) -> str:
    return f"{digit * 64}.2.3.0.x86_64-{digit * 8}.xnnpack"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def filled(cache: Path) -> Path:
    """Weights a to e of 4 to 20 KiB, last used 1 to 5 days ago."""
    for index, digit in enumerate("abcde", 1):
        path = cache / weights_name(digit)
        path.write_bytes(os.urandom(4096 * index))
        used_at = time.time() - index * DAY_S
        os.utime(path, (used_at, used_at))
    return cache


@pytest.fixture
def bundle(tiny_bundle: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be changed. Its digests are noted at once; normally only of files that are two seconds old."""
    monkeypatch.setattr(section_hash, "_RACY_NS", -1)
    return Path(shutil.copy(tiny_bundle("gemma3n", "int4"), tmp_path / "tiny.litertlm"))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def left(folder: Path) -> str:
    """The digits of the weights that are there."""
    return "".join(sorted(path.name[0] for path in folder.glob("*.xnnpack")))


def test_what_an_engine_leaves_is_listed_with_its_bundle(bundle: Path, cache: Path) -> None:
    with Engine(str(bundle), cache_dir=str(cache)):
        pass
    found = entries(cache)
    [weights] = [entry for entry in found if entry.kind is Kind.WEIGHTS]
    assert (weights.bundle, weights.state) == (bundle, State.THERE)
    assert weights == found[0]
    assert 0 < weights.nbytes <= (cache / weights.name).stat().st_size + 4096
    assert time.time() - weights.used_at < 3600
    assert {entry.bundle for entry in found} == {bundle}
    assert sum(entry.kind is Kind.DIGEST for entry in found) >= 2
    listed = json.loads(run("cache", "list", "--cache-dir", cache, "--json").stdout)
    assert listed["entries"][0]["bundle"] == str(bundle)
    assert {(entry["kind"], entry["state"]) for entry in listed["entries"]} == {
        ("packed weights", "there"),
        ("digest", "there"),
    }


@pytest.mark.parametrize("what", ["gone", "changed"])
def test_what_was_made_from_a_bundle_that_is_no_more_goes(bundle: Path, cache: Path, what: str) -> None:
    with Engine(str(bundle), cache_dir=str(cache)):
        pass
    assert "removed 0 entries" in run("cache", "prune", "--gone", "--cache-dir", cache).stdout
    if what == "gone":
        bundle.unlink()
    else:
        os.utime(bundle, (0, 0))
    listed = run("cache", "list", "--cache-dir", cache).stdout
    assert f"{bundle} ({what})" in listed
    count = len(entries(cache))
    before = sorted(cache.iterdir())
    would = run("cache", "prune", "--gone", "--dry-run", "--cache-dir", cache).stdout
    assert f"would remove {count} entries" in would
    assert sorted(cache.iterdir()) == before
    assert f"removed {count} entries" in run("cache", "prune", "--gone", "--cache-dir", cache).stdout
    assert entries(cache) == []


def test_weights_that_another_copy_needs_stay(bundle: Path, cache: Path) -> None:
    copy = Path(shutil.copy(bundle, bundle.with_name("copy.litertlm")))
    for path in (bundle, copy):
        with Engine(str(path), cache_dir=str(cache)):
            pass
    bundle.unlink()
    run("cache", "prune", "--gone", "--cache-dir", cache)
    [weights] = cache.glob("*.xnnpack")
    assert [entry.bundle for entry in entries(cache) if entry.name == weights.name] == [copy]


def test_an_engine_goes_on_while_its_weights_are_removed_and_the_next_packs_again(bundle: Path, cache: Path) -> None:
    with Engine(str(bundle), cache_dir=str(cache)) as engine:
        engine.health()
        run("cache", "prune", "--max-bytes", "0B", "--cache-dir", cache)
        assert not list(cache.glob("*.xnnpack"))
        engine.health()
    with Engine(str(bundle), cache_dir=str(cache)) as engine:
        engine.health()
    assert list(cache.glob("*.xnnpack"))


def test_a_packed_graph_is_listed_and_goes_with_its_directory(tiny_gemma3: Path, cache: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    convert("custom-int4", tiny_gemma3, directory, format="onnx", context=64)
    with Engine(str(directory), cache_dir=str(cache)):
        pass

    def graph() -> Entry:
        [found] = [entry for entry in entries(cache) if entry.kind is Kind.GRAPH]
        return found

    assert (graph().bundle, graph().state) == (directory, State.THERE)
    assert graph().nbytes > 100_000
    os.utime(next((directory / "onnx").glob("*.onnx")), (0, 0))
    assert graph().state is State.CHANGED
    shutil.rmtree(directory)
    assert graph().state is State.GONE
    assert run("cache", "prune", "--gone", "--cache-dir", cache).exit_code == 0
    assert entries(cache) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--older-than", "60h"], "ab"),  # used 24 and 48 hours ago
        (["--older-than", "52w"], "abcde"),
        (["--max-bytes", "12KiB"], "ab"),  # 4 and 8 KiB
        (["--max-bytes", "11KiB"], "a"),
        (["--max-bytes", "1GB"], "abcde"),
        (["--older-than", "4.5d", "--max-bytes", "24KiB"], "abc"),
        (["--gone"], "abcde"),  # nobody knows their bundles
    ],
)
def test_age_and_size_choose(filled: Path, options: list[str], expected: str) -> None:
    dry = run("cache", "prune", *options, "--dry-run", "--cache-dir", filled)
    assert left(filled) == "abcde"
    done = run("cache", "prune", *options, "--cache-dir", filled)
    assert left(filled) == expected
    assert done.stdout.replace("removed", "would remove") == dry.stdout
    assert f"{5 - len(expected)} entr" in done.stdout


def test_a_rule_that_says_nothing_takes_only_what_was_left_unfinished(filled: Path) -> None:
    partial = filled / weights_name("f").replace(".xnnpack", ".partial")
    partial.write_bytes(b"x")
    assert [entry.name for entry in Rule().chosen(entries(filled))] == [partial.name]
    run("cache", "prune", "--gone", "--cache-dir", filled)
    assert not partial.exists()
    assert left(filled) == "abcde"


def test_saved_chats_are_listed_with_their_bundle(bundle: Path, cache: Path, tmp_path: Path) -> None:
    with Engine(str(bundle), cache_dir=str(cache)) as engine:
        engine.keep_chats(cache / "chats", 1 << 30)
        with engine.create_conversation() as conversation:
            conversation.send_message("And God said unto " * 10, max_output_tokens=4)
            engine.save_chats()
    [chat] = [entry for entry in entries(cache) if entry.kind is Kind.CHAT]
    assert (chat.bundle, chat.state) == (bundle, State.THERE)
    assert chat.nbytes > 10_000
    model = (cache / chat.name).parent
    moved = model.rename(tmp_path / "elsewhere")
    model.symlink_to(moved)
    assert chat not in entries(cache)
    with pytest.raises(CacheError, match=r"cannot open the cache .*; name another with --cache-dir"):
        remove(cache, [chat])
    assert len(list(moved.iterdir())) == 1
    model.unlink()
    moved.rename(model)
    assert remove(cache, [chat]) == ([chat], [])
    assert not list(model.iterdir())


def test_what_is_being_written_stays(filled: Path) -> None:
    lock = filled / weights_name("b").replace(".xnnpack", ".lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run("cache", "prune", "--max-bytes", "0B", "--cache-dir", filled)
    assert f"{weights_name('b')}: is being written, and stays" in done.stdout
    assert left(filled) == "b"


def test_links_and_strangers_are_neither_listed_nor_removed(cache: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (cache / weights_name("a")).symlink_to(outside / "precious")
    (cache / weights_name("b").replace(".xnnpack", ".onnx")).symlink_to(outside)
    (cache / f"{'c' * 32}.json").symlink_to(outside / "precious")
    os.mkfifo(cache / f"{'d' * 32}.json")
    for name in ("thesis.tex", "notes.json", f"{DIGIT * 4}.xnnpack"):
        (cache / name).write_text("x")
    (cache / weights_name("e")).mkdir()
    assert entries(cache) == []
    before = sorted(cache.iterdir())
    assert run("cache", "prune", "--max-bytes", "0B", "--cache-dir", cache).exit_code == 0
    assert sorted(cache.iterdir()) == before
    assert (outside / "precious").read_text() == "x"


def test_a_link_inside_a_packed_graph_is_not_followed(cache: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x" * 100_000)
    graph = cache / weights_name("a").replace(".xnnpack", ".onnx")
    graph.mkdir()
    (graph / "link").symlink_to(outside)
    [entry] = entries(cache)
    assert entry.nbytes < 50_000
    assert (entry.bundle, entry.state) == (None, State.UNKNOWN)
    remove(cache, [entry])
    assert not graph.exists()
    assert (outside / "precious").exists()


def test_notes_that_say_nothing_are_listed_without_a_bundle(cache: Path) -> None:
    for digit, text in zip("abc", ["", "[]", json.dumps({"identity": [1, 2], "sha256": "x"})], strict=True):
        (cache / f"{digit * 32}.json").write_text(text)
    assert [(entry.kind, entry.bundle, entry.state) for entry in entries(cache)] == [
        (Kind.DIGEST, None, State.UNKNOWN)
    ] * 3


def test_a_name_does_not_steer_the_terminal(cache: Path) -> None:
    note = {"identity": ["/srv/\x1b[2Jevil", 1, 2, 3, 4, 5, 6, 7], "sha256": "0" * 64}
    (cache / f"{'a' * 32}.json").write_text(json.dumps(note))
    listed = run("cache", "list", "--cache-dir", cache).stdout
    assert "'/srv/\\x1b[2Jevil' (gone)" in listed
    assert "\x1b" not in listed


def test_no_folder_is_an_empty_cache(tmp_path: Path) -> None:
    assert run("cache", "list", "--cache-dir", tmp_path / "none").stdout == f"0 entries, 0 B in {tmp_path / 'none'}\n"
    assert run("cache", "prune", "--gone", "--cache-dir", tmp_path / "none").exit_code == 0


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("cache", "list", "--cache-dir", tmp_path / "file")
    assert done.exit_code == 1
    assert f"error: cannot read the cache {tmp_path / 'file'} (Not a directory); name another" in done.output
    entry = Entry(weights_name("a"), Kind.WEIGHTS, None, State.UNKNOWN, 1, 0.0)
    with pytest.raises(CacheError, match=r"cannot open the cache .*\(Not a directory\); name another with --cache-dir"):
        remove(tmp_path / "file", [entry])


def test_an_entry_that_cannot_be_removed(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_args: object, **_named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "unlink", refused)
    with pytest.raises(
        CacheError, match=r"cannot remove e.* from .*\(Permission denied\); run this as the user whose cache it"
    ):
        remove(filled, entries(filled)[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what shall go: --older-than, --max-bytes or --gone"),
        (["--older-than", "soon"], "'soon': expected a number and m, h, d or w, such as 30d"),
        (["--max-bytes", "4"], "'4': expected a size with its unit, such as 4GB"),
        (["--max-bytes", "-4GB"], "'-4GB': expected a size with its unit, such as 4GB"),
    ],
)
def test_what_cannot_be_asked_for(cache: Path, options: list[str], message: str) -> None:
    done = run("cache", "prune", *options, "--cache-dir", cache)
    assert done.exit_code == 2
    assert message in done.output
