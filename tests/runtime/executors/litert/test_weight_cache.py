"""The weight cache: named by content, built aside, repaired when damaged, and proven to be in use."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gemma_edge.runtime.executors.base import BundleMismatchError, Logits
from gemma_edge.runtime.executors.litert.decoder import DecoderSections
from gemma_edge.runtime.executors.litert.weight_cache import (
    UseCheck,
    WeightCacheError,
    compile_section,
    default_cache_dir,
    weight_cache,
)
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.litertlm import Bundle
from tests.slots import litert_slot

TinyBundle = Callable[[str, str], Path]


@pytest.fixture
def sections(tiny_bundle: TinyBundle) -> DecoderSections:
    return DecoderSections.of(Bundle.open(tiny_bundle("gemma3", "fp32")))


@pytest.fixture
def decoder(sections: DecoderSections) -> FileRange:
    return sections.decoder


def first_logits(sections: DecoderSections, cache_dir: Path | None) -> Logits:
    executor = litert_slot(sections, 1, cache_dir)
    logits = executor.decode(2)
    executor.close()
    return logits


def test_the_name_follows_the_content_not_the_path(decoder: FileRange, tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    other = DecoderSections.of(Bundle.open(tiny_bundle("gemma3n", "fp32"))).decoder
    moved = tmp_path / "moved"
    moved.write_bytes(b"12345678" + decoder.path.read_bytes()[decoder.offset : decoder.offset + decoder.nbytes])
    cache = weight_cache(decoder, tmp_path / "cache", 1)
    assert weight_cache(FileRange(moved, 8, decoder.nbytes), tmp_path / "cache", 1) == cache
    assert weight_cache(other, tmp_path / "cache", 1) != cache


def test_a_section_changed_in_place_gets_another_cache(decoder: FileRange, tmp_path: Path) -> None:
    """The same path, size and offset: the trap that gives silently wrong text."""
    path = tmp_path / "bundle"
    data = bytearray(decoder.path.read_bytes()[decoder.offset : decoder.offset + decoder.nbytes])
    path.write_bytes(data)
    place = FileRange(path, 0, len(data))
    first = weight_cache(place, tmp_path / "cache", 1)
    data[-1] ^= 1
    path.write_bytes(data)
    assert weight_cache(place, tmp_path / "cache", 1) != first


def test_a_builder_that_was_killed_leaves_nothing_in_the_way(sections: DecoderSections, tmp_path: Path) -> None:
    plain = first_logits(sections, None)
    cache = weight_cache(sections.decoder, tmp_path, 1)
    cache.unlink()
    place = sections.decoder
    command = [sys.executable, "-c", "import sys\nfrom gemma_edge.runtime.executors.litert import weight_cache as w\n"]
    command[2] += (
        "import os\nfrom pathlib import Path\n"
        "from gemma_edge.runtime.formats.file_range import FileRange\n"
        "def die(_module, arguments, _here, _limit_s, folder, lock):\n"
        "    (folder / arguments[-1]).write_bytes(b'half a cache')\n"
        "    os.kill(os.getpid(), 9)\n"
        "w.run_child = die\n"
        f"place = FileRange(Path({str(place.path)!r}), {place.offset}, {place.nbytes})\n"
        f"w.weight_cache(place, Path({str(tmp_path)!r}), 1)"
    )
    assert subprocess.run(command, check=False).returncode == -9
    assert cache.with_suffix(".partial").read_bytes() == b"half a cache"
    assert not cache.exists()
    np.testing.assert_array_equal(first_logits(sections, tmp_path), plain)
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob("*.lock"))


@pytest.mark.parametrize("damage", ["truncated", "zeroed", "empty"])
def test_a_damaged_cache_is_packed_again(sections: DecoderSections, tmp_path: Path, damage: str) -> None:
    plain = first_logits(sections, None)
    cache = weight_cache(sections.decoder, tmp_path, 1)
    good = cache.read_bytes()
    cache.write_bytes({"truncated": good[: len(good) // 2], "zeroed": bytes(len(good)), "empty": b""}[damage])
    np.testing.assert_array_equal(first_logits(sections, tmp_path), plain)
    assert cache.read_bytes() == good


def test_the_check_knows_a_mapped_cache_from_an_ignored_one(sections: DecoderSections, tmp_path: Path) -> None:
    cache = weight_cache(sections.decoder, tmp_path, 1)
    check = UseCheck(cache)
    assert not check.used()
    executor = litert_slot(sections, 1, tmp_path)
    assert check.used()
    cache.touch()
    assert not check.used()
    executor.close()


def test_a_cache_that_is_never_used_is_an_error(
    sections: DecoderSections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UseCheck, "used", lambda _: False)
    with pytest.raises(WeightCacheError, match=r"the weight cache .*\.xnnpack is not used by LiteRT, the"):
        litert_slot(sections, 1, tmp_path)


def test_no_room_for_the_cache(decoder: FileRange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(WeightCacheError, match=r"the weight cache needs about 6 MiB in .*, 1 MiB are free; free"):
        weight_cache(decoder, tmp_path, 1)


def test_a_cache_directory_that_cannot_be_made(decoder: FileRange, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightCacheError, match=r"cannot write the weight cache in .*file.* choose another cache_dir"):
        weight_cache(decoder, tmp_path / "file" / "cache", 1)


def test_a_section_that_cannot_be_packed(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"no model" * 1000)
    with pytest.raises(
        BundleMismatchError, match=r"junk: the model at byte 0 is damaged: begins with .*; copy the file"
    ):
        weight_cache(FileRange(tmp_path / "junk", 0, 8000), tmp_path, 1)
    assert not list(tmp_path.glob("*.partial"))


def test_a_section_that_litert_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever gets past the check."""
    monkeypatch.setattr("gemma_edge.runtime.executors.litert.weight_cache.check_section", lambda _: None)
    (tmp_path / "junk").write_bytes(b"no model" * 1000)
    with pytest.raises(WeightCacheError, match=r"packing the weights of .*junk failed with status 1 .*; convert"):
        weight_cache(FileRange(tmp_path / "junk", 0, 8000), tmp_path, 1)
    assert not list(tmp_path.glob("*.partial"))


def stand_in(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that does not do what it should."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python").chmod(0o755)


def test_a_builder_that_writes_nothing(decoder: FileRange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("exit 0", tmp_path, monkeypatch)
    with pytest.raises(WeightCacheError, match=r"packing the weights of .* wrote no cache to .*; choose another cache"):
        weight_cache(decoder, tmp_path, 1)


def test_a_builder_that_hangs(decoder: FileRange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_edge.runtime.executors.litert.weight_cache._LEAST_S", -decoder.nbytes / (1 << 20) + 0.2)
    stand_in("exec sleep 60", tmp_path, monkeypatch)
    with pytest.raises(WeightCacheError, match=r"packing the weights of .* took more than 0 s; the file is damaged"):
        weight_cache(decoder, tmp_path, 1)


def test_without_a_cache_a_first_load_crashes_in_a_child(
    decoder: FileRange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    with monkeypatch.context() as patch:
        stand_in("kill -11 $$", tmp_path, patch)
        for _ in range(2):  # nothing is remembered of a crash
            with pytest.raises(WeightCacheError, match=r"failed with status -11 .*LiteRT crashed on it"):
                compile_section(decoder, 1, None, notes)
        assert not list(notes.iterdir())
    compile_section(decoder, 1, None, notes)[0].close()
    [note] = notes.iterdir()
    assert note.suffix == ".loaded"
    stand_in("kill -11 $$", tmp_path, monkeypatch)
    compile_section(decoder, 1, None, notes)[0].close()  # was loaded before: no child


def test_without_a_cache_or_a_home(decoder: FileRange, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be noted, each start tries."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    compile_section(decoder, 1, None)[0].close()


def test_a_crash_where_the_processor_is_not_known(
    decoder: FileRange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma_edge.runtime.executors.litert.weight_cache._CPU_FILES", (tmp_path / "cpuinfo",))
    stand_in("kill -11 $$", tmp_path, monkeypatch)
    with pytest.raises(WeightCacheError, match=r"LiteRT crashed, and .*cpuinfo cannot be read: make it readable"):
        weight_cache(decoder, tmp_path, 1)


@pytest.mark.parametrize(
    ("signal", "remedy"),
    [
        (9, "close other programs"),
        (11, "LiteRT crashed on it: the file is damaged, copy it again"),
        (6, "LiteRT crashed on it: the file is damaged, copy it again"),
    ],
)
def test_a_builder_that_is_killed(
    decoder: FileRange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: int, remedy: str
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text(f"#!/bin/sh\nkill -{signal} $$\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(WeightCacheError, match=rf"failed with status -{signal} \(no message\); {remedy}"):
        weight_cache(decoder, tmp_path, 1)


def test_the_default_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "gemma-edge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "gemma-edge"
