"""Attention and everything positional, in TFLite's terms: caches, rings, masks, rotation angles.

A signature reads the caches as they were, attends over old cache and new rows side by side, and writes the new rows
last. That order lets the runtime write in place, so one copy of KV exists; and all that depends on positions is
computed from `input_pos` in a few integer ops at the start, so that the rest is one XNNPACK partition.

Where little can stand before a run (`Graph.past`), only the first slots of a cache are read, through a SLICE: a small
copy, while the caches themselves are those of every other signature.

Sliding layers keep a ring: position p lives in slot p mod R. With R >= window + the longest prefill, no row that a
query of this run can still see is overwritten by this run's rows, padding included.

Shapes: a cache is [1, K, S, E] for keys and [1, K, E, S] for values, S slots.
"""

from dataclasses import dataclass

import numpy as np

from gemma_edge.converter.graph.ops import KVCache, Rope
from gemma_edge.converter.litert.file import Opcode, Phase, Tensor
from gemma_edge.converter.litert.ops import F16, F32, I32, Subgraph
from gemma_edge.converter.plan.cache_layout import CacheLayout

HIDDEN = -1e9  # added to a score that must not count; exp of it is 0 in float32

# XNNPACK copies the second operand of a product into an order of its own at every run. With few queries that copy would
# cost more than the product: the cache is then the first operand, and the queries are what is copied.
FEW_QUERIES = 32


class Positions:
    """What one signature derives from input_pos, each part built when first asked for."""

    def __init__(self, sub: Subgraph, tokens: int, layout: CacheLayout, past: int | None = None) -> None:
        """past: as of `Graph`."""
        self._sub, self._tokens, self._layout, self._past = sub, tokens, layout, past
        # Only the first entry counts: rows of a run are consecutive, and padding rows may hold anything.
        pos = sub.input("input_pos", (tokens,), I32)
        self._start = sub.slice(pos, 0, 0, 1, Phase.PROLOGUE)  # [1]
        start = sub.cast(sub.reshape(self._start, (1, 1, 1, 1), Phase.PROLOGUE), F32, Phase.PROLOGUE)
        self._start_f32 = start
        rows = np.arange(tokens, dtype=np.float32)
        self._rows = sub.add(start, sub.constant(rows.reshape(1, 1, tokens, 1)))  # [1, 1, T, 1] absolute positions
        self._angles: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int | None, int], Tensor] = {}
        self._writes: dict[int | None, CacheWrite] = {}

    def angles(self, rope: Rope, head_size: int) -> tuple[Tensor, Tensor]:
        """cos [1, T, 1, E] and sin with its first half negated, so that x*cos + swap_halves(x)*sin rotates x."""
        key = (rope, head_size)
        if key not in self._angles:
            sub = self._sub
            rows = sub.reshape(self._rows, (1, self._tokens, 1, 1))
            frequencies = rope.inverse_frequencies(head_size).reshape(1, 1, 1, -1)
            angle = sub.mul(rows, sub.constant(frequencies))  # [1, T, 1, E/2]
            cos, sin = sub.unary(Opcode.COS, angle), sub.unary(Opcode.SIN, angle)
            minus_sin = sub.mul(sin, sub.constant(-1.0))
            self._angles[key] = sub.concat([cos, cos], -1), sub.concat([minus_sin, sin], -1)
        return self._angles[key]

    def mask(self, window: int | None, group: int) -> Tensor:
        """0 or HIDDEN for each query row and each old slot read, then each new row: [1, 1, group * T, S + T]."""
        key = (window, group)
        if key not in self._masks:
            sub, t = self._sub, self._tokens
            old = sub.mul(self._hidden_slots(window), sub.constant(HIDDEN))  # [1, 1, T or 1, S]
            if old.shape[2] != t:
                old = sub.add(old, sub.constant(np.zeros((1, 1, t, 1))))
            behind = np.arange(t)[:, None] - np.arange(t)[None, :]  # how far new row j lies behind query i
            visible = (behind >= 0) & (behind < (window or t))
            new = sub.constant(np.where(visible, 0.0, HIDDEN).reshape(1, 1, t, t))
            mask = sub.concat([old, new], -1)
            self._masks[key] = sub.concat([mask] * group, 2)
        return self._masks[key]

    def write(self, window: int | None) -> "CacheWrite":
        """Where this run's rows go in caches of this window."""
        if window not in self._writes:
            self._writes[window] = self._scattered(window) if self._wraps(window) else self._contiguous(window)
        return self._writes[window]

    def _wraps(self, window: int | None) -> bool:
        """Whether this run's rows may pass the end of the ring; a single row cannot."""
        return self._layout.is_ring(window) and self._tokens > 1

    def _hidden_slots(self, window: int | None) -> Tensor:
        """1 where an old slot must not be seen: not written yet, or outside the window. [1, 1, T or 1, S]."""
        sub, slots = self._sub, self._layout.read_slots(window, self._past)
        if self._layout.is_ring(window):
            # Slot r was last written at start - 1 - age with age = (start - 1 - r) mod R.
            back = sub.constant(1 + np.arange(slots).reshape(1, 1, 1, slots), I32)
            start = sub.reshape(self._start, (1, 1, 1, 1), Phase.PROLOGUE)
            ring = sub.constant(slots, I32)
            age = sub.floor_mod(sub.sub(start, back, Phase.PROLOGUE), ring, Phase.PROLOGUE)
            held = sub.sub(
                sub.sub(self._start_f32, sub.constant(1.0)), sub.cast(age, F32, Phase.PROLOGUE)
            )  # position in each slot; negative before its first write
            hidden = self._positive(sub.mul(held, sub.constant(-1.0)))
        else:
            held = sub.constant(np.arange(slots, dtype=np.float32).reshape(1, 1, 1, slots))
            hidden = self._positive(sub.sub(sub.add(held, sub.constant(1.0)), self._start_f32))
        if window is not None:
            oldest = sub.sub(self._rows, sub.constant(float(window - 1)))  # first position a row still sees
            hidden = sub.maximum(hidden, self._positive(sub.sub(oldest, held)))
        return hidden

    def _positive(self, x: Tensor) -> Tensor:
        """1 where the integer-valued x is at least 1, else 0."""
        return self._sub.minimum(self._sub.unary(Opcode.RELU, x), self._sub.constant(1.0))

    def _contiguous(self, window: int | None) -> "CacheWrite":
        """Rows land in one piece: DYNAMIC_UPDATE_SLICE at start, modulo the ring."""
        sub, start = self._sub, self._start
        if self._layout.is_ring(window):
            start = sub.floor_mod(start, sub.constant(self._layout.slots(window), I32), Phase.PROLOGUE)
        slot, zero = sub.reshape(start, (), Phase.PROLOGUE), sub.constant(0, I32)
        return CacheWrite(
            at_keys=sub.pack([zero, zero, slot, zero], Phase.PROLOGUE),
            at_values=sub.pack([zero, zero, zero, slot], Phase.PROLOGUE),
            source=None,
        )

    def _scattered(self, window: int | None) -> "CacheWrite":
        """Rows may wrap: slot r takes new row (r - start) mod R if there is one, else keeps what it holds."""
        sub, slots = self._sub, self._layout.slots(window)
        count = sub.constant(slots, I32)
        row = sub.floor_mod(
            sub.sub(sub.constant(np.arange(slots), I32), self._start, Phase.PROLOGUE), count, Phase.PROLOGUE
        )
        is_new = sub.less(row, sub.constant(self._tokens, I32), Phase.PROLOGUE)
        source = sub.select(
            is_new, sub.add(row, count, Phase.PROLOGUE), sub.constant(np.arange(slots), I32), Phase.PROLOGUE
        )
        return CacheWrite(None, None, source)


@dataclass(frozen=True)
class CacheWrite:
    """Either start indices for one contiguous piece, or for each slot its index in concat(old, new)."""

    at_keys: Tensor | None
    at_values: Tensor | None
    source: Tensor | None

    def apply(self, sub: Subgraph, old: Tensor, new: Tensor, axis: int) -> Tensor:
        """The cache after this run; the last op that touches it."""
        if self.source is not None:
            # One ring after the other, so that one is in memory twice and not all; see profiles/costs.py.
            return sub.gather(sub.concat_in_turn([old, new], axis), self.source, axis, Phase.EPILOGUE)
        start = self.at_keys if axis == 2 else self.at_values
        assert start is not None
        return sub.dynamic_update_slice(old, new, start, Phase.EPILOGUE)


class CacheTensors:
    """One layer's cache in one signature: the past as float32, this run's rows, and the write-back."""

    def __init__(
        self, sub: Subgraph, cache: KVCache, layout: CacheLayout, read_slots: int, k: Tensor, v: Tensor
    ) -> None:
        """read_slots: how many of the past count. k, v: this run's rows, [1, T, K, E]."""
        kv_heads, size = cache.k.shape[2:]
        slots, kind = layout.slots(cache.window), F16 if layout.half else F32
        self._sub, self._cache, self._half, self._read_slots = sub, cache, layout.half, read_slots
        self._stored_k = sub.input(f"kv_cache_k_{cache.layer}", (1, kv_heads, slots, size), kind)
        self._stored_v = sub.input(f"kv_cache_v_{cache.layer}", (1, kv_heads, size, slots), kind)
        self.new_k = sub.transpose(k, (0, 2, 1, 3))  # [1, T, K, E] -> [1, K, T, E]
        self.new_v = sub.transpose(v, (0, 2, 3, 1))  # [1, T, K, E] -> [1, K, E, T]
        self._past: tuple[Tensor, Tensor] | None = None

    def past(self) -> tuple[Tensor, Tensor]:
        """Old keys and values in float32; cut and converted once, for however many layers share them."""
        if self._past is None:
            sub = self._sub
            k = sub.slice(self._stored_k, 2, 0, self._read_slots)
            v = sub.slice(self._stored_v, 3, 0, self._read_slots)
            self._past = (sub.dequantize(k), sub.dequantize(v)) if self._half else (k, v)
        return self._past

    def write(self, positions: Positions) -> None:
        """Put this run's rows into the cache and declare it an output under its own name."""
        sub, write = self._sub, positions.write(self._cache.window)
        k, v = self.new_k, self.new_v
        if self._half:
            k, v = sub.cast(k, F16, Phase.EPILOGUE), sub.cast(v, F16, Phase.EPILOGUE)
        sub.output(f"kv_cache_k_{self._cache.layer}", write.apply(sub, self._stored_k, k, 2))
        sub.output(f"kv_cache_v_{self._cache.layer}", write.apply(sub, self._stored_v, v, 3))


def attention(sub: Subgraph, q: Tensor, cache: CacheTensors, window: int | None, positions: Positions) -> Tensor:
    """q [1, T, H, E] -> [1, T, H, E]; the H / K query heads of a KV head are stacked as extra rows."""
    _, t, heads, size = q.shape
    kv_heads = cache.new_k.shape[1]
    group = heads // kv_heads
    old_k, old_v = cache.past()
    slots = old_k.shape[2]

    q = sub.reshape(sub.transpose(q, (0, 2, 1, 3)), (1, kv_heads, group * t, size))
    scores = sub.concat([_scores(sub, q, old_k), _scores(sub, q, cache.new_k)], -1)
    weights = sub.softmax(sub.add(scores, positions.mask(window, group)))  # [1, K, G*T, S + T]
    y = sub.add(
        _weighted(sub, sub.slice(weights, 3, 0, slots), old_v),
        _weighted(sub, sub.slice(weights, 3, slots, t), cache.new_v),
    )  # [1, K, G*T, E]
    return sub.transpose(sub.reshape(y, (1, heads, t, size)), (0, 2, 1, 3))


def _scores(sub: Subgraph, q: Tensor, keys: Tensor) -> Tensor:
    """q [1, K, N, E] with keys [1, K, S, E] -> [1, K, N, S]."""
    if q.shape[2] <= FEW_QUERIES:
        return sub.transpose(sub.batch_matmul(keys, q, True), (0, 1, 3, 2))
    return sub.batch_matmul(q, keys, True)


def _weighted(sub: Subgraph, weights: Tensor, values: Tensor) -> Tensor:
    """The sum of values [1, K, E, S] by weights [1, K, N, S] -> [1, K, N, E]."""
    if weights.shape[2] <= FEW_QUERIES:
        return sub.transpose(sub.batch_matmul(values, weights, True), (0, 1, 3, 2))
    return sub.batch_matmul(weights, values, True)
