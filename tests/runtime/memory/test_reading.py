"""Readings against memory that the test itself allocates, maps and frees."""

import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.memory.reading import (
    MemoryReading,
    PeakSampler,
    file_mappings,
    process_tree,
    read_memory,
    read_memory_exact,
    read_memory_of,
)

SIZE_BYTES = 64 * MIB
SLACK_BYTES = 4 * MIB  # the interpreter's own allocations, and the kernel's batched counters

# Allocates, says so, and waits for its standard input to close.
HOLDER = f"import sys; block = bytearray({SIZE_BYTES}); print('ready', flush=True); sys.stdin.read()"


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A child that holds SIZE_BYTES of anonymous memory."""
    child = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    yield child
    child.communicate()


@pytest.fixture
def mapped_file() -> Iterator[Path]:
    """A file of SIZE_BYTES on a disk (/tmp may be memory), mapped and read by this process."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder, "weights.bin")
        path.write_bytes(bytes(SIZE_BYTES))
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            for offset in range(0, SIZE_BYTES, 4096):
                mapping[offset]
            yield path


@contextmanager
def private_block() -> Iterator[None]:
    """SIZE_BYTES of fresh anonymous memory: the heap might reuse what earlier tests freed."""
    with mmap.mmap(-1, SIZE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        touch(block)
        yield


def touch(block: mmap.mmap) -> None:
    """Make every page of it resident, without memory of our own."""
    for offset in range(0, SIZE_BYTES, mmap.PAGESIZE):
        block[offset] = 1


@pytest.mark.parametrize("read", [read_memory, read_memory_exact])
def test_anonymous_memory_comes_and_goes(read: Callable[[], MemoryReading]) -> None:
    before = read()
    with private_block():
        during = read()
    after = read()
    assert during.anon_bytes - before.anon_bytes == pytest.approx(SIZE_BYTES, abs=SLACK_BYTES)
    assert after.anon_bytes - before.anon_bytes == pytest.approx(0, abs=SLACK_BYTES)
    assert during.file_bytes - before.file_bytes == pytest.approx(0, abs=SLACK_BYTES)
    assert after.peak_rss_bytes >= before.anon_bytes + SIZE_BYTES


@pytest.mark.usefixtures("mapped_file")
def test_mapped_files_are_not_anonymous() -> None:
    exact, quick = read_memory_exact(), read_memory()
    assert exact.file_bytes >= SIZE_BYTES
    assert quick.file_bytes == pytest.approx(exact.file_bytes, abs=SLACK_BYTES)
    assert quick.anon_bytes == pytest.approx(exact.anon_bytes, abs=SLACK_BYTES)
    assert quick.total_bytes == quick.hard_bytes + quick.file_bytes


def test_shared_memory_counts_as_hard() -> None:
    before = read_memory()
    with mmap.mmap(-1, SIZE_BYTES) as block:  # MAP_SHARED | MAP_ANONYMOUS
        touch(block)
        during, exact = read_memory(), read_memory_exact()
    assert during.shmem_bytes - before.shmem_bytes == pytest.approx(SIZE_BYTES, abs=SLACK_BYTES)
    assert during.hard_bytes - before.hard_bytes >= SIZE_BYTES - SLACK_BYTES
    assert exact.file_bytes == pytest.approx(during.file_bytes, abs=SLACK_BYTES)


def test_mappings_name_the_file(mapped_file: Path) -> None:
    found = [mapping for mapping in file_mappings() if mapping.path == str(mapped_file)]
    assert [(mapping.offset_bytes, mapping.size_bytes) for mapping in found] == [(0, SIZE_BYTES)]
    assert found[0].resident_bytes == SIZE_BYTES


def test_another_process_is_read(holder: subprocess.Popen[str]) -> None:
    assert SIZE_BYTES < read_memory(holder.pid).anon_bytes < SIZE_BYTES + 64 * MIB
    assert file_mappings(holder.pid)


def test_the_tree_includes_children(holder: subprocess.Popen[str]) -> None:
    tree = process_tree(os.getpid())
    assert tree[0] == os.getpid()
    assert holder.pid in tree
    together, alone = read_memory_of(tree), read_memory()
    assert together.anon_bytes >= alone.anon_bytes + SIZE_BYTES - SLACK_BYTES


def test_a_process_that_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for read in (read_memory, read_memory_exact, file_mappings):
        with pytest.raises(ProcessLookupError, match=f"no process {child.pid}"):
            read(child.pid)
    assert read_memory_of([child.pid]).total_bytes == 0
    assert process_tree(child.pid) == [child.pid]


def test_a_process_that_nobody_has_waited_for_holds_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()  # ends when the child does
    while "State:\tZ" not in Path(f"/proc/{child.pid}/status").read_text():
        time.sleep(0.001)
    assert read_memory(child.pid).total_bytes == 0
    child.wait()
    child.stdout.close()


def test_the_sampler_sees_a_peak_that_is_over_at_the_end(holder: subprocess.Popen[str]) -> None:
    with PeakSampler(lambda: process_tree(holder.pid), interval_ms=1) as sampler:
        assert sampler.peak.hard_bytes >= SIZE_BYTES  # one sample is taken on entry
        while sampler.peak.samples < 5:
            time.sleep(0.001)
        holder.communicate()
    assert sampler.peak.anon_bytes >= SIZE_BYTES
    assert sampler.peak.hard_bytes >= SIZE_BYTES
    assert sampler.peak.total_bytes >= sampler.peak.hard_bytes
    assert read_memory_of([holder.pid]).total_bytes == 0


def test_the_sampler_watches_this_process_by_default() -> None:
    before = read_memory()
    with PeakSampler(interval_ms=1) as sampler, private_block():
        seen = sampler.peak.samples
        while sampler.peak.samples < seen + 2:
            time.sleep(0.001)
    assert sampler.peak.anon_bytes >= before.anon_bytes + SIZE_BYTES - SLACK_BYTES


def test_the_sampler_needs_an_interval() -> None:
    with pytest.raises(ValueError, match="interval_ms: found 0; expected a positive number of milliseconds"):
        PeakSampler(interval_ms=0)
