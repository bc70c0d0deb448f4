"""Requests as the server reports them, made up."""

from dataclasses import replace

from gemma_edge.runtime.serve.events import Finished, Kind, Probe, State
from gemma_edge.runtime.serve.monitor.metrics import MIB

REQUEST = Finished(
    id="r",
    kind=Kind.CHAT,
    model="tiny",
    started_at=1000.0,
    caller="someone",
    status=200,
    finish_reason="stop",
    prompt_tokens=20,
    cached_tokens=5,
    generated_tokens=3,
    wait_s=0.5,
    first_token_s=1.0,
    token_s=(0.1, 0.3),
    total_s=2.0,
    hard_bytes=300 * MIB,
)

STATE = State(
    model="tiny",
    started_at=900.0,
    active=1,
    waiting=2,
    most_active=4,
    most_waiting=64,
    context_tokens=512,
    kv_bytes=7 * MIB,
    snapshot_bytes=0,
    hard_bytes=300 * MIB,
    file_bytes=80 * MIB,
    budget_bytes=1000 * MIB,
)


def probe(response_s: float = 0.1, error: str | None = None, **changes: object) -> Probe:
    """A probe of a state like STATE."""
    return Probe(state=replace(STATE, **changes), response_s=response_s, error=error)  # type: ignore[arg-type]
