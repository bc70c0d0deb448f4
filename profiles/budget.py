"""The limit, the check, and the refusal. What the limit means is defined in profiles/FORMAT.md."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.footprint import Footprint
from gemma_edge.profiles.sizes import format_bytes

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Suggestion:
    """A change that was computed, not guessed: what to change, and the footprint it leads to.

    note: what else to know of it.
    """

    label: str
    footprint: Footprint
    note: str = ""

    def __str__(self) -> str:
        return f"{self.label} ({self.note})" if self.note else self.label


class OverBudget(GemmaEdgeError):  # noqa: N818  the name says what happened; "OverBudgetError" says it twice
    """The planned or measured memory does not fit. Carries what a table or a program needs to explain it."""

    def __init__(
        self, subject: str, footprint: Footprint, budget: "MemoryBudget", suggestions: tuple[Suggestion, ...]
    ) -> None:
        self.subject = subject
        self.footprint = footprint
        self.budget = budget
        self.suggestions = suggestions
        super().__init__(
            f"{subject}: needs {format_bytes(footprint.total_bytes)} "
            f"({format_bytes(footprint.anon_bytes)} anonymous + {format_bytes(footprint.file_bytes)} file-backed), "
            f"the budget is {format_bytes(budget.budget_bytes)}, {format_bytes(self.missing_bytes)} too much; "
            f"{_advice(suggestions)}"
        )

    @property
    def missing_bytes(self) -> int:
        return self.footprint.total_bytes - self.budget.budget_bytes


@dataclass(frozen=True)
class MemoryBudget:
    """What the whole process may use during load, prefill and decode."""

    budget_bytes: int

    def __post_init__(self) -> None:
        if self.budget_bytes <= 0:
            raise ValueError(f"budget_bytes: found {self.budget_bytes}; expected a positive number of bytes")

    def fits(self, footprint: Footprint) -> bool:
        """Hot file pages count too: without room for them decode reads weights from storage for every token."""
        return footprint.total_bytes <= self.budget_bytes

    def check(self, footprint: Footprint, subject: str, suggestions: Iterable[tuple[str, Footprint]] = ()) -> None:
        """Return when `footprint` fits; otherwise raise OverBudget.

        `subject` opens the message: "e4b-int8 at 4096 tokens on phone-2gb". `suggestions` are (label, Footprint) in
        the order of least loss; those that do not fit either are left out.
        """
        if self.fits(footprint):
            return
        fitting = tuple(Suggestion(label, other) for label, other in suggestions if self.fits(other))
        raise OverBudget(subject, footprint, self, fitting)


def footprint_table(footprint: Footprint, budget: MemoryBudget | None = None) -> "Table":
    """The parts and their sum, and with a budget what is left of it, as a table for a terminal."""
    from rich.table import Column, Table

    table = Table(Column("part", no_wrap=True), expand=True)
    for title in ("anonymous", "file-backed", "total"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("source", ratio=1, no_wrap=True, overflow="ellipsis")  # has to do with what the others leave
    for part in footprint.parts:
        table.add_row(part.name, *_sizes(part.anon_bytes, part.file_bytes), part.source)
    table.add_section()
    table.add_row("needed", *_sizes(footprint.anon_bytes, footprint.file_bytes), "")
    if budget is None:
        return table
    table.add_row("budget", "", "", format_bytes(budget.budget_bytes), "")
    left_bytes = budget.budget_bytes - footprint.total_bytes
    verdict = ("left", "green") if left_bytes >= 0 else ("missing", "red")
    table.add_row(verdict[0], "", "", format_bytes(abs(left_bytes)), "", style=verdict[1])
    return table


def refusal_tables(refused: OverBudget) -> Iterator["Table"]:
    """What was refused, part by part, and each suggestion with what it would leave, best first."""
    from rich.table import Table

    yield footprint_table(refused.footprint, refused.budget)
    if refused.suggestions:
        table = Table("what would fit, cheapest loss first")
        for title in ("total", "left"):
            table.add_column(title, justify="right", no_wrap=True)
        for suggestion in refused.suggestions:
            needed_bytes = suggestion.footprint.total_bytes
            left_bytes = refused.budget.budget_bytes - needed_bytes
            table.add_row(str(suggestion), format_bytes(needed_bytes), format_bytes(left_bytes))
        yield table


def _sizes(anon_bytes: int, file_bytes: int) -> tuple[str, str, str]:
    return format_bytes(anon_bytes), format_bytes(file_bytes), format_bytes(anon_bytes + file_bytes)


def _advice(suggestions: tuple[Suggestion, ...]) -> str:
    if not suggestions:
        return "choose a smaller model, a shorter context or a larger profile"
    best, *others = suggestions
    more = f" ({len(others)} more ways fit)" if len(others) > 1 else " (1 more way fits)" if others else ""
    return f"{best} would need {format_bytes(best.footprint.total_bytes)}{more}"
