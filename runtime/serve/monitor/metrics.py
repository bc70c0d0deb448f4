"""What is kept of one reply, in the documents' terms, and what is kept beside them. Never its text."""

from dataclasses import dataclass

from gemma_edge.runtime.serve.errors import Code
from gemma_edge.runtime.serve.events import Finished

MIB = 1 << 20
_FAILED = 500  # the first status of HTTP that is the server's own fault


@dataclass(frozen=True)
class PerformanceMetrics:
    """One request that was run. The fields up to `error_message` are the documents'.

    timestamp: seconds since 1970, of its end. response_time: seconds from its arrival to its end.
    memory_usage_mb: of the process, anonymous and shared memory, MiB. gpu_memory_mb: None, since no model of ours runs
    on one. token_count: that were written. tokens_per_second: of every token after the first; 0.0 with fewer than two.
    input_length: tokens of the prompt. first_token_s: from its arrival, None where none was written; wait_s: of it,
    until it had its turn. token_s: seconds of each token after the first.
    """

    timestamp: float
    response_time: float
    memory_usage_mb: float
    gpu_memory_mb: float | None
    token_count: int
    tokens_per_second: float
    model_name: str
    input_length: int
    success: bool
    error_message: str | None = None
    first_token_s: float | None = None
    wait_s: float = 0.0
    token_s: tuple[float, ...] = ()

    @classmethod
    def of(cls, event: Finished) -> "PerformanceMetrics | None":
        """Of a request of the server; None where it says nothing of the server: refused, or its client left."""
        if event.error_code is Code.CANCELLED or 400 <= event.status < _FAILED:
            return None
        steps_s = sum(event.token_s)
        return cls(
            timestamp=event.started_at + event.total_s,
            response_time=event.total_s,
            memory_usage_mb=event.hard_bytes / MIB,
            gpu_memory_mb=None,
            token_count=event.generated_tokens,
            tokens_per_second=len(event.token_s) / steps_s if steps_s else 0.0,
            model_name=event.model,
            input_length=event.prompt_tokens,
            success=event.status < 400,
            error_message=None if event.error_code is None else event.error_code.value,
            first_token_s=event.first_token_s or None,
            wait_s=event.wait_s,
            token_s=event.token_s,
        )


@dataclass(frozen=True)
class QualityMetrics:
    """What can be counted of a reply's text. The names of the first five fields are the documents'; what is behind them
    is less than they promise, so read `monitor.quality` before you trust one. From 0 (bad) to 1; None: not measured.

    relevance_score: words of the prompt that the reply repeats. coherence_score: how usual its sentences' length is.
    safety_score: sentences in which the policy's rules find nothing. factual_accuracy: words shared with a reference
    that somebody gave. user_satisfaction: what somebody said. perplexity: of the reply under the model itself, 1 or
    more, lower is less surprising.
    """

    relevance_score: float
    coherence_score: float
    safety_score: float | None
    factual_accuracy: float | None
    user_satisfaction: float | None = None
    perplexity: float | None = None
