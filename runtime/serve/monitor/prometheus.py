"""Figures in Prometheus' text format 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from gemma_edge.runtime.serve.events import State
from gemma_edge.runtime.serve.monitor.alerts import Alert, Subject
from gemma_edge.runtime.serve.monitor.counters import Counters, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "gemma_edge_"


def exposition(counters: Counters, state: State | None, alerts: Sequence[Alert]) -> str:
    """The whole page. state: None where there is no server."""
    requests = (({"kind": kind, "status": str(status)}, n) for (kind, status), n in counters.requests.items())
    lines = [
        *_family("requests_total", "counter", "Requests that have ended.", requests),
        *_family("refusals_total", "counter", "Refused or broken off.", _by("code", counters.refusals)),
        *_family("tokens_total", "counter", "By what became of them.", _by("type", counters.tokens)),
        *_histogram("wait_seconds", "Until a request had its turn.", counters.wait),
        *_histogram("first_token_seconds", "From a request's arrival to its first token.", counters.first_token),
        *_histogram("token_seconds", "Each token after the first.", counters.per_token),
        *_histogram("request_seconds", "Requests that were answered, from arrival to end.", counters.reply),
        *_family(
            "alerts", "gauge", "Alerts that hold now.",
            (({"type": each.value}, sum(alert.type is each for alert in alerts)) for each in Subject),
        ),
    ]  # fmt: skip
    if state is not None:
        lines += _family("info", "gauge", "The model.", [({"model": state.model}, 1)])
        for name, what, value in _gauges(state):
            lines += _family(name, "gauge", what, [({}, value)])
    return "\n".join(lines) + "\n"


def _gauges(state: State) -> list[tuple[str, str, float]]:
    found = [
        ("start_time_seconds", "When the server began, seconds since 1970.", state.started_at),
        ("active_requests", "Requests that are being answered.", state.active),
        ("active_requests_limit", "That may be at once.", state.most_active),
        ("waiting_requests", "Requests that wait for their turn.", state.waiting),
        ("waiting_requests_limit", "That may wait.", state.most_waiting),
        ("context_tokens", "Tokens that a chat may have.", state.context_tokens),
        ("memory_bytes", "Anonymous and shared memory of the process.", state.hard_bytes),
        ("memory_file_bytes", "File pages of the process, which the kernel may drop.", state.file_bytes),
        ("kv_bytes", "Keys and values of all slots.", state.kv_bytes),
        ("snapshot_bytes", "Copies that let a chat go back.", state.snapshot_bytes),
    ]
    if state.budget_bytes is not None:
        found.append(("memory_budget_bytes", "The profile's budget.", state.budget_bytes))
    return found


def _by(label: str, counts: Mapping[str, int]) -> Iterable[tuple[Mapping[str, str], float]]:
    return (({label: name}, count) for name, count in counts.items())


def _family(
    name: str, kind: str, what: str, samples: Iterable[tuple[Mapping[str, str], float]], suffix: str = ""
) -> list[str]:
    head = [] if suffix else [f"# HELP {_PREFIX}{name} {what}", f"# TYPE {_PREFIX}{name} {kind}"]
    return head + [f"{_PREFIX}{name}{_labels(labels)} {_number(value)}" for labels, value in samples]


def _histogram(name: str, what: str, histogram: Histogram) -> list[str]:
    bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    counts = list(accumulate(histogram.counts))
    return [
        f"# HELP {_PREFIX}{name} {what}",
        f"# TYPE {_PREFIX}{name} histogram",
        *(f"{_PREFIX}{name}_bucket{_labels({'le': le})} {count}" for le, count in zip(bounds, counts, strict=True)),
        f"{_PREFIX}{name}_sum {_number(histogram.sum)}",
        f"{_PREFIX}{name}_count {counts[-1]}",
    ]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return repr(float(value)) if isinstance(value, float) else str(value)
