"""Peaks that were accepted, kept in a file beside the tests: growth is a failure long before the budget is crossed."""

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.sizes import format_bytes


class BaselineError(GemmaEdgeError):
    """The file is not one of baselines."""


@dataclass(frozen=True)
class Baseline:
    """`path` holds {"KEY": {"peak_bytes": N}}; with `update` it is written, not compared.

    growth_percent: by what a peak may exceed its baseline.
    """

    path: Path
    growth_percent: float
    update: bool

    def __post_init__(self) -> None:
        if not 0 <= self.growth_percent < 1000:
            raise BaselineError(f"growth is {self.growth_percent} %, expected 0 to 1000; the usual value is 10")

    def judge(self, key: str, peak_bytes: int) -> str | None:
        """What is wrong with this peak, or None. Raises BaselineError: the file cannot be read as a baseline."""
        try:
            if self.update:
                self._write(key, peak_bytes)
                return None
            accepted = self._read(self.path.read_bytes() if self.path.exists() else b"{}").get(key)
        except OSError as error:
            raise BaselineError(
                f"{self.path}: {error.strerror}, expected a file of accepted peaks; name another with "
                "--memory-budget-baseline"
            ) from error
        if accepted is None:
            return f"{self.path} has no baseline of {key}; run once with --memory-budget-update and commit the file"
        accepted_bytes: int = accepted["peak_bytes"]
        if peak_bytes <= accepted_bytes * (1 + self.growth_percent / 100):
            return None
        grown = peak_bytes / accepted_bytes - 1
        return (
            f"peak anonymous memory of {key} grew by {grown:.1%}, from {format_bytes(accepted_bytes)} to "
            f"{format_bytes(peak_bytes)}; {self.growth_percent:g} % are allowed, or accept it with "
            "--memory-budget-update"
        )

    def _write(self, key: str, peak_bytes: int) -> None:
        """Several test processes may write: the lock makes each keep what the others wrote."""
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            entries = self._read(file.read() or b"{}")
            entries[key] = {"peak_bytes": peak_bytes}
            file.truncate(0)
            file.write(f"{json.dumps(entries, indent=2, sort_keys=True)}\n".encode())

    def _read(self, text: bytes) -> dict[str, Any]:
        try:
            entries = json.loads(text)
            for entry in entries.values():
                if not isinstance(entry["peak_bytes"], int) or entry["peak_bytes"] < 1:
                    raise ValueError(entry)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BaselineError(
                f'{self.path}: found no JSON of {{"KEY": {{"peak_bytes": N}}}}; delete it and run with '
                "--memory-budget-update"
            ) from error
        return dict(entries)
