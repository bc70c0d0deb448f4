"""Decode steps that several replies take together, where the model can: its weights are then read once for all.

Before a reply pauses it says which step it takes next. The worker runs together what can be of one round, and leaves
the logits with each step; whoever finds none takes its step alone. The logits are equal to the bit either way, so the
text of a reply does not depend on what else is being written.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gemma_edge.runtime.executors.base import Decoder, Logits
from gemma_edge.runtime.kv.slots import Lease


@dataclass(eq=False)
class Step:
    """One more token in a slot, which a reply wants run next.

    check: as `Job.check`; called once. logits: float32 [V], once it has run with others'. rows: how many ran together.
    seconds: what that call took. error: what prevents it.
    """

    decoder: Decoder
    lease: Lease
    token_id: int
    check: Callable[[], None]
    logits: Logits | None = None
    rows: int = 1
    seconds: float = 0.0
    error: Exception | None = None
    _is_checked: bool = False

    def resume(self) -> None:
        """Back with the reply. Raises what prevents the step."""
        if self.error is not None:
            raise self.error
        if not self._is_checked:
            self.check()

    def may_run(self) -> bool:
        """Whether nothing prevents it."""
        self._is_checked = True
        try:
            self.check()
        except Exception as error:  # the reply's: it is raised there
            self.error = error
        return self.error is None


def run_together(steps: Iterable[Step | None]) -> None:
    """Run those of these steps that can be run with others."""
    wanted = [step for step in steps if step is not None]
    if len(wanted) < 2:
        return
    able = [step for step in wanted if step.may_run()]
    current = [step for step in able if step.lease.is_current]  # checking may have switched the model
    for decoder in {id(step.decoder): step.decoder for step in current}.values():
        by_slot = {id(step.lease.slot): step for step in current if step.decoder is decoder}
        for slots in decoder.batches([step.lease.slot for step in by_slot.values()]):
            _run(decoder, [by_slot[id(slot)] for slot in slots])


def _run(decoder: Decoder, steps: Sequence[Step]) -> None:
    started = time.perf_counter()
    try:
        rows = decoder.decode_batch([step.lease.slot for step in steps], [step.token_id for step in steps])
    except Exception as error:  # likewise
        for step in steps:
            step.error = error
        return
    seconds = time.perf_counter() - started
    for step, logits in zip(steps, rows, strict=True):
        step.logits, step.rows, step.seconds = logits, len(steps), seconds
