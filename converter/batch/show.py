"""A batch as one table, on a terminal while it runs; and as JSON values."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from gemma_edge.converter.batch.work import Outcome, State
from gemma_edge.converter.printing import as_it_is
from gemma_edge.profiles.sizes import format_bytes

_ROWS = 12
_STYLES = {State.FAILED: "red", State.RUNNING: "bold"}


def values_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How many of each, and every job."""
    return {"jobs": [outcome.values() for outcome in outcomes], "summary": _counted(outcomes)}


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """A row for each job, and below it how many there are of each kind."""
    counts = ", ".join(f"{count} {state}" for state, count in _counted(outcomes).items())
    table = Table("job", "state", caption=counts, caption_justify="left")
    for heading in ("seconds", "planned", "peak RSS"):
        table.add_column(heading, justify="right")
    table.add_column("why")
    for job in outcomes:
        planned, peak = (format_bytes(n) if n else "" for n in (job.planned_bytes, job.peak_rss_bytes))
        again = f" (started {job.attempts} times)" if job.attempts > 1 else ""
        seconds = f"{job.seconds:.1f}" if job.seconds else ""
        why = as_it_is((job.error or job.reason) + again)
        table.add_row(as_it_is(job.name), job.state, seconds, planned, peak, why, style=_STYLES.get(job.state))
    return table


def _counted(outcomes: Sequence[Outcome]) -> dict[str, int]:
    counts = Counter(outcome.state for outcome in outcomes)
    return {state.value: counts[state] for state in State if counts[state]}


@contextmanager
def live_table(names: Sequence[str], console: Console) -> Iterator[Callable[[Outcome], None]]:
    """Takes outcomes, from any thread, and shows those that run or failed last; only on a terminal."""
    if not console.is_terminal:
        yield lambda _outcome: None
        return
    latest: dict[str, Outcome] = {}
    lock = threading.Lock()

    def shown() -> Table:
        interesting = [o for o in latest.values() if o.state in (State.RUNNING, State.FAILED)][-_ROWS:]
        table = table_of(interesting)
        done = sum(o.state in (State.CONVERTED, State.UNCHANGED, State.FAILED) for o in latest.values())
        table.caption = f"{done} of {len(names)} done"
        return table

    with Live(console=console, transient=True, auto_refresh=False) as live:

        def show(outcome: Outcome) -> None:
            with lock:
                latest.pop(outcome.name, None)
                latest[outcome.name] = outcome
                live.update(shown(), refresh=True)

        yield show
