"""One message that is being answered, in one round or several, and how it is cancelled."""

from gemma_edge.runtime.kv.turn import Turn


class Sending:
    """A message that is being answered, in one round or several. `cancel` ends all of it."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self._turn: Turn | None = None

    def begin(self, turn: Turn) -> None:
        """A round of it."""
        self._turn = turn
        if self.is_cancelled:
            turn.cancel()

    def cancel(self) -> None:
        """May be called from any thread."""
        self.is_cancelled = True
        if self._turn is not None:
            self._turn.cancel()
