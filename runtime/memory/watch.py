"""Watching a budget from inside: read after each stage of loading and before each call into the model.

Nothing here runs in a thread: an exception can only be raised where the caller is anyway, and memory that grows inside
a call is seen before the next one.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from gemma_edge.profiles.budget import MemoryBudget, OverBudget
from gemma_edge.profiles.footprint import Footprint, Part
from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.memory.cgroup_limit import CgroupLimit
from gemma_edge.runtime.memory.reading import MemoryReading, read_memory, read_memory_exact

OverBudgetAction = Literal["raise", "warn", "switch"]

_INTERVAL_S = 0.005  # a reading takes 0.05 ms
_RELEASE_INTERVAL_S = 1.0
_SWITCH_GRACE_S = 1.0  # until what another model held is released
# The kernel kills when it finds no page, page tables and its own memory included: stop a little before.
_CGROUP_HEADROOM_BYTES = 16 * MIB


class BudgetWarning(UserWarning):
    """A budget that does not hold, where the caller asked to go on."""


@dataclass
class LoadMarks:
    """How much memory was in use after each stage of loading: the first question when it is too much."""

    _marks: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mark("process before the engine")

    def mark(self, stage: str) -> None:
        """Note what is in use now, under the name of what has just been done."""
        self._marks.append((stage, read_memory().hard_bytes))

    def footprint(self, hard_bytes: int) -> Footprint:
        """Where `hard_bytes`, in use now, came from: by stage, and since the last one. All of it anonymous.

        A stage that gave memory back has no part; what is then unaccounted for is taken off the last part.
        """
        parts, seen = [], 0
        for stage, bytes_then in self._marks:
            grown = min(bytes_then, hard_bytes) - seen
            if grown > 0:
                parts.append(Part(stage, grown, 0, "measured"))
                seen += grown
        parts.append(Part("since loading", max(0, hard_bytes - seen), 0, "measured: KV cache pages, and what leaks"))
        return Footprint.of(parts)


class BudgetWatch:
    """Raises or warns when the process crosses its budget, and asks for mapped pages back before that.

    Args:
        subject: opens the message: "model.litertlm on phone-2gb".
        limit: the cgroup this process lives in, if it has one.
        release: gives mapped pages back; called at most once a second, while anonymous memory and mapped pages together
            exceed the budget.
        switch: makes do with less, where `action` says so, or returns False; called before a crossing is raised.
    """

    def __init__(
        self,
        subject: str,
        budget: MemoryBudget,
        marks: LoadMarks,
        limit: CgroupLimit | None,
        action: OverBudgetAction,
        release: Callable[[], None],
        switch: Callable[[], bool] = lambda: False,
    ) -> None:
        self._subject = subject
        self._budget = budget
        self._marks = marks
        self._limit = limit
        self._action = action
        self._release = release
        self._switch = switch
        self._next_check_s = self._next_release_s = 0.0
        self._warned = False

    def check(self) -> None:
        """Raises OverBudget with the stages of loading as parts, or warns once in the life of the engine."""
        now_s = time.monotonic()
        if now_s < self._next_check_s:
            return
        self._next_check_s = now_s + _INTERVAL_S
        reading = read_memory()
        if reading.total_bytes > self._budget.budget_bytes and now_s >= self._next_release_s:
            self._release()
            self._next_release_s = now_s + _RELEASE_INTERVAL_S
        if self._warned:  # pages are given back all the same
            return
        if not self._check_hard(reading):
            self._check_cgroup(reading)

    def _check_hard(self, reading: MemoryReading) -> bool:
        """Whether it was crossed, and somebody goes on nevertheless."""
        # The quick counters may be some hundred KiB off; the exact ones cost milliseconds.
        if reading.hard_bytes > self._budget.budget_bytes:
            exact_bytes = read_memory_exact().hard_bytes
            if exact_bytes > self._budget.budget_bytes:
                self._cross(self._marks.footprint(exact_bytes), self._budget)
                return True
        return False

    def _check_cgroup(self, reading: MemoryReading) -> None:
        if self._limit is None:
            return
        usable = MemoryBudget(max(1, self._limit.limit_bytes - _CGROUP_HEADROOM_BYTES))
        stuck_bytes = self._limit.stuck_bytes()
        if stuck_bytes > usable.budget_bytes:
            own = self._marks.footprint(reading.hard_bytes)
            others = Part("others in the cgroup, kernel", max(0, stuck_bytes - own.anon_bytes), 0, "measured")
            self._cross(Footprint.of((*own.parts, others)), usable)

    def _cross(self, footprint: Footprint, budget: MemoryBudget) -> None:
        error = OverBudget(f"{self._subject}, measured", footprint, budget, ())
        if self._action == "switch" and self._switch():
            warnings.warn(f"{error}; goes on with a smaller model", BudgetWarning, stacklevel=2)
            self._release()
            self._next_check_s = time.monotonic() + _SWITCH_GRACE_S
            return
        if self._action != "warn":
            raise error
        self._warned = True
        warnings.warn(str(error), BudgetWarning, stacklevel=2)
