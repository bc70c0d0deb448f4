"""Routes of the monitor: the page at `/`, /v1/stats, /v1/usage, /metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gemma_edge.runtime.serve.events import State
from gemma_edge.runtime.serve.hooks import Caller, Probing
from gemma_edge.runtime.serve.monitor.alerts import Alert
from gemma_edge.runtime.serve.monitor.prometheus import CONTENT_TYPE
from gemma_edge.runtime.serve.monitor.summary import PerformanceSummary, QualitySummary
from gemma_edge.runtime.serve.page.page import page


class Figures(Protocol):
    """What is shown."""

    has_metrics: bool
    needs_key: bool
    usage: Callable[[Caller], Mapping[str, Any]] | None

    def performance_summary(self) -> PerformanceSummary:
        """Of the last requests."""

    def quality_summary(self) -> QualitySummary:
        """Of the last replies."""

    def check_alerts(self) -> list[Alert]:
        """That hold now."""

    def prometheus(self, state: State) -> str:
        """A scrape."""


def routes(figures: Figures, state: Probing) -> Sequence[Route]:
    """`/` has no key asked of it; it holds nothing but itself.

    state: called in a thread, since it reads how much of each mapped file is in memory.
    """

    async def shown(_request: Request) -> Response:
        html, policy = page(needs_key=figures.needs_key)
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": policy, **_SAFE})

    async def stats(_request: Request) -> Response:
        return JSONResponse(
            {
                "object": "stats",
                "state": asdict(await run_in_threadpool(state)),
                "performance": asdict(figures.performance_summary()),
                "quality": asdict(figures.quality_summary()),
                "alerts": [asdict(alert) for alert in figures.check_alerts()],
            },
            headers=_SAFE,
        )

    async def usage(request: Request) -> Response:
        assert figures.usage is not None
        return JSONResponse(dict(figures.usage(request.state.caller)), headers=_SAFE)

    async def metrics(_request: Request) -> Response:
        return Response(figures.prometheus(await run_in_threadpool(state)), headers={"Content-Type": CONTENT_TYPE})

    found = [Route("/", shown), Route("/v1/stats", stats)]
    found += [Route("/v1/usage", usage)] if figures.usage is not None else []
    return [*found, *([Route("/metrics", metrics)] if figures.has_metrics else [])]


_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
