"""Mapped pages leave the process when asked to, and nothing else does."""

import mmap
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.memory.pressure import (
    drop_from_page_cache,
    read_single_pages,
    release_pages,
    relieve,
)
from gemma_edge.runtime.memory.reading import file_mappings

SIZE_BYTES = 8 * MIB


@pytest.fixture
def file() -> Iterator[Path]:
    """On a disk: /tmp may be memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder, "weights.bin")
        path.write_bytes(bytes(range(256)) * (SIZE_BYTES // 256))
        yield path


def mapped(path: Path, access: int = mmap.ACCESS_READ) -> mmap.mmap:
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=access)
    touch(mapping)
    return mapping


def touch(mapping: mmap.mmap) -> None:
    for offset in range(0, SIZE_BYTES, mmap.PAGESIZE):
        mapping[offset]


def resident_bytes(path: Path) -> int:
    return sum(mapping.resident_bytes for mapping in file_mappings() if mapping.path == str(path))


def test_a_range_is_released_and_reads_the_same_afterwards(file: Path) -> None:
    with mapped(file) as mapping:
        release_pages([FileRange(file, SIZE_BYTES // 2, SIZE_BYTES // 4)])
        assert resident_bytes(file) == SIZE_BYTES * 3 // 4
        drop_from_page_cache([FileRange(file, 0, SIZE_BYTES)])
        touch(mapping)
        assert mapping[SIZE_BYTES // 2 : SIZE_BYTES // 2 + 4] == b"\x00\x01\x02\x03"
        assert resident_bytes(file) == SIZE_BYTES


def test_a_mapping_that_could_be_written_is_released_too(file: Path) -> None:
    """ONNX Runtime maps weights so, and writes none."""
    with mapped(file, mmap.ACCESS_COPY):
        release_pages([FileRange(file, 0, SIZE_BYTES)])
        assert resident_bytes(file) == 0


def test_a_mapping_that_was_written_keeps_its_changes(file: Path) -> None:
    with mapped(file, mmap.ACCESS_COPY) as mapping:
        mapping[:4] = b"mine"
        release_pages([FileRange(file, 0, SIZE_BYTES)])
        assert mapping[:4] == b"mine"


def test_tables_go_first_and_weights_only_if_that_is_not_enough(file: Path) -> None:
    other = file.with_name("table.bin")
    other.write_bytes(bytes(SIZE_BYTES))
    weights, tables = [FileRange(file, 0, SIZE_BYTES)], [FileRange(other, 0, SIZE_BYTES)]
    with mapped(file), mapped(other):
        relieve(1 << 60, tables, weights)
        assert (resident_bytes(other), resident_bytes(file)) == (0, SIZE_BYTES)
        relieve(1, tables, weights)
        assert resident_bytes(file) == 0


def flags(path: Path) -> list[list[str]]:
    """The kernel's flags of each mapping of a file, two letters each (proc_pid_smaps(5))."""
    blocks = Path("/proc/self/smaps").read_text().split("VmFlags: ")
    return [after.partition("\n")[0].split() for before, after in pairwise(blocks) if f" {path}\n" in before]


def test_a_missing_page_is_read_alone(file: Path) -> None:
    with mapped(file):
        assert ["rr" in found for found in flags(file)] == [False]  # rr: random reads are expected
        read_single_pages([FileRange(file, 0, SIZE_BYTES)])
        assert ["rr" in found for found in flags(file)] == [True]


FREED = """
from gemma_edge.runtime.memory.pressure import trim_heap
from gemma_edge.runtime.memory.reading import read_memory
parts = [bytearray(3000) for _ in range(20_000)]
kept = bytearray(3000)  # above all of them: without it the heap would shrink by itself
del parts
before = read_memory().anon_bytes
trim_heap()
print((before - read_memory().anon_bytes) >> 20)
"""


def test_the_heap_is_trimmed() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 40  # of 57 MiB
