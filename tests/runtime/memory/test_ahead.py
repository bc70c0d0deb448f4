"""What is read ahead is in the page cache afterwards, unless memory does not hold it."""

import ctypes
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.memory import ahead as module
from gemma_edge.runtime.memory.ahead import ReadAhead, has_room, read_pieces
from gemma_edge.runtime.memory.cgroup_limit import CgroupLimit
from gemma_edge.runtime.memory.pressure import drop_from_page_cache
from gemma_edge.runtime.memory.reading import file_mappings

SIZE_BYTES = 10 * MIB


@pytest.fixture
def file() -> Iterator[Path]:
    """On a disk: /tmp may be memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder, "weights.bin")
        with path.open("wb") as out:
            out.write(bytes(range(256)) * (SIZE_BYTES // 256))
            os.fsync(out.fileno())
        yield path


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What the kernel is asked for: offset, bytes, advice."""
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _file, *how: asked.append(how))
    return asked


def cached_pages(path: Path) -> int:
    """Of the whole file, in the page cache."""
    found = np.zeros(SIZE_BYTES // mmap.PAGESIZE, np.uint8)
    with path.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapping:
        view = ctypes.c_char.from_buffer(mapping)
        address = ctypes.c_void_p(ctypes.addressof(view))
        assert (
            ctypes.CDLL(None).mincore(address, ctypes.c_size_t(SIZE_BYTES), found.ctypes.data_as(ctypes.c_void_p)) == 0
        )
        del view
    return int((found & 1).sum())


def meminfo(folder: Path, available_bytes: int) -> Path:
    path = folder / "meminfo"
    path.write_text(f"MemTotal:       99999999 kB\nMemAvailable:   {available_bytes // 1024} kB\n")
    return path


def limited(folder: Path, limit_bytes: int, stuck_bytes: int) -> CgroupLimit:
    (folder / "memory.stat").write_text("inactive_file 0\nactive_file 0\n")
    (folder / "memory.current").write_text(f"{stuck_bytes}\n")
    return CgroupLimit(folder, limit_bytes, "memory.current")


def test_a_dropped_file_is_in_the_page_cache_again_and_not_mapped(file: Path) -> None:
    whole = FileRange.whole(file)
    drop_from_page_cache([whole])
    before = cached_pages(file)
    reading = ReadAhead([whole], None)
    for _ in range(200):  # the kernel reads on after it was asked
        if cached_pages(file) == SIZE_BYTES // mmap.PAGESIZE:
            break
        time.sleep(0.05)
    reading.close()
    assert before < cached_pages(file) == SIZE_BYTES // mmap.PAGESIZE
    assert not [mapping for mapping in file_mappings() if mapping.path == str(file)]


def test_pieces_are_the_range_and_nothing_else(file: Path, pieces: list[tuple[int, int, int]]) -> None:
    read_pieces([FileRange(file, MIB, 9 * MIB)], threading.Event())
    will = os.POSIX_FADV_WILLNEED
    assert pieces == [(MIB, 4 * MIB, will), (5 * MIB, 4 * MIB, will), (9 * MIB, MIB, will)]


def test_closing_stops_before_the_next_piece(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on, asked = threading.Event(), threading.Event(), []

    def advise(*how: int) -> None:
        asked.append(how)
        began.set()
        go_on.wait()

    monkeypatch.setattr(os, "posix_fadvise", advise)
    reading = ReadAhead([FileRange.whole(file)], None)
    began.wait()
    closing = threading.Thread(target=reading.close)
    closing.start()
    while not reading._stop.is_set():
        time.sleep(0.001)
    go_on.set()
    closing.join()
    reading.close()
    assert len(asked) == 1


def test_a_file_that_is_gone_is_left_out(file: Path, tmp_path: Path, pieces: list[tuple[int, int, int]]) -> None:
    read_pieces([FileRange(tmp_path / "gone", 0, MIB), FileRange(file, 0, MIB)], threading.Event())
    assert pieces == [(0, MIB, os.POSIX_FADV_WILLNEED)]


def test_room_is_what_the_machine_has(tmp_path: Path) -> None:
    assert has_room(75 * MIB, None, meminfo(tmp_path, 100 * MIB))
    assert not has_room(76 * MIB, None, meminfo(tmp_path, 100 * MIB))
    assert not has_room(MIB, None, tmp_path / "missing")
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    assert not has_room(MIB, None, tmp_path / "meminfo")


def test_room_is_what_the_tightest_group_leaves(tmp_path: Path) -> None:
    plenty = meminfo(tmp_path, 1000 * MIB)
    assert has_room(75 * MIB, limited(tmp_path, 150 * MIB, 50 * MIB), plenty)
    assert not has_room(75 * MIB, limited(tmp_path, 150 * MIB, 51 * MIB), plenty)
    (tmp_path / "memory.stat").unlink()
    assert not has_room(MIB, CgroupLimit(tmp_path, 150 * MIB, "memory.current"), plenty)


@pytest.mark.parametrize(("spare_bytes", "has"), [(0, True), (None, False), (MIB, False)])
def test_nothing_is_read_without_room(
    file: Path,
    pieces: list[tuple[int, int, int]],
    monkeypatch: pytest.MonkeyPatch,
    spare_bytes: int | None,
    has: bool,
) -> None:
    monkeypatch.setattr(module, "has_room", lambda *_: has)
    ReadAhead([FileRange.whole(file)], spare_bytes).close()
    assert not pieces
