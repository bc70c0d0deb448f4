"""Who guesses: the bundle's drafter, the smaller of two models that share their weights, or the text itself."""

from collections.abc import Sequence
from functools import partial

from gemma_edge.runtime.executors.base import ClosedError, KvSlot
from gemma_edge.runtime.kv.drafter import BundledDrafter, PromptLookup
from gemma_edge.runtime.kv.prefix import reuse_prefix
from gemma_edge.runtime.kv.slots import SlotPool
from gemma_edge.runtime.kv.speculation import Speculating

_AT_ONCE = 32
"""Tokens that the small model may lack when it guesses. It catches up with more than these first, a chunk each time, as
other replies wait for whatever runs."""

_REPEATED = 8
"""Tokens that have to agree before the text is taken to repeat itself, beside a drafter."""


class ModelDrafter:
    """See Drafter. One for each reply; they share a slot, which keeps what it holds of the text before.

    Its guesses are the likeliest tokens, drawn or not: a guess stands where the large model draws the same.
    """

    def __init__(self, slot: KvSlot) -> None:
        """slot: of the small model. Once it is closed nothing is guessed."""
        self._slot = slot

    def propose(self, history: Sequence[int], n: int, _slot: KvSlot) -> Sequence[int]:
        """See Drafter; one step of the small model each."""
        try:
            held = reuse_prefix(self._slot, history[:-1])
            missing = history[held:-1]
            if len(missing) > _AT_ONCE:
                chunks = self._slot.chunks(missing)
                next(chunks)  # before the first
                next(chunks, None)
                return ()
            self._slot.prefill(missing)
            guesses = [history[-1]]
            for _ in range(n):
                guesses.append(int(self._slot.decode(guesses[-1]).argmax()))
        except ClosedError:
            return ()
        return guesses[1:]


def guessing(pool: SlotPool, model: str | None) -> Sequence[Speculating]:
    """How replies are guessed that slots of this pool hold: by this model while another one runs, else from the text.

    Where the decoder has a drafter, that guesses what the text does not clearly repeat.

    Raises ExecutorError: no memory for the model's slot.
    """
    if model is None and pool.can_draft:
        return (Speculating(partial(PromptLookup, _REPEATED)), Speculating(BundledDrafter))
    slot = None if model is None else pool.draft_slot(model)
    return (Speculating(lambda: PromptLookup() if slot is None or pool.model == model else ModelDrafter(slot)),)
