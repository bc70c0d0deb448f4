"""A short run of the kills, and that the tool sees what a kill could leave."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.fuzz_kills import WrongError, digest, forked, left


def test_a_short_run(repository: Path) -> None:
    """In a process of its own: it forks, and this one has threads."""
    command = [sys.executable, "-m", "tools.fuzz_kills", "--convert", "5", "--pack", "2", "--seed", "3"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, least, line in zip(("convert", "pack"), (2, 1), done.stdout.splitlines(), strict=True):
        found = re.fullmatch(rf"{name}: (\d+) killed, (\d+) had ended; left: {{.+}}", line)
        assert found is not None
        assert int(found[1]) >= least


def test_it_kills_where_it_says(tmp_path: Path) -> None:
    def act() -> None:
        for number in range(10):
            (tmp_path / str(number)).touch()

    status, events = forked(act)
    assert (status, events) == (0, 20)  # each is opened, and given a time
    for path in tmp_path.iterdir():
        path.unlink()
    assert forked(act, kill_at=7)[0] == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_it_sees_a_partial_output(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.write_bytes(b"half")
    with pytest.raises(WrongError, match=r"^7: neither the old output nor the new one lies there$"):
        left(out, {"0" * 64: "new"}, "7")


def test_it_sees_a_bundle_without_a_report(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.write_bytes(b"whole")
    with pytest.raises(WrongError, match=r"^7: a bundle without its report$"):
        left(out, {digest(out): "new"}, "7")


def test_it_sees_half_a_report(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"output": ')
    with pytest.raises(json.JSONDecodeError):
        left(tmp_path / "model", {}, "7")


def test_it_sees_a_process_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    def act() -> None:
        raise ZeroDivisionError

    with pytest.raises(WrongError, match=r"^ends with status 1$"):
        forked(act)
    assert "ZeroDivisionError" in capfd.readouterr().err
