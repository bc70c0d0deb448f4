"""What calls into the model cost, as they are timed."""

from collections import deque
from dataclasses import dataclass, field

_SAMPLES, _FEWEST = 9, 3
_USUAL_PRICE = 1.5
"""Steps that guessing and verifying take, until some were measured."""


@dataclass
class Prices:
    """What calls of one decoder take, by their tokens. For the thread that runs it."""

    _seconds: dict[int, deque[float]] = field(default_factory=dict)

    def add(self, tokens: int, seconds: float) -> None:
        """One call has taken so long."""
        self._seconds.setdefault(tokens, deque(maxlen=_SAMPLES)).append(seconds)

    def of(self, tokens: int) -> float:
        """In decode steps, by the quickest of the last calls: whatever else runs makes calls longer, never shorter."""
        verifying, stepping = self._seconds.get(tokens, ()), self._seconds.get(1, ())
        if min(len(verifying), len(stepping)) < _FEWEST:  # the first ones read pages that nothing has read before
            return _USUAL_PRICE
        return max(1.0, min(verifying) / min(stepping))
