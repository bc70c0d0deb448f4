"""Jobs as processes: what is done, what is done again, and what one job does to the others."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gemma_edge.converter.batch.batch import run_batch
from gemma_edge.converter.batch.joblist import BatchError, read_list
from gemma_edge.converter.batch.record import BEGUN
from gemma_edge.converter.batch.work import Outcome, Processes, State
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.profiles.sizes import GIB, MIB
from tools.farm_proof import fine_tune

SMALL = '[defaults]\ntarget = "custom-int4"\ncontext = 256\nprefill = [8, 32]\nmeasure = false\n'


def write_list(folder: Path, *rows: str) -> Path:
    path = folder / "list.toml"
    path.write_text(SMALL + "".join(f"[[job]]\n{row}\n" for row in rows))
    return path


def row(name: str, out: str, more: str = "") -> str:
    return f'checkpoint = "{name}"\nout = "{out}"\n{more}'


def batch(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["batch", *map(str, arguments)], env={"COLUMNS": "250"})


def values(*arguments: object) -> Any:
    result = batch(*arguments, "--jobs", 2, "--memory", "1GiB", "--json")
    return {job["name"]: job for job in json.loads(result.stdout)["jobs"]}


def test_a_list_is_done_once_and_what_changes_again(tiny_gemma3: Path, tmp_path: Path) -> None:
    """A file, a folder, a job that fails; then nothing; then only what is damaged or made of other weights."""
    for number in (0, 1):
        fine_tune(tiny_gemma3, tmp_path / f"tune-{number}", number)
    rows = [
        row("tune-0", "a.litertlm"),
        row("tune-1", "folder", 'format = "compressed-tensors"'),
        row("nowhere", "c.litertlm"),
    ]
    listed = write_list(tmp_path, *rows)
    first = values(listed)
    assert [job["state"] for job in first.values()] == ["converted", "converted", "failed"]
    assert first["c.litertlm"]["error"].startswith("nowhere: neither a directory nor a repository")
    assert 50 * MIB < first["a.litertlm"]["peak_rss_bytes"] <= first["a.litertlm"]["planned_bytes"]
    again = values(listed)
    assert [job["state"] for job in again.values()] == ["unchanged", "unchanged", "failed"]
    assert {job["attempts"] for job in again.values()} == {0}
    single = tmp_path / "single.litertlm"
    convert("custom-int4", tmp_path / "tune-0", single, context=256, prefill=(8, 32), measure=False)
    assert single.read_bytes() == (tmp_path / "a.litertlm").read_bytes()

    (tmp_path / "a.litertlm").write_bytes(b"damaged")
    shutil.rmtree(tmp_path / "tune-1")
    fine_tune(tiny_gemma3, tmp_path / "tune-1", 7)
    third = values(listed)
    assert [(job["state"], job["reason"]) for job in third.values()] == [
        ("converted", "output a.litertlm has changed"),
        ("converted", "input model.safetensors has changed"),
        ("failed", ""),
    ]
    assert single.read_bytes() == (tmp_path / "a.litertlm").read_bytes()


def test_folders_that_are_nobodys_or_were_not_recorded(tiny_gemma3: Path, tmp_path: Path) -> None:
    """One that lay there before is not touched; one that a killed farm has just made gives way."""
    kind = 'format = "compressed-tensors"'
    listed = write_list(tmp_path, row(str(tiny_gemma3), "mine", kind), row(str(tiny_gemma3), "theirs", kind))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes").write_text("")
    shutil.copytree(tmp_path / "theirs", tmp_path / "mine")
    BEGUN.save(tmp_path / "mine")
    found = values(listed)
    assert (found["mine"]["state"], found["mine"]["reason"]) == ("converted", "not finished")
    assert not (tmp_path / "mine" / "notes").exists()
    assert "exists and is not an empty directory; remove it" in found["theirs"]["error"]
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["notes"]


class Farm:
    """Runs a list in this process, and tells when a process of it works."""

    def __init__(self, listed: Path, kill: Callable[[Outcome], None], **options: Any) -> None:
        self.seen: list[tuple[str, State, int]] = []
        self.kill = kill
        self.outcomes = run_batch(read_list(listed), 2, GIB, on_change=self._changed, **options)

    def _changed(self, outcome: Outcome) -> None:
        self.seen.append((outcome.name, outcome.state, outcome.attempts))
        if outcome.state is State.RUNNING:
            threading.Thread(target=self.kill, args=(outcome,)).start()


def child_converting(out: Path) -> int:
    """Its process id, once it is there."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and f"--out={out}".encode() in (process / "cmdline").read_bytes():
                    return int(process.name)
            except OSError:
                continue
        time.sleep(0.005)
    raise AssertionError(f"nothing converts {out}")


def test_a_killed_worker_is_retried_and_one_that_is_always_killed_fails(tiny_gemma3: Path, tmp_path: Path) -> None:
    listed = write_list(tmp_path, row(str(tiny_gemma3), "a.litertlm"), row(str(tiny_gemma3), "b.litertlm"))

    def kill(outcome: Outcome) -> None:
        if outcome.name == "b.litertlm" or outcome.attempts == 1:
            os.kill(child_converting(outcome.out), signal.SIGKILL)

    a, b = Farm(listed, kill, retries=1).outcomes
    assert (a.state, a.attempts, a.exit_status) == (State.CONVERTED, 2, 0)
    assert (b.state, b.attempts, b.exit_status) == (State.FAILED, 2, -signal.SIGKILL)
    assert b.error == "killed by SIGKILL, started 2 times; is there memory enough?"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(("a.", ".a"))) == [
        "a.litertlm", "a.litertlm.job.json", "a.litertlm.json",
    ]  # fmt: skip


def test_workers_end_with_their_farm(tiny_gemma3: Path, tmp_path: Path) -> None:
    """Killed as hard as can be: what it ran must not go on beside the next farm's, in memory that is spent twice."""
    listed = write_list(tmp_path, row(str(tiny_gemma3), "a.litertlm"))
    command = [sys.executable, "-m", "gemma_edge.converter", "batch", str(listed)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as farm:
        child = child_converting(tmp_path / "a.litertlm")
        farm.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()
    assert not (tmp_path / "a.litertlm.job.json").exists()


def test_what_convert_refuses_is_the_jobs_own_error(tiny_gemma3: Path, tmp_path: Path) -> None:
    """Its last line, without a second try."""
    rows = [row(str(tiny_gemma3), "a.litertlm", "context = 99999"), row("x", "no/b.litertlm")]
    result = batch(write_list(tmp_path, *rows), "--jobs", 1, "--json")
    assert result.exit_code == 1
    a, b = json.loads(result.stdout)["jobs"]
    assert (a["state"], a["attempts"], a["exit_status"]) == ("failed", 1, 1)
    assert a["error"].startswith("context 99999: this model takes up to 2048 tokens")
    assert b["error"].endswith("does not exist; create it or choose another output")
    assert json.loads(result.stdout)["summary"] == {"failed": 2}


def test_a_budget_that_holds_no_job(tiny_gemma3: Path, tmp_path: Path) -> None:
    listed = write_list(tmp_path, row(str(tiny_gemma3), "a.litertlm"))
    [outcome] = run_batch(read_list(listed), 2, 200 * MIB)
    assert outcome.state is State.FAILED
    assert "of memory, 72 MiB are left for jobs; raise --memory" in outcome.error
    with pytest.raises(BatchError, match="memory 100 MiB: this process takes 128 MiB of it; raise --memory"):
        run_batch(read_list(listed), 2, 100 * MIB)


def test_an_interrupted_batch_ends_with_its_workers(tiny_gemma3: Path, tmp_path: Path) -> None:
    listed = write_list(tmp_path, *(row(str(tiny_gemma3), f"{name}.litertlm") for name in "abc"))
    command = [sys.executable, "-m", "gemma_edge.converter", "batch", str(listed), "--jobs", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as farm:
        child = child_converting(tmp_path / "a.litertlm")
        farm.send_signal(signal.SIGINT)
        _, said = farm.communicate(timeout=60)
    assert (farm.returncode, said.strip()) == (1, "Aborted!")
    assert not Path(f"/proc/{child}").exists()
    assert not (tmp_path / "c.litertlm").exists()


def test_after_a_stop_nothing_starts() -> None:
    processes = Processes()
    processes.stop()
    with pytest.raises(BatchError, match="stopped before it was done; run the list again"):
        processes.start([sys.executable, "-c", ""], {})


def test_only_some_of_a_list(tmp_path: Path) -> None:
    """And the table that says what became of them."""
    listed = write_list(tmp_path, row("x", "a.litertlm"), row("y", "b.litertlm"))
    result = batch(listed, "--only", "b.litertlm")
    assert result.exit_code == 1
    assert "b.litertlm │ failed" in result.stdout
    assert "y: neither a directory nor a repository" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("1 failed")
    result = batch(listed, "--only", "c")
    assert result.stderr == f"error: only c: no job of that name in {listed}; the first is a.litertlm\n"
    assert "such as 4GiB or 900MiB" in batch(listed, "--memory", "4").stderr
