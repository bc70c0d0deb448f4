"""A lock file: one holder, no trace, nothing of anybody else's touched."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.runtime.formats.lock import LockHeldError, held

HOLDER = """
import sys, time
from pathlib import Path
from gemma_edge.runtime.formats.lock import held
with held(Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    time.sleep(60)
"""


def start_a_holder(path: Path) -> "subprocess.Popen[str]":
    """A process that has the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_has_it(tmp_path: Path) -> None:
    holder = start_a_holder(tmp_path / "lock")
    try:
        with pytest.raises(LockHeldError, match=f"^process {holder.pid}$"), held(tmp_path / "lock", wait=False):
            pytest.fail("two holders")
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def test_threads_exclude_each_other_too(tmp_path: Path) -> None:
    own = f"^process {os.getpid()}$"
    with (
        held(tmp_path / "lock", wait=False),
        pytest.raises(LockHeldError, match=own),
        held(tmp_path / "lock", wait=False),
    ):
        pytest.fail("two holders")


@pytest.mark.parametrize("content", [b"", b"half a num", b"-1"])
def test_a_holder_that_has_not_said_who_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    with (tmp_path / "lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LockHeldError, match=r"^another process$"), held(tmp_path / "lock", wait=False):
            pytest.fail("two holders")


def test_who_is_refused_keeps_nothing_open(tmp_path: Path) -> None:
    path, descriptors = tmp_path / "lock", Path("/proc/self/fd")
    with held(path, wait=False):
        before = len(list(descriptors.iterdir()))
        for _ in range(3):
            with pytest.raises(LockHeldError), held(path, wait=False):
                pytest.fail("two holders")
        assert len(list(descriptors.iterdir())) == before


def test_nothing_is_left(tmp_path: Path) -> None:
    with held(tmp_path / "lock", wait=False):
        assert (tmp_path / "lock").read_bytes() == str(os.getpid()).encode()
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_a_holder_that_died_is_in_nobodys_way(tmp_path: Path, number: int) -> None:
    holder = start_a_holder(tmp_path / "lock")
    holder.send_signal(number)
    holder.wait()
    assert holder.stdout is not None
    holder.stdout.close()
    assert (tmp_path / "lock").exists()
    with held(tmp_path / "lock", wait=False):
        pass
    assert not list(tmp_path.iterdir())


def test_many_that_wait_get_it_one_after_the_other(tmp_path: Path) -> None:
    """The file goes with each holder: who waited for it must not believe in a file that is gone."""
    inside, most = 0, 0

    def take() -> None:
        nonlocal inside, most
        for _ in range(20):
            with held(tmp_path / "lock", wait=True):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside) == (1, 0)
    assert not list(tmp_path.iterdir())


def a_link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def a_link_to_nothing(path: Path, target: Path) -> None:
    path.symlink_to(target.with_name("new"))


def a_second_name(path: Path, target: Path) -> None:
    path.hardlink_to(target)


def a_pipe(path: Path, target: Path) -> None:  # noqa: ARG001
    os.mkfifo(path)


def a_folder(path: Path, target: Path) -> None:  # noqa: ARG001
    path.mkdir()


@pytest.mark.parametrize("plant", [a_link, a_link_to_nothing, a_second_name, a_pipe, a_folder])
def test_what_else_lies_there_is_left_alone(tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    plant(folder / "lock", target)
    with (
        pytest.raises(OSError, match=r"symbolic links|is not a lock file|directory"),
        held(folder / "lock", wait=False),
    ):
        pytest.fail("no lock")
    assert target.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "target"]
    assert [path.name for path in folder.iterdir()] == ["lock"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(_fd: int, _how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(tmp_path / "lock", wait=False):
        pass
    assert not list(tmp_path.iterdir())
