"""What somebody should look at: the last requests held against thresholds."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.serve.monitor.metrics import PerformanceMetrics
from gemma_edge.runtime.serve.monitor.summary import PerformanceSummary

_log = logging.getLogger("gemma_edge.monitor")


class Severity(StrEnum):
    """How soon."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Subject(StrEnum):
    """What an alert is about, in the documents' words."""

    ERROR = "error"
    PERFORMANCE = "performance"
    MEMORY = "memory"
    RELIABILITY = "reliability"


class ThresholdError(GemmaEdgeError, ValueError):
    """A threshold that nothing can be held against."""


@dataclass(frozen=True)
class Thresholds:
    """None: not looked at. The defaults are the documents'. Of the last `requests` together, memory of the last one."""

    max_response_s: float | None = 10.0
    max_memory_mb: float | None = 8192.0
    min_tokens_per_s: float | None = 5.0
    min_success_rate: float | None = 0.95
    requests: int = 10

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "Thresholds":
        """Of texts such as "max_response_s=5" or "max_memory_mb=off"; what they leave out stays as it is.

        Raises ThresholdError.
        """
        known = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for text in texts:
            name, _, value = text.partition("=")
            if name not in known:
                raise ThresholdError(f'"{text}" names no threshold, expected one of {", ".join(known)}')
            try:
                values[name] = int(value) if name == "requests" else None if value == "off" else float(value)
            except ValueError:
                raise ThresholdError(f'"{text}" has no number, expected {name}=NUMBER') from None
        return cls(**values)

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise ThresholdError(f"{name} is {value}, expected more than 0, or None to not look at it")


@dataclass(frozen=True)
class Alert:
    """message: found against threshold, one line. timestamp: seconds since 1970 when it was first seen."""

    type: Subject
    message: str
    severity: Severity
    timestamp: float


def check(recent: Sequence[PerformanceMetrics], thresholds: Thresholds, now: float) -> list[Alert]:
    """The alerts of these requests, the last `thresholds.requests` of them."""
    recent = recent[-thresholds.requests :]
    if not recent:
        return []
    summary = PerformanceSummary.of(recent)
    found: list[Alert] = []

    def add(subject: Subject, severity: Severity, message: str) -> None:
        found.append(Alert(subject, message, severity, now))

    if recent[-1].error_message is not None and not recent[-1].success:
        add(Subject.ERROR, Severity.HIGH, f"the last request failed: {recent[-1].error_message}")
    rate, least = summary.success_rate, thresholds.min_success_rate
    if least is not None and rate is not None and rate < least:
        add(Subject.RELIABILITY, Severity.HIGH, f"{rate:.1%} of the last {len(recent)} succeeded, expected {least:.1%}")
    memory, most_mb = recent[-1].memory_usage_mb, thresholds.max_memory_mb
    if most_mb is not None and memory > most_mb:
        add(Subject.MEMORY, Severity.HIGH, f"{memory:.0f} MiB of memory, expected at most {most_mb:.0f} MiB")
    response, most_s = summary.avg_response_time, thresholds.max_response_s
    if most_s is not None and response is not None and response > most_s:
        add(Subject.PERFORMANCE, Severity.MEDIUM, f"{response:.1f} s for a reply, expected at most {most_s:g} s")
    speed, least_speed = summary.avg_tokens_per_second, thresholds.min_tokens_per_s
    if least_speed is not None and speed is not None and speed < least_speed:
        add(Subject.PERFORMANCE, Severity.LOW, f"{speed:.1f} tokens/s, expected at least {least_speed:g}")
    return found


class Alerts:
    """The alerts that hold now. Each is told once when it begins, and once when it ends.

    tell: takes it beside the log, with whether it ended.
    """

    def __init__(
        self,
        thresholds: Thresholds,
        tell: Callable[[Alert, bool], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.thresholds = thresholds
        self._tell = tell
        self._clock = clock
        self._current: dict[tuple[Subject, Severity], Alert] = {}  # no two thresholds share both

    @property
    def current(self) -> list[Alert]:
        """The gravest first."""
        order = list(Severity)
        return sorted(self._current.values(), key=lambda alert: order.index(alert.severity))

    def update(self, recent: Sequence[PerformanceMetrics]) -> None:
        """After a request: `recent` ends with it."""
        now = self._clock()
        before, self._current = self._current, {}
        for alert in check(recent, self.thresholds, now):
            key = alert.type, alert.severity
            began = before.pop(key, None)
            self._current[key] = alert if began is None else replace(alert, timestamp=began.timestamp)
            if began is None:
                _log.warning("alert (%s, %s): %s", alert.severity.value, alert.type.value, alert.message)
                self._send(alert, False)
        for alert in before.values():
            _log.info("alert ended (%s, %s): %s", alert.severity.value, alert.type.value, alert.message)
            self._send(alert, True)

    def _send(self, alert: Alert, has_ended: bool) -> None:
        if self._tell is not None:
            self._tell(alert, has_ended)
