"""Many replies in a few figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gemma_edge.runtime.serve.monitor.metrics import PerformanceMetrics, QualityMetrics


@dataclass(frozen=True)
class Spread:
    """Of times, in seconds. With one sample all are that sample; between two samples they are interpolated."""

    average: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Spread | None":
        """None of nothing."""
        values = np.fromiter(seconds, np.float64)
        if not values.size:
            return None
        p50, p95, p99 = (float(each) for each in np.percentile(values, (50, 95, 99)))
        return cls(float(values.mean()), p50, p95, p99)


@dataclass(frozen=True)
class PerformanceSummary:
    """Of the requests that were run. The names are the documents'; times in seconds, memory in MiB.

    Averages of time, memory and speed are of those that succeeded, and None where none did; so are first_token and
    per_token. success_rate: None of no requests. peak_memory_mb: the highest at the end of any request.
    """

    total_requests: int
    successful_requests: int
    success_rate: float | None
    avg_response_time: float | None
    p95_response_time: float | None
    avg_memory_usage_mb: float | None
    peak_memory_mb: float | None
    avg_tokens_per_second: float | None
    total_tokens: int
    avg_gpu_memory_mb: float | None
    first_token: Spread | None
    per_token: Spread | None

    @classmethod
    def of(cls, metrics: Sequence[PerformanceMetrics]) -> "PerformanceSummary":
        """Of any number of them."""
        done = [each for each in metrics if each.success]
        response = Spread.of(each.response_time for each in done)
        return cls(
            total_requests=len(metrics),
            successful_requests=len(done),
            success_rate=len(done) / len(metrics) if metrics else None,
            avg_response_time=None if response is None else response.average,
            p95_response_time=None if response is None else response.p95,
            avg_memory_usage_mb=_mean(each.memory_usage_mb for each in done),
            peak_memory_mb=max((each.memory_usage_mb for each in metrics), default=None),
            avg_tokens_per_second=_mean(each.tokens_per_second for each in done if each.tokens_per_second),
            total_tokens=sum(each.token_count for each in metrics),
            avg_gpu_memory_mb=_mean(each.gpu_memory_mb for each in done),
            first_token=Spread.of(each.first_token_s for each in done if each.first_token_s is not None),
            per_token=Spread.of(seconds for each in done for seconds in each.token_s),
        )


@dataclass(frozen=True)
class QualitySummary:
    """Averages of what was measured; None where nothing was."""

    total_evaluations: int
    avg_relevance: float | None
    avg_coherence: float | None
    avg_safety: float | None
    avg_factual_accuracy: float | None
    avg_user_satisfaction: float | None
    avg_perplexity: float | None

    @classmethod
    def of(cls, metrics: Sequence[QualityMetrics]) -> "QualitySummary":
        """Of any number of them."""
        return cls(
            total_evaluations=len(metrics),
            avg_relevance=_mean(each.relevance_score for each in metrics),
            avg_coherence=_mean(each.coherence_score for each in metrics),
            avg_safety=_mean(each.safety_score for each in metrics),
            avg_factual_accuracy=_mean(each.factual_accuracy for each in metrics),
            avg_user_satisfaction=_mean(each.user_satisfaction for each in metrics),
            avg_perplexity=_mean(each.perplexity for each in metrics),
        )


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there."""
    found = [each for each in values if each is not None]
    return sum(found) / len(found) if found else None
