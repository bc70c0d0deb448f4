"""Each fuzzer for some seconds, and that what it looks for is found."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.profiles.errors import GemmaEdgeError
from tools.fuzzing import LitterError, Verdict, WrongError, attempt, fuzz, mutated, mutated_json, to_json


@pytest.mark.parametrize(("fuzzer", "cases"), [("fuzz_bundles", 12), ("fuzz_checkpoints", 16), ("fuzz_media", 40)])
def test_a_short_run(fuzzer: str, cases: int, repository: Path, tmp_path: Path) -> None:
    """In a process of its own: a fuzzer forks, and this one has threads."""
    command = [sys.executable, "-m", f"tools.{fuzzer}", "--cases", str(cases), "--seed", "14"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(line.strip().split(" ", 1)[::-1] for line in done.stdout.splitlines())
    assert counts.keys() == {Verdict.WORKED, Verdict.REFUSED}
    assert sum(map(int, counts.values())) == cases


def refuse(message: str) -> Callable[[], None]:
    def work() -> None:
        raise GemmaEdgeError(message)

    return work


def fail(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "verdict", "said"),
    [
        (lambda: None, Verdict.WORKED, ""),
        (refuse("a file: found x, expected y; mend it"), Verdict.REFUSED, "a file: found x, expected y; mend it"),
        (refuse(""), Verdict.LINE, ""),
        (fail(ZeroDivisionError("division by zero")), Verdict.TRACEBACK, "ZeroDivisionError: division by zero"),
        (fail(MemoryError()), Verdict.TRACEBACK, "MemoryError"),
        (fail(LitterError("out.partial")), Verdict.LITTER, "left behind: out.partial"),
        (fail(WrongError("5, expected 4")), Verdict.WRONG, "wrong: 5, expected 4"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), Verdict.CRASH, ""),
        (lambda: os._exit(77), Verdict.CRASH, ""),
        (lambda: time.sleep(60), Verdict.HANG, "Timeout"),
        (lambda: bytearray(b"x") * (1 << 27) and None, Verdict.MEMORY, ""),
    ],
)
def test_what_becomes_of_a_case(work: Callable[[], None], verdict: Verdict, said: str) -> None:
    outcome = attempt(work, 2.0 if verdict is Verdict.HANG else 30.0, spare_bytes=64 << 20)
    assert outcome.verdict is verdict
    assert said in outcome.said


def test_what_a_hanging_case_has_started_ends_with_it(tmp_path: Path) -> None:
    def work() -> None:
        subprocess.run(["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"], check=False)

    assert attempt(work, 0.7).verdict is Verdict.HANG
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        time.sleep(0.05)
    pytest.fail("it still runs")


def test_cases_repeat_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    made: list[bytes] = []

    def case(rng: random.Random, folder: Path) -> Callable[[], None]:
        made.append(rng.randbytes(8))
        (folder / "file").touch()
        return refuse("no; mend it") if made[-1][0] % 2 else lambda: None

    shown: list[str] = []
    counts = fuzz(case, cases=6, seed=3, show=shown.append)
    first = list(made)
    made.clear()
    fuzz(case, cases=2, seed=3, first=4, show=shown.append)
    assert made == first[4:]
    assert counts.total() == 6
    assert counts.keys() <= {Verdict.WORKED, Verdict.REFUSED}
    assert shown == []
    assert list(tmp_path.glob("fuzz-*")) == []


def test_mutations_change_something_and_repeat() -> None:
    data = bytes(range(256)) * 8
    assert len({mutated(data, random.Random(seed)) for seed in range(300)}) > 250
    assert mutated(data, random.Random(5)) == mutated(data, random.Random(5))
    value = {"a": [1, 2, {"b": "c"}], "d": None, "e": 0.5}
    found = {to_json(mutated_json(value, random.Random(seed))) for seed in range(300)}
    assert len(found) > 150
    assert value == {"a": [1, 2, {"b": "c"}], "d": None, "e": 0.5}
