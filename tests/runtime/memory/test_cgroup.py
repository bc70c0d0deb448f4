"""Finding a place for our cgroup. That the limit works is shown in tests/tools/test_cgroup_run.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.memory.cgroup import CgroupUnavailable, MemoryCgroup, v2_parents


def test_a_limit_is_positive() -> None:
    with pytest.raises(ValueError, match="limit_bytes: found 0; expected a positive number of bytes"):
        MemoryCgroup(0)


def test_v2_parents_are_those_that_hand_the_memory_controller_down(tmp_path: Path) -> None:
    """The layout of a systemd session: the scope with our processes hands nothing down, the slices above do."""
    scope = tmp_path / "user.slice" / "session-1.scope"
    scope.mkdir(parents=True)
    for folder, controllers in ((tmp_path, "cpu memory pids"), (scope.parent, "memory pids"), (scope, "")):
        (folder / "cgroup.subtree_control").write_text(controllers + "\n")
    (tmp_path.parent / "cgroup.subtree_control").unlink(missing_ok=True)
    assert v2_parents(tmp_path, "/user.slice/session-1.scope") == [scope.parent, tmp_path]
    (scope.parent / "cgroup.subtree_control").write_text("pids\n")
    assert v2_parents(tmp_path, "/user.slice/session-1.scope") == [tmp_path]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop its rights")
def test_without_rights_the_message_says_what_to_do() -> None:
    script = (
        "import os\n"
        "from gemma_edge.runtime.memory.cgroup import CgroupUnavailable, MemoryCgroup\n"
        "os.setuid(65534)\n"
        "try:\n"
        f"    with MemoryCgroup({64 * MIB}): print('made')\n"
        "except CgroupUnavailable as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("memory cgroup: ")
    assert "; expected a writable cgroup with the memory controller; run as root on the host" in result.stdout
    assert result.stdout.count("\n") == 1


def test_leftovers_of_a_killed_run_are_removed() -> None:
    try:
        with MemoryCgroup(64 * MIB) as cgroup:
            parent = cgroup.path.parent
    except CgroupUnavailable as error:
        pytest.skip(str(error))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    leftover = parent / f"gemma-edge-{child.pid}-1"
    leftover.mkdir()
    with MemoryCgroup(64 * MIB):
        assert not leftover.exists()
