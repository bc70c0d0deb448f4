"""Temporary folders: gone with their owner, and after a kill with the next one."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gemma_edge.converter.checkpoint.scratch import Scratch

HOLDER = """
import sys, time
from gemma_edge.converter.checkpoint.scratch import Scratch
scratch = Scratch()
(scratch.path / "file").touch()
print(scratch.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def start_a_holder() -> "tuple[subprocess.Popen[str], Path]":
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_it_goes_with_its_owner(place: Path) -> None:
    scratch = Scratch()
    (scratch.path / "folder").mkdir()
    assert list(place.iterdir()) == [scratch.path]
    del scratch
    gc.collect()
    assert not list(place.iterdir())


def test_it_can_be_removed_before(place: Path) -> None:
    scratch = Scratch()
    scratch.remove()
    scratch.remove()
    assert not list(place.iterdir())


def test_of_a_killed_process_the_next_removes_it_and_of_a_living_one_not(place: Path) -> None:
    (killed, left), (living, kept) = start_a_holder(), start_a_holder()
    try:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert {left, kept} == set(place.iterdir())
        scratch = Scratch()
        assert {scratch.path, kept} == set(place.iterdir())
        assert (kept / "file").exists()
    finally:
        living.kill()
        for process in (killed, living):
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.mark.parametrize("name", ["gemma-edge-scratch-abc", "gemma-edge-scratch-a.b.c.d.", "gemma-edge-abcdefgh"])
def test_other_folders_stay(place: Path, name: str) -> None:
    (place / name).mkdir()
    Scratch().remove()
    assert [path.name for path in place.iterdir()] == [name]


def test_a_link_is_not_followed(place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "file").touch()
    (place / "gemma-edge-scratch-abcdefgh").symlink_to(place / "mine")
    Scratch().remove()
    assert (place / "mine" / "file").exists()
