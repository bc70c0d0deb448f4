"""What the monitor makes of requests: figures, alerts, health, and the forms it tells them in."""

import json
import logging
import statistics
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gemma_edge.runtime.serve.errors import Code
from gemma_edge.runtime.serve.guard.policy import Direction, Policy
from gemma_edge.runtime.serve.hooks import Caller
from gemma_edge.runtime.serve.monitor.alerts import Alert, ThresholdError, Thresholds
from gemma_edge.runtime.serve.monitor.metrics import PerformanceMetrics, QualityMetrics
from gemma_edge.runtime.serve.monitor.monitor import Monitor
from gemma_edge.runtime.serve.monitor.summary import PerformanceSummary, Spread
from tests.runtime.serve.monitor.figures import REQUEST, STATE, probe


class Clock:
    """A time that only a test moves."""

    now = 2000.0

    def __call__(self) -> float:
        return self.now


def _metrics(**changes: Any) -> PerformanceMetrics:
    found = PerformanceMetrics.of(REQUEST)
    assert found is not None
    return replace(found, **changes)


def test_the_documents_fields_come_first_and_in_their_order() -> None:
    names = [field.name for field in fields(PerformanceMetrics)]
    assert names[:10] == [
        "timestamp", "response_time", "memory_usage_mb", "gpu_memory_mb", "token_count", "tokens_per_second",
        "model_name", "input_length", "success", "error_message",
    ]  # fmt: skip
    names = [field.name for field in fields(QualityMetrics)]
    assert names[:5] == ["relevance_score", "coherence_score", "safety_score", "factual_accuracy", "user_satisfaction"]


def test_a_request_becomes_figures() -> None:
    assert _metrics() == PerformanceMetrics(
        timestamp=1002.0,
        response_time=2.0,
        memory_usage_mb=300.0,
        gpu_memory_mb=None,
        token_count=3,
        tokens_per_second=5.0,
        model_name="tiny",
        input_length=20,
        success=True,
        error_message=None,
        first_token_s=1.0,
        wait_s=0.5,
        token_s=(0.1, 0.3),
    )


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (200, None, (True, None)),
        (500, Code.GENERATION_ERROR, (False, "GENERATION_ERROR")),
        (503, Code.OVER_BUDGET, (False, "over_memory_budget")),
        (400, Code.CONTENT_FILTERED, None),
        (429, Code.RATE_LIMIT_EXCEEDED, None),
        (200, Code.CANCELLED, None),
    ],
)
def test_only_what_the_server_did_counts_for_or_against_it(status: int, code: Code | None, expected: object) -> None:
    found = PerformanceMetrics.of(replace(REQUEST, status=status, error_code=code))
    assert (found and (found.success, found.error_message)) == expected


def test_one_sample_is_its_own_percentiles() -> None:
    summary = PerformanceSummary.of([_metrics(token_s=(0.25,))])
    assert summary.p95_response_time == summary.avg_response_time == 2.0
    assert summary.first_token == Spread(1.0, 1.0, 1.0, 1.0)
    assert summary.per_token == Spread(0.25, 0.25, 0.25, 0.25)


def test_nothing_is_none_and_not_zero() -> None:
    summary = PerformanceSummary.of([])
    assert (summary.total_requests, summary.total_tokens) == (0, 0)
    others = [
        getattr(summary, field.name) for field in fields(summary) if field.name.startswith(("avg", "p95", "succ"))
    ]
    assert others.count(None) == len(others) - 1  # successful_requests is 0
    failed = PerformanceSummary.of([_metrics(success=False, error_message="GENERATION_ERROR")])
    assert (failed.success_rate, failed.avg_response_time, failed.peak_memory_mb) == (0.0, None, 300.0)


def test_percentiles_agree_with_another_library() -> None:
    numbers = np.random.default_rng(5).exponential(size=200).tolist()
    found = Spread.of(numbers)
    cuts = statistics.quantiles(numbers, n=100, method="inclusive")
    assert found is not None
    assert [found.average, found.p50, found.p95, found.p99] == pytest.approx(
        [statistics.fmean(numbers), statistics.median(numbers), cuts[94], cuts[98]]
    )


def test_the_ring_forgets_and_a_summary_looks_at_its_end() -> None:
    monitor = Monitor("tiny", kept=5)
    for number in range(8):
        monitor.add(_metrics(token_count=number))
    assert monitor.performance_summary().total_tokens == 3 + 4 + 5 + 6 + 7
    assert monitor.performance_summary(2).total_tokens == 6 + 7
    assert monitor.performance_summary(2).total_requests == 2


def _requests(monitor: Monitor, count: int, **changes: Any) -> None:
    for _ in range(count):
        monitor.add(_metrics(**changes))


@pytest.mark.parametrize(
    ("changes", "alert"),
    [
        ({"response_time": 10.5}, ("performance", "medium", "10.5 s for a reply, expected at most 10 s")),
        ({"memory_usage_mb": 8193.0}, ("memory", "high", "8193 MiB of memory, expected at most 8192 MiB")),
        ({"tokens_per_second": 4.9}, ("performance", "low", "4.9 tokens/s, expected at least 5")),
    ],
)
def test_each_threshold_of_the_documents_alerts(changes: dict[str, float], alert: tuple[str, str, str]) -> None:
    monitor = Monitor("tiny")
    _requests(monitor, 10)
    assert monitor.check_alerts() == []
    _requests(monitor, 10, **changes)
    assert [(each.type, each.severity, each.message) for each in monitor.check_alerts()] == [alert]
    _requests(monitor, 10)
    assert monitor.check_alerts() == []


def test_failures_alert_until_ten_replies_later() -> None:
    monitor = Monitor("tiny")
    _requests(monitor, 9)
    _requests(monitor, 1, success=False, error_message="GENERATION_ERROR")
    assert [(each.type, each.severity, each.message) for each in monitor.check_alerts()] == [
        ("error", "high", "the last request failed: GENERATION_ERROR"),
        ("reliability", "high", "90.0% of the last 10 succeeded, expected 95.0%"),
    ]
    _requests(monitor, 1)
    assert [each.type for each in monitor.check_alerts()] == ["reliability"]
    _requests(monitor, 9)
    assert monitor.check_alerts() == []


def test_an_alert_is_told_once_when_it_begins_and_once_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[Alert, bool]] = []
    clock = Clock()
    monitor = Monitor("tiny", tell=lambda alert, ended: told.append((alert, ended)), clock=clock)
    with caplog.at_level(logging.INFO, logger="gemma_edge.monitor"):
        _requests(monitor, 1, memory_usage_mb=9000.0)
        clock.now += 5
        _requests(monitor, 3, memory_usage_mb=9001.0)
        assert [each.timestamp for each in monitor.check_alerts()] == [2000.0]
        _requests(monitor, 1)
    assert [(alert.message, ended) for alert, ended in told] == [
        ("9000 MiB of memory, expected at most 8192 MiB", False),
        ("9001 MiB of memory, expected at most 8192 MiB", True),
    ]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "alert (high, memory): 9000 MiB of memory, expected at most 8192 MiB"),
        ("INFO", "alert ended (high, memory): 9001 MiB of memory, expected at most 8192 MiB"),
    ]


def test_thresholds_can_be_set_left_out_and_are_checked() -> None:
    monitor = Monitor("tiny", thresholds=Thresholds(max_response_s=None, min_tokens_per_s=100.0, requests=2))
    _requests(monitor, 2, response_time=99.0)
    assert [each.message for each in monitor.check_alerts()] == ["5.0 tokens/s, expected at least 100"]
    with pytest.raises(ThresholdError, match="min_success_rate is 0, expected more than 0, or None to not look at it"):
        Thresholds(min_success_rate=0)


def test_thresholds_are_read_from_texts() -> None:
    found = Thresholds.parse(["max_response_s=2.5", "max_memory_mb=off", "requests=3"])
    assert found == Thresholds(max_response_s=2.5, max_memory_mb=None, requests=3)
    with pytest.raises(ThresholdError, match='"speed=1" names no threshold, expected one of max_response_s, max_mem'):
        Thresholds.parse(["speed=1"])
    for text in ("max_response_s", "requests=off", "requests=1.5"):
        with pytest.raises(ThresholdError, match=f'"{text}" has no number, expected'):
            Thresholds.parse([text])


def test_the_server_is_healthy_degraded_or_unhealthy_with_reasons() -> None:
    monitor = Monitor("tiny", clock=Clock())
    assert monitor.health(probe()) == {
        "status": "healthy", "reasons": [], "errors": [], "model": "tiny", "model_loaded": True, "response_time": 0.1,
        "memory_usage": 300.0, "memory_budget": 1000.0, "active": 1, "waiting": 2, "uptime": 1100.0,
    }  # fmt: skip
    for found, reason in (
        (probe(response_s=5.1), "one token took 5.1 s, expected at most 5 s"),
        (probe(hard_bytes=990 << 20), "990 MiB of memory, of a budget of 1000 MiB"),
        (probe(waiting=64), "the queue is full: 64 requests wait"),
    ):
        told = monitor.health(found)
        assert (told["status"], told["reasons"], told["errors"]) == ("degraded", [reason], [])
    for found, reason in (
        (probe(error="the model is closed"), "the model is closed"),
        (probe(is_stopping=True), "the server is being stopped"),
    ):
        told = monitor.health(found)
        assert (told["status"], told["reasons"], told["errors"]) == ("unhealthy", [reason], [reason])
    assert monitor.health(probe(budget_bytes=None))["memory_budget"] is None


def test_alerts_degrade_health_unless_they_are_low() -> None:
    monitor = Monitor("tiny")
    _requests(monitor, 10, tokens_per_second=1.0)
    assert monitor.health(probe())["status"] == "healthy"
    _requests(monitor, 10, response_time=20.0)
    told = monitor.health(probe())
    assert (told["status"], told["reasons"]) == ("degraded", ["20.0 s for a reply, expected at most 10 s"])


def test_texts_are_scored_and_not_kept() -> None:
    policy = Policy.of({"category": [{"name": "n", "words": ["falcon"], "output": "log"}]})
    monitor = Monitor("tiny", rules=policy.rules[Direction.OUTPUT])
    monitor.finished(
        replace(REQUEST, prompt_text="why blue sky", reply_text="The sky is blue today. A falcon flies by.")
    )
    monitor.finished(replace(REQUEST, status=500, error_code=Code.GENERATION_ERROR, prompt_text="a", reply_text="b"))
    monitor.finished(REQUEST)
    summary = monitor.quality_summary()
    assert (summary.total_evaluations, summary.avg_relevance, summary.avg_safety) == (1, 1.0, 0.5)
    assert (summary.avg_factual_accuracy, summary.avg_perplexity) == (None, None)
    text = json.dumps(monitor.to_json()) + monitor.prometheus(STATE)
    assert "falcon" not in text
    assert "blue" not in text


def _scrape(text: str) -> Mapping[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_is_read_by_prometheus_own_parser() -> None:
    monitor = Monitor("tiny")
    monitor.finished(REQUEST)
    monitor.finished(replace(REQUEST, token_s=(0.02, 0.7, 9.0), first_token_s=130.0, batched_tokens=7, forced_tokens=3))
    monitor.finished(replace(REQUEST, status=429, error_code=Code.RATE_LIMIT_EXCEEDED, first_token_s=0.0, token_s=()))
    text = monitor.prometheus(replace(STATE, model='a "b"\\\nc'))
    found = _scrape(text)
    assert found["gemma_edge_requests_total", (("kind", "chat"), ("status", "200"))] == 2
    assert found["gemma_edge_requests_total", (("kind", "chat"), ("status", "429"))] == 1
    assert found["gemma_edge_refusals_total", (("code", "RATE_LIMIT_EXCEEDED"),)] == 1
    assert found["gemma_edge_tokens_total", (("type", "generated"),)] == 9
    assert found["gemma_edge_tokens_total", (("type", "batched"),)] == 7
    assert found["gemma_edge_tokens_total", (("type", "forced"),)] == 3
    assert found["gemma_edge_info", (("model", 'a "b"\\\nc'),)] == 1
    assert found["gemma_edge_memory_bytes", ()] == 300 << 20
    assert found["gemma_edge_memory_budget_bytes", ()] == 1000 << 20
    buckets = {
        le: found["gemma_edge_token_seconds_bucket", (("le", le),)] for le in ("0.02", "0.1", "0.5", "2", "+Inf")
    }
    assert buckets == {"0.02": 1, "0.1": 2, "0.5": 3, "2": 4, "+Inf": 5}
    assert found["gemma_edge_token_seconds_count", ()] == 5
    assert found["gemma_edge_token_seconds_sum", ()] == pytest.approx(10.12)
    assert found["gemma_edge_first_token_seconds_bucket", (("le", "120"),)] == 1
    assert found["gemma_edge_first_token_seconds_count", ()] == 2
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) > 15
    assert "memory_budget_bytes" not in monitor.prometheus(replace(STATE, budget_bytes=None))
    assert "memory_bytes" not in monitor.prometheus()


def test_everything_is_exported_in_the_documents_form(tmp_path: Path) -> None:
    monitor = Monitor("tiny", clock=Clock())
    monitor.finished(replace(REQUEST, prompt_text="why", reply_text="why not"))
    _requests(monitor, 1, memory_usage_mb=9000.0)
    monitor.export_metrics(tmp_path / "metrics.json")
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert list(found) == [
        "model_name", "export_timestamp", "performance_metrics", "quality_metrics", "performance_summary",
        "quality_summary", "current_alerts",
    ]  # fmt: skip
    assert (found["model_name"], found["export_timestamp"]) == ("tiny", 2000.0)
    assert len(found["performance_metrics"]) == found["performance_summary"]["total_requests"] == 2
    assert found["quality_metrics"][0]["relevance_score"] == 1.0
    assert [each["severity"] for each in found["current_alerts"]] == ["high"]


def test_there_are_pages_for_what_there_is() -> None:
    def paths(monitor: Monitor) -> list[str]:
        return [getattr(route, "path", "") for route in monitor.routes(lambda: STATE)]

    assert paths(Monitor("tiny")) == ["/", "/v1/stats"]
    full = Monitor("tiny", has_metrics=True, usage=lambda caller: {"name": caller.name})
    assert paths(full) == ["/", "/v1/stats", "/v1/usage", "/metrics"]
    assert full.usage is not None
    assert full.usage(Caller("x", "phone")) == {"name": "phone"}
