"""The watch's bookkeeping, with readings and a clock made up; real memory is in test_engine_budget.py."""

import time
import warnings
from pathlib import Path

import pytest

from gemma_edge.profiles.budget import MemoryBudget, OverBudget
from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.memory import watch as module
from gemma_edge.runtime.memory.cgroup_limit import CgroupLimit
from gemma_edge.runtime.memory.reading import MemoryReading
from gemma_edge.runtime.memory.watch import BudgetWarning, BudgetWatch, LoadMarks, OverBudgetAction


class Process:
    """What /proc and the clock would say."""

    def __init__(self) -> None:
        self.anon_bytes = self.file_bytes = self.late_bytes = 0
        self.now_s = 0.0

    def read(self) -> MemoryReading:
        return MemoryReading(self.anon_bytes, 0, 0, self.file_bytes, 0)

    def read_exact(self) -> MemoryReading:
        return MemoryReading(self.anon_bytes - self.late_bytes, 0, 0, self.file_bytes, 0)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    found = Process()
    monkeypatch.setattr(module, "read_memory", found.read)
    monkeypatch.setattr(module, "read_memory_exact", found.read_exact)
    monkeypatch.setattr(time, "monotonic", lambda: found.now_s)
    return found


def marks(process: Process, *stages: int) -> LoadMarks:
    """Marks with so many MiB in use at each."""
    process.anon_bytes = stages[0] * MIB
    found = LoadMarks()
    for stage, used in enumerate(stages[1:], start=1):
        process.anon_bytes = used * MIB
        found.mark(f"stage {stage}")
    return found


@pytest.mark.parametrize(
    ("stages", "used", "expected"),
    [
        ((10, 30, 60), 100, {"process before the engine": 10, "stage 1": 20, "stage 2": 30, "since loading": 40}),
        ((10, 30, 60), 60, {"process before the engine": 10, "stage 1": 20, "stage 2": 30}),
        ((10, 30, 20), 50, {"process before the engine": 10, "stage 1": 20, "since loading": 20}),  # stage 2 gave back
        ((10, 30, 60), 25, {"process before the engine": 10, "stage 1": 15}),  # all gave back since
    ],
)
def test_where_memory_came_from(process: Process, stages: tuple[int, ...], used: int, expected: dict[str, int]) -> None:
    parts = marks(process, *stages).footprint(used * MIB).parts
    assert {part.name: part.anon_bytes // MIB for part in parts} == expected


def watched(
    process: Process, released: list[float], limit: CgroupLimit | None = None, action: OverBudgetAction = "raise"
) -> BudgetWatch:
    return BudgetWatch(
        "m on small",
        MemoryBudget(100 * MIB),
        marks(process, 10),
        limit,
        action,
        lambda: released.append(process.now_s),
    )


def test_pages_are_asked_back_once_a_second_while_the_sum_exceeds_the_budget(process: Process) -> None:
    released: list[float] = []
    watch = watched(process, released)
    process.file_bytes = 90 * MIB
    watch.check()
    process.file_bytes = 95 * MIB
    for tenth in range(1, 25):
        process.now_s = tenth / 10
        watch.check()
    assert released == [0.1, 1.1, 2.1]


def test_after_the_one_warning_pages_are_still_asked_back(process: Process) -> None:
    released: list[float] = []
    watch = watched(process, released, action="warn")
    process.anon_bytes = 101 * MIB
    with pytest.warns(BudgetWarning, match="m on small, measured: needs 101 MiB"):
        watch.check()
    with warnings.catch_warnings(action="error"):
        for second in range(1, 3):
            process.now_s = float(second)
            watch.check()
    assert released == [0, 1, 2]


def test_quick_counters_are_confirmed_before_anybody_is_stopped(process: Process) -> None:
    watch = watched(process, [])
    process.anon_bytes, process.late_bytes = 101 * MIB, 2 * MIB
    watch.check()
    process.late_bytes, process.now_s = 0, 1.0
    with pytest.raises(OverBudget, match=r"m on small, measured: needs 101 MiB .* the budget is 100 MiB, 1 MiB too"):
        watch.check()


def test_memory_is_not_read_at_every_step_of_a_fast_model(process: Process) -> None:
    watch = watched(process, [])
    watch.check()
    process.anon_bytes = 200 * MIB
    process.now_s = 0.004
    watch.check()
    process.now_s = 0.006
    with pytest.raises(OverBudget):
        watch.check()


def test_others_in_the_cgroup_count_against_its_limit(process: Process, tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text(str(150 * MIB))
    (tmp_path / "memory.stat").write_text(f"inactive_file {60 * MIB}\nactive_file 0\n")
    watch = watched(process, [], CgroupLimit(tmp_path, 105 * MIB, "memory.current"))
    with pytest.raises(OverBudget) as caught:
        watch.check()
    parts = {part.name: part.anon_bytes // MIB for part in caught.value.footprint.parts}
    assert parts == {"process before the engine": 10, "others in the cgroup, kernel": 80}
    assert "the budget is 89 MiB" in str(caught.value)
    (tmp_path / "memory.current").write_text(str(140 * MIB))
    process.now_s = 1.0
    watch.check()
