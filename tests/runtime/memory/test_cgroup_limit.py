"""Reading the limit this process lives under, in both versions, and in a real group."""

import subprocess
import sys
from pathlib import Path

import pytest

from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.memory.cgroup import CgroupUnavailable, MemoryCgroup
from gemma_edge.runtime.memory.cgroup_limit import CgroupLimit, own_limit


def proc(folder: Path, mount: str, own: str) -> Path:
    """A stand-in for /proc/self."""
    path = folder / "proc"
    path.mkdir()
    (path / "mounts").write_text(mount)
    (path / "cgroup").write_text(own)
    return path


def group(path: Path, files: dict[str, str]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)


def test_version_2_takes_the_tightest_above_us(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    group(root, {})
    group(root / "a", {"memory.max": "1000\n", "memory.current": "900\n"})
    stat = "anon 100\ninactive_file 300\nactive_file 200\n"
    group(root / "a" / "b", {"memory.max": "800\n", "memory.current": "700\n", "memory.stat": stat})
    group(root / "a" / "b" / "c", {"memory.max": "max\n", "memory.current": "600\n"})
    limit = own_limit(proc(tmp_path, f"cgroup2 {root} cgroup2 rw 0 0\n", "0::/a/b/c\n"))
    assert limit == CgroupLimit(root / "a" / "b", 800, "memory.current")
    assert limit.stuck_bytes() == 200


def test_version_1_counts_children_and_takes_its_own_word_for_no_limit(tmp_path: Path) -> None:
    root = tmp_path / "memory"
    unlimited = {"memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": "5\n"}
    group(root, unlimited)
    stat = "inactive_file 1\nactive_file 1\ntotal_inactive_file 300\ntotal_active_file 200\n"
    limited = {"memory.limit_in_bytes": "800\n", "memory.usage_in_bytes": "700\n", "memory.stat": stat}
    group(root / "a", limited)
    mounts = f"cgroup {root} cgroup rw,relatime,memory 0 0\n"
    found = own_limit(proc(tmp_path, mounts, "4:memory:/a\n0::/\n"))
    assert found == CgroupLimit(root / "a", 800, "memory.usage_in_bytes")
    assert found.stuck_bytes() == 200
    group(root / "a", unlimited)
    assert own_limit(tmp_path / "proc") is None


def test_no_group_to_be_seen(tmp_path: Path) -> None:
    assert own_limit(tmp_path / "missing") is None
    assert own_limit(proc(tmp_path, "proc /proc proc rw 0 0\n", "0::/\n")) is None


def test_inside_a_group_of_our_own() -> None:
    script = f"""
from gemma_edge.runtime.memory.cgroup_limit import own_limit
limit = own_limit()
assert limit.limit_bytes == {256 * MIB}, limit
before = limit.stuck_bytes()
block = bytearray({64 * MIB})
assert {60 * MIB} < limit.stuck_bytes() - before < {72 * MIB}
"""
    try:
        with MemoryCgroup(256 * MIB) as cgroup:
            command = cgroup.command([sys.executable, "-c", script])
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
    except CgroupUnavailable as error:
        pytest.skip(str(error))
    assert ran.returncode == 0, ran.stderr
