"""How much memory processes use, read from /proc.

The figure that counts against a budget is anonymous + shared + swapped memory: it can only go away by being freed.
File-backed pages are reported beside it, because the kernel may drop them (profiles/FORMAT.md has the definition).
"""

import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gemma_edge.profiles.errors import GemmaEdgeError

_PROC = Path("/proc")


class ProcMissingError(GemmaEdgeError):
    """There is no /proc: a chroot, or a sandbox."""


@dataclass(frozen=True)
class MemoryReading:
    """The memory of one process, or of several together, at one moment."""

    anon_bytes: int
    shmem_bytes: int
    swap_bytes: int
    file_bytes: int
    peak_rss_bytes: int  # the kernel's own high-water mark of anon + shmem + file; misses no spike

    @property
    def hard_bytes(self) -> int:
        """What a budget bounds in any case: memory that no reclaim gives back."""
        return self.anon_bytes + self.shmem_bytes + self.swap_bytes

    @property
    def total_bytes(self) -> int:
        return self.hard_bytes + self.file_bytes


@dataclass(frozen=True)
class FileMapping:
    """One mapped range of a file and how much of it is in memory for this process.

    address: where it begins. changed_bytes: pages that this process has written and has for itself, swapped ones too.
    """

    path: str
    address: int
    offset_bytes: int
    size_bytes: int
    resident_bytes: int
    changed_bytes: int


def read_memory(pid: int | None = None) -> MemoryReading:
    """A reading of process `pid`, or of this one, from /proc/PID/status.

    Costs some 50 us. The kernel batches these counters per CPU, so they may lag by a few hundred KiB;
    `read_memory_exact` does not. Raises ProcessLookupError when the process is gone.
    """
    status = _kib_fields(_read(pid, "status"))
    return MemoryReading(
        anon_bytes=status.get("RssAnon", 0),  # a process that has ended and is not yet waited for has no Rss lines
        shmem_bytes=status.get("RssShmem", 0),
        swap_bytes=status.get("VmSwap", 0),
        file_bytes=status.get("RssFile", 0),
        peak_rss_bytes=status.get("VmHWM", 0),
    )


def read_memory_exact(pid: int | None = None) -> MemoryReading:
    """The same from /proc/PID/smaps_rollup, which walks the page tables: exact, but milliseconds for gigabytes.

    Raises ProcessLookupError when the process is gone, PermissionError when it belongs to another user.
    """
    rollup = _kib_fields(_read(pid, "smaps_rollup"))
    status = _kib_fields(_read(pid, "status"))
    anon = rollup["Anonymous"]
    shmem = status["RssShmem"]
    return MemoryReading(
        anon_bytes=anon,
        shmem_bytes=shmem,
        swap_bytes=rollup["Swap"],
        file_bytes=max(0, rollup["Rss"] - anon - shmem),
        peak_rss_bytes=status["VmHWM"],
    )


def read_memory_of(pids: Iterable[int]) -> MemoryReading:
    """The sum over processes; those that have ended meanwhile count as zero.

    Pages shared after a fork count once per process, so the sum of a forking program is an upper bound.
    """
    readings = []
    for pid in pids:
        try:
            readings.append(read_memory(pid))
        except ProcessLookupError:
            continue
    return MemoryReading(
        anon_bytes=sum(reading.anon_bytes for reading in readings),
        shmem_bytes=sum(reading.shmem_bytes for reading in readings),
        swap_bytes=sum(reading.swap_bytes for reading in readings),
        file_bytes=sum(reading.file_bytes for reading in readings),
        peak_rss_bytes=sum(reading.peak_rss_bytes for reading in readings),
    )


def file_mappings(pid: int | None = None) -> tuple[FileMapping, ...]:
    """Every mapped range of a file, in address order, with its resident bytes, from /proc/PID/smaps.

    A section of a bundle is found by its path and offset. Raises ProcessLookupError when the process is gone.
    """
    mappings = []
    for block in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", _read(pid, "smaps")):
        header = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+ +(/.*)", block)
        if header is None:  # anonymous memory, [heap], [stack], or the text before the first range
            continue
        start, end, offset, path = header.groups()
        fields, address = _kib_fields(block), int(start, 16)
        changed = fields["Anonymous"] + fields["Swap"]
        size = int(end, 16) - address
        mappings.append(FileMapping(path, address, int(offset, 16), size, fields["Rss"], changed))
    return tuple(mappings)


def process_tree(pid: int) -> list[int]:
    """`pid` and all its living descendants. A daemon that left the tree is not found; a cgroup would find it."""
    found = [pid]
    for parent in found:  # grows while we walk
        for children in _PROC.glob(f"{parent}/task/*/children"):
            try:
                found.extend(int(child) for child in children.read_text().split())
            except (FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
                continue
    return found


@dataclass(frozen=True)
class MemoryPeak:
    """The highest values seen, each at its own moment; `hard_bytes` is that of the sum, not the sum of peaks."""

    anon_bytes: int
    file_bytes: int
    hard_bytes: int
    total_bytes: int
    samples: int


class PeakSampler:
    """Samples memory from a thread while its `with` block runs; `peak` is the result, also while it runs.

    A call that holds the GIL stops the thread, and LiteRT's Python API holds it for a whole forward pass. So a peak
    inside such a call is seen only from another process: let the parent sample its child.

        with PeakSampler(lambda: process_tree(child.pid)) as sampler:
            child.wait()
        print(sampler.peak.hard_bytes)

    `on_sample` gets every reading, on the sampling thread.
    """

    def __init__(
        self,
        pids: Callable[[], Iterable[int]] = lambda: (os.getpid(),),
        interval_ms: float = 10,
        on_sample: Callable[[MemoryReading], None] = lambda _: None,
    ) -> None:
        if interval_ms <= 0:
            raise ValueError(f"interval_ms: found {interval_ms}; expected a positive number of milliseconds")
        self._pids = pids
        self._on_sample = on_sample
        self._interval_s = interval_ms / 1000
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)
        self._peak = MemoryPeak(0, 0, 0, 0, samples=0)

    @property
    def peak(self) -> MemoryPeak:
        return self._peak

    def __enter__(self) -> Self:
        self._sample()  # so that even an empty block has one sample
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        now, peak = read_memory_of(self._pids()), self._peak
        self._on_sample(now)
        self._peak = MemoryPeak(
            anon_bytes=max(peak.anon_bytes, now.anon_bytes),
            file_bytes=max(peak.file_bytes, now.file_bytes),
            hard_bytes=max(peak.hard_bytes, now.hard_bytes),
            total_bytes=max(peak.total_bytes, now.total_bytes),
            samples=peak.samples + 1,
        )


def _read(pid: int | None, name: str) -> str:
    process = "self" if pid is None else str(pid)
    try:
        return (_PROC / process / name).read_text()
    except FileNotFoundError as error:
        if pid is None:
            raise ProcMissingError(
                f"{_PROC} is not mounted, where memory is read and LiteRT looks for the kernels of this CPU; mount it "
                "(mount -t proc proc /proc)"
            ) from error
        raise ProcessLookupError(f"no process {process}") from error


def _kib_fields(text: str) -> dict[str, int]:
    """{"RssAnon": bytes, ...} of the lines "RssAnon:     123 kB"; the kernel's kB are 1024 bytes."""
    return {name: int(kib) * 1024 for name, kib in re.findall(r"(?m)^(\w+):\s+(\d+) kB$", text)}
