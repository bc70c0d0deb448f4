"""The door of the room: takes what happened, and tells of it in every form."""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_edge.runtime.formats.atomic import atomic_file
from gemma_edge.runtime.serve.events import Finished, Probe, State
from gemma_edge.runtime.serve.guard.rules import Rule
from gemma_edge.runtime.serve.hooks import Caller, Probing
from gemma_edge.runtime.serve.monitor.alerts import Alert, Alerts, Thresholds
from gemma_edge.runtime.serve.monitor.counters import Counters
from gemma_edge.runtime.serve.monitor.health import health
from gemma_edge.runtime.serve.monitor.metrics import PerformanceMetrics, QualityMetrics
from gemma_edge.runtime.serve.monitor.prometheus import exposition
from gemma_edge.runtime.serve.monitor.quality import quality
from gemma_edge.runtime.serve.monitor.summary import PerformanceSummary, QualitySummary

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

KEPT = 1000  # requests


class Monitor:
    """The last requests as figures, without their texts. For one thread at a time. Also the server's `Monitor` hook."""

    def __init__(
        self,
        model_name: str,
        *,
        thresholds: Thresholds | None = None,
        kept: int = KEPT,
        rules: Sequence[Rule] = (),
        tell: Callable[[Alert, bool], None] | None = None,
        usage: Callable[[Caller], Mapping[str, Any]] | None = None,
        has_metrics: bool = False,
        needs_key: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """kept: requests that are remembered. rules: of the content policy, for the safety score.

        tell: takes each alert and whether it ended, such as a `Webhook`. usage: /v1/usage of a caller, such as
        `Guard.usage_json`. has_metrics: whether there is /metrics. needs_key: whether the page has to ask for one.
        """
        self.model_name = model_name
        self.has_metrics = has_metrics
        self.needs_key = needs_key
        self.usage = usage
        self._rules = tuple(rules)
        self._clock = clock
        self._performance: deque[PerformanceMetrics] = deque(maxlen=kept)
        self._quality: deque[QualityMetrics] = deque(maxlen=kept)
        self._counters = Counters()
        self._alerts = Alerts(thresholds or Thresholds(), tell, clock)

    def finished(self, event: Finished) -> None:
        """Take a request of the server. Its texts are scored and forgotten."""
        self._counters.add(event)
        if (metrics := PerformanceMetrics.of(event)) is not None:
            self.add(metrics)
        if event.status < 400 and event.prompt_text and event.reply_text:
            self.add_quality(quality(event.prompt_text, event.reply_text, rules=self._rules))

    def add(self, metrics: PerformanceMetrics) -> None:
        """Take a request that was run."""
        self._performance.append(metrics)
        recent = self._alerts.thresholds.requests
        self._alerts.update([self._performance[i] for i in range(-min(recent, len(self._performance)), 0)])

    def add_quality(self, metrics: QualityMetrics) -> None:
        """Take what was counted of a reply."""
        self._quality.append(metrics)

    def performance_summary(self, last_n: int = 100) -> PerformanceSummary:
        """Of the last so many requests."""
        return PerformanceSummary.of(list(self._performance)[-last_n:])

    def quality_summary(self, last_n: int = 100) -> QualitySummary:
        """Of the last so many replies."""
        return QualitySummary.of(list(self._quality)[-last_n:])

    def check_alerts(self) -> list[Alert]:
        """The alerts that hold now, the gravest first."""
        return self._alerts.current

    def health(self, probe: Probe) -> dict[str, Any]:
        """The JSON of /health."""
        return health(probe, self._alerts.current, self._clock())

    def prometheus(self, state: State | None = None) -> str:
        """Figures since the start, in Prometheus' text format."""
        return exposition(self._counters, state, self._alerts.current)

    def to_json(self) -> dict[str, Any]:
        """Everything that is remembered, in the documents' form. export_timestamp: seconds since 1970."""
        return {
            "model_name": self.model_name,
            "export_timestamp": self._clock(),
            "performance_metrics": [asdict(each) for each in self._performance],
            "quality_metrics": [asdict(each) for each in self._quality],
            "performance_summary": asdict(self.performance_summary()),
            "quality_summary": asdict(self.quality_summary()),
            "current_alerts": [asdict(each) for each in self._alerts.current],
        }

    def export_metrics(self, path: Path) -> None:
        """Write it to a file, whole or not at all. Raises OutputError."""
        with atomic_file(path) as file:
            file.write(json.dumps(self.to_json(), indent=2).encode())

    def routes(self, state: Probing) -> "Sequence[BaseRoute]":
        """The server's pages: `/`, /v1/stats, /v1/usage, and /metrics where it is asked for."""
        from gemma_edge.runtime.serve.monitor.routes import routes

        return routes(self, state)
