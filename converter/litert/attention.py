"""Attention and everything positional, in TFLite's terms: caches, rings, masks, rotation angles.

A signature reads the caches as they were, attends over old cache and new rows side by side, and writes the new rows
last. That order lets the runtime write in place, so one copy of KV exists; and all that depends on positions is
computed from `input_pos` in a few integer ops at the start, so that the rest is one XNNPACK partition.

Where little can stand before a run (`Graph.past`), only the first slots of a cache are read, through a SLICE: a small
copy, while the caches themselves are those of every other signature.

A verification (`Graph.is_steps`) has to give, to the bit, what as many decode steps give: text must not depend on what
was guessed, and where integer kernels round their inputs the smallest difference grows. So it adds in a step's order:
its rows are written first, each query sees those before it where they lie, and only its own row beside the cache. The
rows land in one piece, which whoever calls it must not let pass the end of a cache; unless that has to be expected
(`Graph.wraps`): then row by row in a ring, and elsewhere without those behind the end.

A batch (`Graph.is_batch`) has rows of several sequences. Everything here is then there once for each row, as in a step
of that sequence alone, over caches that are named for the row; what has weights runs for all rows together.

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
from gemma_edge.profiles.signatures import row_name

HIDDEN = -1e9  # added to a score that must not count; exp of it is 0 in float32

# XNNPACK copies the second operand of a product into an order of its own at every run, and multiplies by as many
# columns at once as its kernel is wide, with AVX-512 by 32 even where there are 4. Of a short cache the copy stays in
# the processor's own memory. Of a long one it does not, and would take as much memory again: with few queries the
# cache is then the first operand, and the queries are what is copied.
# FULLY_CONNECTED has a kernel of half the width as well (Zen 4, 2 threads, 4 queries: keys of 32768 slots 2.3 ms for
# 3.3, values 1.5 for 3.0), but knows no KV heads: where the queries of all are few, every head's cache is multiplied by
# all. Columns come in eights: for fewer, ARM has a kernel that adds in another order than where there are more, as in a
# verification.
FEW_QUERIES = 32
FEW_COLUMNS, COLUMNS = 16, 8
SHORT_CACHE = 1024  # slots


class Positions:
    """What one signature derives from the positions of consecutive rows, each part built when first asked for."""

    def __init__(
        self,
        sub: Subgraph,
        pos: Tensor,
        layout: CacheLayout,
        past: int | None = None,
        *,
        is_steps: bool = False,
        wraps: bool = True,
    ) -> None:
        """pos: int32 [T]. past, is_steps, wraps: as of `Graph`."""
        tokens = pos.shape[0]
        self._sub, self._tokens, self._layout, self._past = sub, tokens, layout, past
        self.is_steps, self._can_wrap = is_steps, wraps
        # Only the first entry counts: rows of a run are consecutive, and padding rows may hold anything.
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

    def step_mask(self, window: int | None, group: int) -> Tensor:
        """As `mask`, of a verification: each slot read, this run's rows in theirs, then the query's own row.

        [1, 1, T * group, S + 1], the queries of a token side by side.
        """
        key = (window, group)
        if key not in self._masks:
            sub, t = self._sub, self._tokens
            slots = sub.mul(self._hidden_slots(window), sub.constant(HIDDEN))  # [1, 1, T, S]
            mask = sub.concat([slots, sub.constant(np.zeros((1, 1, t, 1)))], -1)
            row = sub.reshape(mask, (1, t, 1, mask.shape[-1]))
            self._masks[key] = sub.reshape(sub.concat([row] * group, 2), (1, 1, t * group, mask.shape[-1]))
        return self._masks[key]

    def past_mask(self, window: int | None) -> Tensor:
        """0 or HIDDEN for each slot, of a query that stands behind all that is in the cache: [1, 1, 1, S]."""
        key = (window, 0)
        if key not in self._masks:
            self._masks[key] = self._sub.mul(
                self._hidden_slots(window, reach=None if window is None else window + 1), self._sub.constant(HIDDEN)
            )
        return self._masks[key]

    def write(self, window: int | None) -> "CacheWrite":
        """Where this run's rows go in caches of this window."""
        if window not in self._writes:
            make = self._in_pieces if self.is_steps or not self._wraps(window) else self._scattered
            self._writes[window] = make(window)
        return self._writes[window]

    def _wraps(self, window: int | None) -> bool:
        """Whether this run's rows may pass the end of the ring; a single row cannot."""
        return self._layout.is_ring(window) and self._tokens > 1 and self._can_wrap

    def _hidden_slots(self, window: int | None, reach: int | None = None) -> Tensor:
        """1 where an old slot must not be seen: not written yet, or outside the window. [1, 1, T or 1, S].

        reach: how far back a row sees; None: as far as a causal layer of that window.
        """
        sub, slots = self._sub, self._layout.read_slots(window, self._past)
        written = self._tokens if self.is_steps else 0  # rows of this run that are in the cache
        if self._layout.is_ring(window):
            # Slot r was last written at end - 1 - age with age = (end - 1 - r) mod R; end: start and what is written.
            back = sub.constant(1 - written + np.arange(slots).reshape(1, 1, 1, slots), I32)
            start = sub.reshape(self._start, (1, 1, 1, 1), Phase.PROLOGUE)
            ring = sub.constant(slots, I32)
            age = sub.floor_mod(sub.sub(start, back, Phase.PROLOGUE), ring, Phase.PROLOGUE)
            held = sub.sub(
                sub.sub(self._start_f32, sub.constant(1.0 - written)), sub.cast(age, F32, Phase.PROLOGUE)
            )  # position in each slot; negative before its first write
            hidden = self._positive(sub.mul(held, sub.constant(-1.0)))
            if written:
                hidden = sub.maximum(hidden, self._later(held))
        else:
            held = sub.constant(np.arange(slots, dtype=np.float32).reshape(1, 1, 1, slots))
            hidden = self._later(held)
        if window is not None:
            oldest = sub.sub(
                self._rows, sub.constant(float(window - 1 if reach is None else reach))
            )  # first position a row still sees
            hidden = sub.maximum(hidden, self._positive(sub.sub(oldest, held)))
        return hidden

    def _later(self, held: Tensor) -> Tensor:
        """1 where a slot holds no position before the row: [1, 1, T or 1, S]."""
        before = self._rows if self.is_steps else self._start_f32  # all that is in the cache is before every row
        return self._positive(self._sub.sub(self._sub.add(held, self._sub.constant(1.0)), before))

    def _positive(self, x: Tensor) -> Tensor:
        """1 where the integer-valued x is at least 1, else 0."""
        return self._sub.minimum(self._sub.unary(Opcode.RELU, x), self._sub.constant(1.0))

    def _in_pieces(self, window: int | None) -> "CacheWrite":
        """DYNAMIC_UPDATE_SLICE at start, modulo the ring; one for each row where they may wrap."""
        sub, zero = self._sub, self._sub.constant(0, I32)
        at_keys, at_values = [], []
        for row in range(self._tokens if self._wraps(window) else 1):
            start = sub.add(self._start, sub.constant(row, I32), Phase.PROLOGUE) if row else self._start
            if self._layout.is_ring(window):
                start = sub.floor_mod(start, sub.constant(self._layout.slots(window), I32), Phase.PROLOGUE)
            slot = sub.reshape(start, (), Phase.PROLOGUE)
            at_keys.append(sub.pack([zero, zero, slot, zero], Phase.PROLOGUE))
            at_values.append(sub.pack([zero, zero, zero, slot], Phase.PROLOGUE))
        return CacheWrite(tuple(at_keys), tuple(at_values), None, self._end(window))

    def _end(self, window: int | None) -> Tensor | None:
        """See CacheWrite; None where the rows cannot pass the end of the context."""
        if not (self.is_steps and self._can_wrap) or self._layout.is_ring(window):
            return None
        sub, t = self._sub, self._tokens
        last = self._layout.slots(window) - t  # where a piece begins that reaches the end
        behind = sub.maximum(
            sub.sub(self._start, sub.constant(last, I32), Phase.PROLOGUE), sub.constant(0, I32), Phase.PROLOGUE
        )
        row = sub.sub(sub.constant(np.arange(t), I32), behind, Phase.PROLOGUE)
        is_old = sub.less(row, sub.constant(0, I32), Phase.PROLOGUE)
        new = sub.add(row, sub.constant(t, I32), Phase.PROLOGUE)
        return sub.select(is_old, sub.constant(np.arange(t), I32), new, Phase.PROLOGUE)

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
        return CacheWrite((), (), source, None)


@dataclass(frozen=True)
class CacheWrite:
    """Either start indices of pieces of equal length, or for each slot its index in concat(old, new).

    end: for each row of a piece its index in concat(the cache's last rows, new): LiteRT moves a piece that would pass
    the end to just before it.
    """

    at_keys: tuple[Tensor, ...]
    at_values: tuple[Tensor, ...]
    source: Tensor | None
    end: Tensor | None

    def apply(self, sub: Subgraph, old: Tensor, new: Tensor, axis: int, phase: Phase) -> Tensor:
        """The cache after this run."""
        if self.source is not None:
            # One ring after the other, so that one is in memory twice and not all; see profiles/costs.py.
            return sub.gather(sub.concat_in_turn([old, new], axis), self.source, axis, phase)
        if self.end is not None:
            rows = new.shape[axis]
            last = sub.slice(old, axis, old.shape[axis] - rows, rows, phase)
            new = sub.gather(sub.concat([last, new], axis), self.end, axis, phase)
        starts = self.at_keys if axis == 2 else self.at_values
        rows = new.shape[axis] // len(starts)
        for i, start in enumerate(starts):
            old = sub.dynamic_update_slice(old, sub.slice(new, axis, i * rows, rows, phase), start, phase)
        return old


class CacheTensors:
    """One layer's cache in one signature: the past as float32, this run's rows, and the write-back."""

    def __init__(
        self,
        sub: Subgraph,
        cache: KVCache,
        layout: CacheLayout,
        read_slots: int,
        k: Tensor,
        v: Tensor,
        row: int | None = None,
    ) -> None:
        """read_slots: how many of the past count. k, v: this run's rows, [1, T, K, E]. row: of a batch, which."""
        kv_heads, size = cache.k.shape[2:]
        slots, kind = layout.slots(cache.window), F16 if layout.half else F32
        self._sub, self._window, self._half, self._read_slots = sub, cache.window, layout.half, read_slots
        names = [f"kv_cache_{letter}_{cache.layer}" for letter in "kv"]
        self._names = names if row is None else [row_name(name, row) for name in names]
        self._stored_k = sub.input(self._names[0], (1, kv_heads, slots, size), kind)
        self._stored_v = sub.input(self._names[1], (1, kv_heads, size, slots), kind)
        self.new_k = sub.transpose(k, (0, 2, 1, 3))  # [1, T, K, E] -> [1, K, T, E]
        self.new_v = sub.transpose(v, (0, 2, 3, 1))  # [1, T, K, E] -> [1, K, E, T]
        self._past: tuple[Tensor, Tensor] | None = None
        self._written: tuple[Tensor, Tensor] | None = None

    def past(self) -> tuple[Tensor, Tensor]:
        """Keys and values in float32, old ones, or with this run's where those are written; cut and converted once,
        for however many layers share them."""
        if self._past is None:
            sub = self._sub
            k, v = self._written or (self._stored_k, self._stored_v)
            k, v = sub.slice(k, 2, 0, self._read_slots), sub.slice(v, 3, 0, self._read_slots)
            self._past = (sub.dequantize(k), sub.dequantize(v)) if self._half else (k, v)
        return self._past

    def write(self, positions: Positions, phase: Phase) -> None:
        """Put this run's rows into the cache. In the epilogue, what `past` gave before has no part in it."""
        sub, write = self._sub, positions.write(self._window)
        k, v = self.new_k, self.new_v
        if self._half:
            k, v = sub.cast(k, F16, phase), sub.cast(v, F16, phase)
        self._written = (
            write.apply(sub, self._stored_k, k, 2, phase),
            write.apply(sub, self._stored_v, v, 3, phase),
        )

    def output(self, positions: Positions) -> None:
        """Declare the cache with this run's rows an output under its own name."""
        if self._written is None:
            self.write(positions, Phase.EPILOGUE)
        assert self._written is not None
        for name, cache in zip(self._names, self._written, strict=True):
            self._sub.output(name, cache)


def attention(sub: Subgraph, q: Tensor, cache: CacheTensors, window: int | None, positions: Positions) -> Tensor:
    """q [1, T, H, E] -> [1, T, H, E]; the H / K query heads of a KV head are stacked as extra rows."""
    if positions.is_steps:
        return _attention_of_steps(sub, q, cache, window, positions)
    _, t, heads, size = q.shape
    kv_heads = cache.new_k.shape[1]
    group = heads // kv_heads
    old_k, old_v = cache.past()
    slots = old_k.shape[2]

    q = sub.reshape(sub.transpose(q, (0, 2, 1, 3)), (1, kv_heads, group * t, size))
    scores = sub.concat([scores_of(sub, q, old_k), scores_of(sub, q, cache.new_k)], -1)
    weights = sub.softmax(sub.add(scores, positions.mask(window, group)))  # [1, K, G*T, S + T]
    y = sub.add(
        weighted_sum(sub, sub.slice(weights, 3, 0, slots), old_v),
        weighted_sum(sub, sub.slice(weights, 3, slots, t), cache.new_v),
    )  # [1, K, G*T, E]
    return sub.transpose(sub.reshape(y, (1, heads, t, size)), (0, 2, 1, 3))


def _attention_of_steps(
    sub: Subgraph, q: Tensor, cache: CacheTensors, window: int | None, positions: Positions
) -> Tensor:
    """As `attention`, of a verification."""
    _, t, heads, size = q.shape
    kv_heads = cache.new_k.shape[1]
    group = heads // kv_heads
    k, v = cache.past()
    slots = k.shape[2]

    q = sub.transpose(sub.reshape(q, (t, kv_heads, group, size)), (1, 0, 2, 3))  # [1, T, H, E] -> [K, T, H/K, E]
    own_k = sub.reshape(cache.new_k, (1, kv_heads * t, 1, size))
    own_v = sub.reshape(sub.transpose(cache.new_v, (0, 1, 3, 2)), (1, kv_heads * t, 1, size))
    own = sub.batch_matmul(own_k, sub.reshape(q, (1, kv_heads * t, group, size)), True)  # [1, K*T, 1, H/K]
    own = sub.reshape(own, (1, kv_heads, t * group, 1))
    scores = sub.concat([scores_of(sub, sub.reshape(q, (1, kv_heads, t * group, size)), k), own], -1)
    weights = sub.softmax(sub.add(scores, positions.step_mask(window, group)))  # [1, K, T*G, S + 1]
    own = sub.reshape(sub.slice(weights, 3, slots, 1), (1, kv_heads * t, group, 1))
    y = sub.add(
        weighted_sum(sub, sub.slice(weights, 3, 0, slots), v),
        sub.reshape(sub.mul(own, own_v), (1, kv_heads, t * group, size)),
    )
    y = sub.transpose(sub.reshape(y, (kv_heads, t, group, size)), (1, 0, 2, 3))  # -> [T, K, H/K, E]
    return sub.reshape(y, (1, t, heads, size))


def scores_of(sub: Subgraph, q: Tensor, keys: Tensor) -> Tensor:
    """q [1, K, N, E] with keys [1, K, S, E] -> [1, K, N, S]."""
    if keys.shape[2] > SHORT_CACHE and q.shape[2] <= FEW_QUERIES:
        return _with_cache(sub, q, keys)
    return sub.batch_matmul(q, keys, True)


def weighted_sum(sub: Subgraph, weights: Tensor, values: Tensor) -> Tensor:
    """The sum of values [1, K, E, S] by weights [1, K, N, S] -> [1, K, N, E]."""
    if values.shape[3] > SHORT_CACHE and weights.shape[2] <= FEW_QUERIES:
        return _with_cache(sub, weights, values)
    return sub.batch_matmul(weights, values, True)


def _with_cache(sub: Subgraph, rows: Tensor, cache: Tensor) -> Tensor:
    """rows [1, K, N, B] with a cache [1, K, A, B] that is read where it lies -> [1, K, N, A]."""
    _, heads, n, size = rows.shape
    if heads * n > FEW_COLUMNS:
        return sub.transpose(sub.batch_matmul(cache, rows, True), (0, 1, 3, 2))
    columns = sub.pad(sub.reshape(rows, (heads * n, size)), 0, 0, -heads * n % COLUMNS)
    products = sub.transpose(sub.multiply_rows(cache, columns), (0, 1, 3, 2))  # [1, K, columns, A]
    own = [sub.slice(sub.slice(products, 1, head, 1), 2, head * n, n) for head in range(heads)]
    return sub.concat(own, 1)
