"""A command within its limit, one beyond it, and what the report says."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.memory.cgroup import CgroupUnavailable, MemoryCgroup
from gemma_edge.runtime.memory.reading import read_memory_of
from tools.cgroup_run import run_in_cgroup

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _cgroup_rights() -> None:
    try:
        with MemoryCgroup(64 * MIB):
            pass
    except CgroupUnavailable as error:
        pytest.skip(str(error))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def holding(size_bytes: int) -> list[str]:
    return python(f"import time; block = bytearray({size_bytes}); time.sleep(0.2)")


def test_within_the_limit() -> None:
    report = run_in_cgroup(holding(64 * MIB), 256 * MIB)
    assert report.completed
    assert (report.exit_code, report.oom_kills) == (0, 0)
    assert 64 * MIB < report.rss_anon_bytes < 128 * MIB
    assert report.rss_anon_bytes <= report.rss_hard_bytes
    assert report.peak_bytes is None or 64 * MIB < report.peak_bytes < 256 * MIB
    assert report.samples > 1


def test_beyond_the_limit_the_command_is_killed_and_reported() -> None:
    report = run_in_cgroup(holding(256 * MIB), 64 * MIB)
    assert not report.completed
    assert (report.exit_code, report.oom_kills) == (137, 1)
    assert report.rss_anon_bytes <= 64 * MIB
    assert report.peak_bytes is None or report.peak_bytes <= 64 * MIB


def test_children_share_the_limit() -> None:
    report = run_in_cgroup(python(f"import subprocess; subprocess.run({holding(64 * MIB)!r}, check=True)"), 256 * MIB)
    assert report.completed
    assert report.rss_anon_bytes > 64 * MIB


def test_a_killed_child_is_a_failure_even_if_the_command_goes_on() -> None:
    report = run_in_cgroup(python(f"import subprocess; subprocess.run({holding(256 * MIB)!r})"), 64 * MIB)
    assert (report.exit_code, report.oom_kills) == (0, 1)
    assert not report.completed


def test_what_the_command_leaves_running_is_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"import subprocess; open({str(pid_file)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))"
    assert run_in_cgroup(python(code), 256 * MIB).completed
    assert read_memory_of([int(pid_file.read_text())]).total_bytes == 0


def test_cold_files_are_charged_and_cached_ones_are_not() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # on a disk; /tmp may be memory
        weights = Path(folder, "weights.bin")
        weights.write_bytes(bytes(64 * MIB))
        read = python(f"file = open({str(weights)!r}, 'rb')\nwhile file.read(1 << 20): pass")
        warm = run_in_cgroup(read, 512 * MIB)
        cold = run_in_cgroup(read, 512 * MIB, cold=(weights,))
    if warm.peak_bytes is None or cold.peak_bytes is None:
        pytest.skip("this kernel keeps no peak")
    assert cold.peak_bytes - warm.peak_bytes == pytest.approx(64 * MIB, abs=16 * MIB)


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.cgroup_run", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_line_passes_output_and_status_through() -> None:
    result = command_line("--limit", "128 MiB", *python("print('hello'); raise SystemExit(3)"))
    assert (result.returncode, result.stdout) == (3, "hello\n")
    assert "limit            128 MiB" in result.stderr
    assert "killed by kernel 0" in result.stderr
    assert "exit status      3 after" in result.stderr


def test_command_line_reports_a_kill_as_json() -> None:
    result = command_line("--limit", "64 MiB", "--json", *holding(256 * MIB))
    assert result.returncode == 137
    report = json.loads(result.stderr)
    assert (report["limit_bytes"], report["oom_kills"], report["exit_code"]) == (64 * MIB, 1, 137)


def test_command_line_fails_when_only_a_child_was_killed() -> None:
    code = f"import subprocess; subprocess.run({holding(256 * MIB)!r})"
    assert command_line("--limit", "64 MiB", *python(code)).returncode == 137


@pytest.mark.parametrize("limit", ["2", "-1 GiB", "0 B", "two GiB"])
def test_command_line_refuses_a_limit_that_is_no_size(limit: str) -> None:
    result = command_line("--limit", limit, "true")
    assert result.returncode == 2
    assert f'found {limit}; expected a size such as "2 GiB"' in " ".join(result.stderr.split())
