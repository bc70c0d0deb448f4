"""Progress of long work: bytes, rate and time left, on a terminal only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

OnBytes = Callable[[int], None]
"""Called with every n bytes done, from any thread."""

Stage = Callable[[str, int], OnBytes]
"""Announces a stage by name and total bytes."""


def silent(_name: str, _total_bytes: int) -> OnBytes:
    """Report to nobody."""
    return lambda _n: None


@contextmanager
def bars(console: Console) -> Iterator[Stage]:
    """A bar for each stage on a terminal; `silent` where the output goes to a file or a pipe."""
    if not console.is_terminal:
        yield silent
        return
    with Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        speed_estimate_period=300,  # seconds: rounding with calibration moves in leaps, a layer takes minutes
    ) as progress:

        def stage(name: str, total_bytes: int) -> OnBytes:
            task = progress.add_task(name, total=total_bytes)
            return lambda n: progress.advance(task, n)

        yield stage
