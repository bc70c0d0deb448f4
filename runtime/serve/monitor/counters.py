"""What is counted from the start of the process on, for Prometheus. Sums never go down: a late scrape loses nothing."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from gemma_edge.runtime.serve.events import Finished

TOKEN_BOUNDS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
REPLY_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Histogram:
    """How many were at most so long. bounds: seconds, ascending."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)  # the last: longer than all bounds
        self.sum = 0.0

    def add(self, seconds: Iterable[float]) -> None:
        """Count these."""
        for value in seconds:
            self.counts[bisect_left(self.bounds, value)] += 1
            self.sum += value


class Counters:
    """Of all requests, refused ones too."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # kind, status
        self.refusals: Counter[str] = Counter()  # error code
        self.tokens: Counter[str] = Counter()
        self.wait = Histogram(REPLY_BOUNDS_S)
        self.first_token = Histogram(REPLY_BOUNDS_S)
        self.per_token = Histogram(TOKEN_BOUNDS_S)
        self.reply = Histogram(REPLY_BOUNDS_S)

    def add(self, event: Finished) -> None:
        """Count a request that has ended."""
        self.requests[event.kind.value, event.status] += 1
        if event.error_code is not None:
            self.refusals[event.error_code.value] += 1
        self.tokens["prompt"] += event.prompt_tokens
        self.tokens["cached"] += event.cached_tokens
        self.tokens["generated"] += event.generated_tokens
        if event.drafted_tokens:
            self.tokens["drafted"] += event.drafted_tokens
            self.tokens["accepted"] += event.accepted_tokens
        if event.forced_tokens:
            self.tokens["forced"] += event.forced_tokens
        if event.batched_tokens:
            self.tokens["batched"] += event.batched_tokens
        if event.first_token_s:
            self.wait.add([event.wait_s])
            self.first_token.add([event.first_token_s])
            self.per_token.add(event.token_s)
        if event.status < 400:
            self.reply.add([event.total_s])
