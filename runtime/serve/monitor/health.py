"""Whether the server is well, with every reason why not. Tells nothing of anybody's requests."""

from collections.abc import Sequence
from typing import Any

from gemma_edge.runtime.serve.events import Probe
from gemma_edge.runtime.serve.monitor.alerts import Alert, Severity
from gemma_edge.runtime.serve.monitor.metrics import MIB

SLOW_S = 5.0  # the documents': a probe that takes longer is degraded
_NEAR_BUDGET = 0.95


def health(probe: Probe, alerts: Sequence[Alert], now: float) -> dict[str, Any]:
    """The documents' fields and more: status, reasons, response_time (s), memory_usage (MiB), errors.

    unhealthy: it does not answer. degraded: it does, but slowly, near a bound, or with an alert above "low".
    """
    state = probe.state
    errors = [probe.error] if probe.error is not None else []
    if state.is_stopping:
        errors.append("the server is being stopped")
    reasons = list(errors)
    if probe.response_s > SLOW_S:
        reasons.append(f"one token took {probe.response_s:.1f} s, expected at most {SLOW_S:g} s")
    if state.budget_bytes is not None and state.hard_bytes > _NEAR_BUDGET * state.budget_bytes:
        found, most = state.hard_bytes / MIB, state.budget_bytes / MIB
        reasons.append(f"{found:.0f} MiB of memory, of a budget of {most:.0f} MiB")
    if state.waiting >= state.most_waiting:
        reasons.append(f"the queue is full: {state.waiting} requests wait")
    reasons += [alert.message for alert in alerts if alert.severity is not Severity.LOW]
    return {
        "status": "unhealthy" if errors else "degraded" if reasons else "healthy",
        "reasons": reasons,
        "errors": errors,
        "model": state.model,
        "model_loaded": probe.error is None,
        "response_time": probe.response_s,
        "memory_usage": state.hard_bytes / MIB,
        "memory_budget": None if state.budget_bytes is None else state.budget_bytes / MIB,
        "active": state.active,
        "waiting": state.waiting,
        "uptime": now - state.started_at,
    }
