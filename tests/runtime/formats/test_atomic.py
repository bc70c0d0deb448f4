import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest

from gemma_edge.runtime.formats.atomic import OutputError, atomic_directory, atomic_file, require_space

KILLED_HALF_WAY = """
import sys, time
from pathlib import Path
from gemma_edge.runtime.formats.atomic import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    time.sleep(60)
"""


def start_a_run(target: Path) -> "subprocess.Popen[bytes]":
    """A process that has written half of `target` and waits."""
    process = subprocess.Popen([sys.executable, "-c", KILLED_HALF_WAY, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    return process


def write_half_and_raise(file: BinaryIO, error: BaseException) -> None:
    file.write(b"half")
    raise error


def test_the_file_appears_complete(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    with atomic_file(target) as file:
        file.seek(4)
        file.write(b"tail")
        file.seek(0)
        file.write(b"head")
        assert not target.exists()
    assert target.read_bytes() == b"headtail"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as file:
        write_half_and_raise(file, KeyboardInterrupt())
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    process = start_a_run(target)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    bystander = tmp_path / ".model.bin.notes.partial"
    bystander.touch()
    assert len(list(tmp_path.glob(".model.bin.*.partial"))) == 2
    with atomic_file(target) as file:
        file.write(b"whole")
    assert sorted(tmp_path.iterdir()) == [bystander, target]


def test_the_partial_of_a_living_run_stays(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    process = start_a_run(target)
    try:
        with atomic_file(target) as file:
            file.write(b"whole")
        [partial] = tmp_path.glob(".model.bin.*.partial")
        assert partial.name == f".model.bin.{process.pid}.partial"
    finally:
        process.kill()
        process.communicate()


def test_missing_directory(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"the directory .*/nowhere does not exist; create it"),
        atomic_file(tmp_path / "nowhere" / "model.bin"),
    ):
        pass


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path, tmp_path / "pipe", Path("/")):
        with pytest.raises(OutputError, match=r"exists and is not a file; choose another output"), atomic_file(target):
            pass


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "model.bin"
    link.symlink_to(tmp_path / "disk" / "real.bin")
    with atomic_file(link) as file:
        file.write(b"whole")
    assert link.is_symlink()
    assert (tmp_path / "disk" / "real.bin").read_bytes() == b"whole"


@pytest.mark.parametrize("open_output", [atomic_file, atomic_directory])
def test_a_link_to_itself(tmp_path: Path, open_output: Callable[[Path], AbstractContextManager[object]]) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with (
        pytest.raises(OutputError, match=r"loop: .*link.*; (remove it or )?choose (another output|a directory)"),
        open_output(loop),
    ):
        pass
    assert list(tmp_path.iterdir()) == [loop]


@pytest.mark.parametrize("mode", [0o555, 0o444, 0o000])
def test_unwritable_directory(tmp_path: Path, mode: int) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=mode)
    uid = os.geteuid()
    if uid == 0:  # root may write anywhere: become nobody for a moment
        for directory in (tmp_path, *tmp_path.parents):
            if directory.owner() == "root" and directory.stat().st_mode & 0o077 == 0:
                directory.chmod(0o711)
        os.seteuid(65534)
    try:
        with (
            pytest.raises(OutputError, match=r"cannot write \(Permission denied\); choose a directory"),
            atomic_file(closed / "model.bin"),
        ):
            pass
    finally:
        os.seteuid(uid)


@pytest.mark.parametrize("open_output", [atomic_file, atomic_directory])
def test_another_run_that_begins_at_the_same_moment(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_output: Callable[[Path], AbstractContextManager[object]],
) -> None:
    """It finds the partial before this run has locked it, takes it for a dead one's and removes it."""
    flock = fcntl.flock

    def tidied_up_just_before(fd: int, operation: int) -> None:
        [partial] = tmp_path.iterdir()
        partial.rmdir() if partial.is_dir() else partial.unlink()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", tidied_up_just_before)
    with (
        pytest.raises(OutputError, match=r"model: another process has begun to write it; wait, or choose another"),
        open_output(tmp_path / "model"),
    ):
        pytest.fail("an output that nobody will see")


def test_the_same_file_twice_in_one_process(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    with (
        atomic_file(target),
        pytest.raises(OutputError, match=r"this process is already writing it"),
        atomic_file(target),
    ):
        pass


def test_a_disk_without_room_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(8 << 30, 7 << 30, 1 << 30))
    with (
        pytest.raises(OutputError, match=r"disk full, 3,072 MiB needed, 1,024 MiB free; free some space"),
        atomic_file(tmp_path / "model.bin"),
    ):
        require_space(tmp_path / "model.bin", 3 << 30)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"disk full, [\d,]+ MiB free"),
        (errno.EDQUOT, r"disk full"),
        (errno.EFBIG, r"FAT32 ends at 4 GiB"),
    ],
)
def test_the_disk_fills_up_while_writing(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(OutputError, match=message), atomic_file(tmp_path / "model.bin") as file:
        write_half_and_raise(file, OSError(number, os.strerror(number)))
    assert list(tmp_path.iterdir()) == []


def test_the_kernel_refuses_a_write(tmp_path: Path) -> None:
    """A limit on the size of files makes a buffered write fail for real, at the flush that closing repeats."""
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from gemma_edge.runtime.formats.atomic import atomic_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "with atomic_file(Path(sys.argv[1])) as file: file.write(bytes(4000))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "model.bin"], check=False, capture_output=True, text=True
    )
    assert run.stderr.splitlines()[-1].endswith("choose another disk")
    assert "OutputError" in run.stderr
    assert list(tmp_path.iterdir()) == []
