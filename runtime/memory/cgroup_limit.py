"""The memory limit that this process already lives under: a container's, a systemd unit's, or one of our own making.

Reading needs no rights. Page cache is charged to a group, and the kernel drops it before it kills; so what brings a
process in danger is the charge without the files.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_UNLIMITED_BYTES = 1 << 60  # v1 says 2**63 rounded down to a page


@dataclass(frozen=True)
class CgroupLimit:
    """A group with a limit. `path` is its directory."""

    path: Path
    limit_bytes: int
    usage_file: str

    def stuck_bytes(self) -> int:
        """What the group is charged for and no reclaim gives back: everything but pages of files."""
        stat = dict(re.findall(r"(?m)^(\w+) (\d+)$", (self.path / "memory.stat").read_text()))
        # v1 lists the group alone and, as total_, with its children; v2 always means both.
        prefix = "total_" if "total_inactive_file" in stat else ""
        files = int(stat[f"{prefix}inactive_file"]) + int(stat[f"{prefix}active_file"])
        return max(0, int((self.path / self.usage_file).read_text()) - files)


@dataclass(frozen=True)
class OwnGroup:
    """Where this process's memory group is. mount: of the controller. path: below it, as the kernel tells it; in a
    container that may be the host's.
    """

    version: Literal[1, 2]
    mount: Path
    path: str


def own_group(proc: Path = Path("/proc/self")) -> OwnGroup | None:
    """None where no memory controller is mounted. Raises OSError: not Linux."""
    mounts, own = (proc / "mounts").read_text(), (proc / "cgroup").read_text()
    v1 = re.search(r"(?m)^\S+ (\S+) cgroup \S*\bmemory\b", mounts)
    v1_own = re.search(r"(?m)^\d+:(?:\S+,)?memory(?:,\S+)?:(/.*)$", own)
    if v1 and v1_own:
        return OwnGroup(1, Path(v1[1]), v1_own[1])
    v2 = re.search(r"(?m)^\S+ (\S+) cgroup2 ", mounts)
    v2_own = re.search(r"(?m)^0::(/.*)$", own)
    return OwnGroup(2, Path(v2[1]), v2_own[1]) if v2 and v2_own else None


def own_limit(proc: Path = Path("/proc/self")) -> CgroupLimit | None:
    """The tightest limit of this process's memory cgroup and those above it; None where there is none to be seen."""
    try:
        own = own_group(proc)
    except OSError:
        return None
    if own is None:
        return None
    files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if own.version == 1 else ("memory.max", "memory.current")
    return _tightest(own.mount, own.path, *files)


def _tightest(mount: Path, own: str, limit_file: str, usage_file: str) -> CgroupLimit | None:
    group = mount / own.lstrip("/")
    groups = [path for path in (group, *group.parents) if path == mount or mount in path.parents]
    found = []
    for path in groups:
        try:
            text = (path / limit_file).read_text().strip()
            usage = (path / usage_file).exists()
        except OSError:  # in a container the path may be the host's
            continue
        if usage and text != "max" and int(text) < _UNLIMITED_BYTES:
            found.append(CgroupLimit(path, int(text), usage_file))
    return min(found, key=lambda item: item.limit_bytes, default=None)
