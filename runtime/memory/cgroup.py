"""A memory cgroup of our own: the kernel's hard limit for a command, page cache charged. Version 1 or 2, as root.

v1: https://docs.kernel.org/admin-guide/cgroup-v1/memory.html, v2: https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

import contextlib
import mmap
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.memory.cgroup_limit import own_group

_PREFIX = "gemma-edge-"
_REMOVE_TRIES, _REMOVE_PAUSE_S = 50, 0.02  # a killed process leaves its cgroup a moment later


class CgroupUnavailable(GemmaEdgeError):  # noqa: N818  a state of the machine, and the message says which
    """This process may not create a memory cgroup."""


@dataclass(frozen=True)
class _Files:
    """Where the two versions keep the same facts."""

    limit: str
    swap_limit: str
    peak: str
    oom: str  # a file of "key number" lines with the key oom_kill


_V1 = _Files("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control")
_V2 = _Files("memory.max", "memory.swap.max", "memory.peak", "memory.events")


class MemoryCgroup:
    """A cgroup with a limit, alive during its `with` block; what still runs in it at the end is killed.

    It is made below this process's own group (v1) or beside it (v2, where a group with processes may have no
    children), so the limits that already hold for this process keep holding.
    """

    def __init__(self, limit_bytes: int) -> None:
        """Raises CgroupUnavailable when the machine has no memory cgroup we may write to."""
        if limit_bytes <= 0:
            raise ValueError(f"limit_bytes: found {limit_bytes}; expected a positive number of bytes")
        parent, self._files = _parent()
        self.limit_bytes = limit_bytes
        self.path = parent / f"{_PREFIX}{os.getpid()}-{time.monotonic_ns()}"
        _remove_leftovers(parent)

    def __enter__(self) -> Self:
        try:
            self.path.mkdir()
            (self.path / self._files.limit).write_text(str(self.limit_bytes))
            swap_limit = self.path / self._files.swap_limit
            if swap_limit.exists():  # absent without swap accounting
                # v1 bounds memory + swap, v2 bounds swap alone: either way no swap, as on a phone without zram to spare
                swap_limit.write_text(str(self.limit_bytes) if self._files is _V1 else "0")
        except OSError as error:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            raise CgroupUnavailable(_refusal(str(error))) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in range(_REMOVE_TRIES):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                self.path.rmdir()
            except OSError:
                time.sleep(_REMOVE_PAUSE_S)
            else:
                return

    def command(self, command: Sequence[str]) -> list[str]:
        """`command`, entering the cgroup before its first page is charged."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs"), *command]

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]

    def peak_bytes(self) -> int | None:
        """The highest charge so far, page cache included; None where the kernel keeps none (v2 before Linux 5.19)."""
        peak = self.path / self._files.peak
        return int(peak.read_text()) if peak.exists() else None

    def reread_bytes(self) -> int | None:
        """File pages read again after they were dropped for want of room: here, or where the whole machine was short.

        Hardly any means that the limit cost no reading. None where the kernel does not say (before Linux 5.9).
        """
        match = re.search(r"(?m)^workingset_refault_file (\d+)$", (self.path / "memory.stat").read_text())
        return int(match[1]) * mmap.PAGESIZE if match else None

    def oom_kills(self) -> int:
        """How many processes of this cgroup the kernel has killed for crossing the limit."""
        match = re.search(r"(?m)^oom_kill (\d+)$", (self.path / self._files.oom).read_text())
        return int(match[1]) if match else 0


def evict_from_page_cache(path: Path) -> None:
    """Drop a file's cached pages, so that the next reader is charged for them.

    A page belongs to the cgroup that read it first: a file that somebody else has cached costs nothing inside.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())  # only clean pages can be dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _parent() -> tuple[Path, _Files]:
    """The directory to create our cgroup in. Raises CgroupUnavailable."""
    try:
        own = own_group()
    except OSError as error:
        raise CgroupUnavailable(_refusal(str(error))) from error
    if own is None:
        raise CgroupUnavailable(_refusal("no memory controller is mounted"))
    if own.version == 1:
        candidates, files = _v1_parents(own.mount, own.path), _V1
    else:
        candidates, files = v2_parents(own.mount, own.path), _V2
    for parent in candidates:
        if os.access(parent, os.W_OK):
            return parent, files
    raise CgroupUnavailable(_refusal("no memory cgroup here is writable"))


def _v1_parents(mount: Path, own: str) -> list[Path]:
    """Our own group; the mount itself inside a container, where the path of /proc/self/cgroup is the host's."""
    return [path for path in (mount / own.lstrip("/"), mount) if (path / _V1.limit).exists()][:1]


def v2_parents(mount: Path, own: str) -> list[Path]:
    """The groups at or above ours whose children get the memory controller, nearest first.

    A group other than the root cannot both hold processes and pass controllers to children, so ours rarely qualifies
    and its parent usually does.
    """
    group = mount / own.lstrip("/")
    above = [path for path in (group, *group.parents) if path == mount or mount in path.parents]
    return [path for path in above if "memory" in _words(path / "cgroup.subtree_control")]


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def _remove_leftovers(parent: Path) -> None:
    """Delete the empty groups of runs that were killed before they could."""
    for path in parent.glob(f"{_PREFIX}*"):
        pid = path.name.removeprefix(_PREFIX).split("-")[0]
        if not Path("/proc", pid).exists():
            with contextlib.suppress(OSError):
                path.rmdir()


def _refusal(found: str) -> str:
    return (
        f"memory cgroup: {found}; expected a writable cgroup with the memory controller; "
        "run as root on the host (in a container: --privileged), or measure by sampling instead"
    )
