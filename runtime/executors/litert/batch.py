"""A decode step of several slots in one call: the weights are read once for all, each row's keys and values lie in its
own slot.

A signature of B rows takes the caches of B slots, in place, beside one embedding and one position a row. Each row adds
in the order of a step alone, so its logits are equal to the bit; a step over another span may not, so only slots whose
next step looks equally far back go together.

Where fewer slots than rows take a step, the first slot is there several times: each of its rows computes the same and
writes the same to the same place, which needs no memory and changes nothing. That costs what the row costs, so a call
is at least half full.

Which slots take part changes when a reply begins or ends. Their memory is then bound anew: the 160 caches of four
slots of E2B take 1.5 ms, and the bindings used last are kept.
"""

from collections.abc import Iterator, Sequence

from gemma_edge.profiles.signatures import Call, row_name
from gemma_edge.runtime.executors.base import Logits
from gemma_edge.runtime.executors.litert.library import BoundSignature
from gemma_edge.runtime.executors.litert.models import ModelSection
from gemma_edge.runtime.executors.litert.slot import LitertSlot, Shared

_KEPT = 8
"""Bindings. A server of eight slots comes to as many while replies end one after the other."""


class Batches:
    """Of one model. Keeps no slot alive."""

    def __init__(self, model: ModelSection, shared: Shared) -> None:
        self._model = model
        self._shared = shared
        self._calls = sorted((call for call in shared.arrays if call.is_batch), key=lambda call: call.rows)
        self._bound: dict[tuple[Call, tuple[int, ...]], BoundSignature] = {}  # by ids of slots; the last used last

    def groups(self, slots: Sequence[LitertSlot]) -> Iterator[Sequence[LitertSlot]]:
        """See `Decoder.batches`, of slots of this model."""
        by_span: dict[float, list[LitertSlot]] = {}
        for slot in slots:
            by_span.setdefault(slot.span, []).append(slot)
        for span, together in by_span.items():
            first = 0
            for count in shares(len(together), [call.rows for call in self._of(span)]):
                yield together[first : first + count]
                first += count

    def _of(self, span: float) -> Sequence[Call]:
        """Those that look so far back, the smallest first."""
        return [call for call in self._calls if call.reach == span]

    def decode(self, slots: Sequence[LitertSlot], token_ids: Sequence[int]) -> Logits:
        """See `Decoder.decode_batch`."""
        for slot, token_id in zip(slots, token_ids, strict=True):
            slot.check([token_id])
        call = next(call for call in self._of(slots[0].span) if call.rows >= len(slots))
        filling = call.rows - len(slots)
        run = self._bind(call, [*slots, *[slots[0]] * filling])
        arrays = self._shared.arrays[call]
        self._shared.look_up([*token_ids, *[token_ids[0]] * filling], arrays)
        arrays["input_pos"][:] = [*(slot.position for slot in slots), *[slots[0].position] * filling]
        for slot in slots:
            slot.begin(slot.position, 1)
        run()
        hidden = self._shared.hidden(call)
        for row, (slot, token_id) in enumerate(zip(slots, token_ids, strict=True)):
            slot.end([token_id], None if hidden is None else hidden[:, row:])
        logits: Logits = self._shared.logits[0, : len(slots)].copy()
        return logits

    def _bind(self, call: Call, slots: Sequence[LitertSlot]) -> BoundSignature:
        key = call, tuple(map(id, slots))
        bound = self._bound.pop(key, None)
        if bound is None or bound.is_closed:  # with a slot, whose id may be another's by now
            caches = {row_name(name, row): a for row, slot in enumerate(slots) for name, a in slot.caches.items()}
            logits = self._shared.logits[:, : call.rows]
            bound = self._model.bind(call.name, {**caches, **self._shared.arrays[call], "logits": logits})
            for slot in slots:
                slot.bound_elsewhere.add(bound)
        self._bound[key] = bound
        if len(self._bound) > _KEPT:
            self._bound.pop(next(iter(self._bound))).close()
        return bound


def shares(count: int, sizes: Sequence[int]) -> Iterator[int]:
    """How many of `count` slots go into each call; those left over take a step alone. sizes: of calls, rising."""
    while count > 1:
        fitting = [size for size in sizes if size <= 2 * count]  # at least half full
        if not fitting:
            return
        size = min(count, next((size for size in fitting if size >= count), fitting[-1]))
        yield size
        count -= size
