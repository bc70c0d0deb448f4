"""The KV cache of one token sequence in a LiteRT decoder: memory of ours, read and written in place by its signatures.

Facts behind every rule here were measured with ai-edge-litert 2.3.0:

- the cache starts zeroed: a NaN in an unused slot poisons the logits even when masked;
- rows of a partly filled chunk are real tokens first, padding after; padding is overwritten by what comes next;
- a chunk that passes the end of the context corrupts the cache (the write is clamped), so none ever does;
- sliding layers may keep rings of R slots with R >= window + largest prefill. A ring is exact at a position as long as
  the highest position ever written, padding included, is at most R - window + 1 above it. A verification is no longer
  than the largest prefill, so going back over what was refused is always exact; its rows land in one piece, so none
  begins where they would pass the end of a ring.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.profiles.signatures import Call
from gemma_edge.runtime.executors.base import ClosedError, Logits, SlotState, Snapshot
from gemma_edge.runtime.executors.checks import check_restore, check_rewind, check_state, check_tokens
from gemma_edge.runtime.executors.litert.library import BoundSignature
from gemma_edge.runtime.executors.litert.models import ModelSection
from gemma_edge.runtime.executors.litert.prefill_plan import plan_prefill
from gemma_edge.runtime.executors.litert.tables import EmbeddingTable
from gemma_edge.runtime.media.soft_tokens import per_layer_ids, place_soft_rows


@dataclass(frozen=True)
class Shared:
    """What all slots of a decoder use, one at a time.

    inputs: of each call, embeddings [1,T,D], per_layer_embeddings [1,T,L,P] in Gemma 3n, and input_pos [T].
    logits: float32 [1,N,V], of the most tokens that a call gives them of; the others write to its first rows.
    """

    inputs: Mapping[Call, Mapping[str, NDArray[Any]]]
    logits: NDArray[np.float32]
    embedder: EmbeddingTable
    per_layer_embedder: EmbeddingTable | None


@dataclass(frozen=True)
class _Bound:
    """A call, bound, with the arrays it reads: embeddings [1,T,D], per-layer [1,T,L,P] or None, positions [T]."""

    call: Call
    run: BoundSignature
    embeddings: NDArray[np.float32]
    per_layer_embeddings: NDArray[np.float32] | None
    input_pos: NDArray[np.int32]

    @property
    def rows(self) -> int:
        return len(self.input_pos)


class LitertSlot:
    """See `KvSlot`. Made by `LitertDecoder.new_slot`.

    Args:
        model: compiled.
        shared: its working memory.
        caches: zeroed; keys [1,K,S,E] and values [1,K,E,S] by name.
        rings: names of those that hold fewer than the longest context.
        context_tokens: no more than the longest cache.
    """

    def __init__(
        self,
        model: ModelSection,
        shared: Shared,
        caches: dict[str, NDArray[Any]],
        rings: frozenset[str],
        context_tokens: int,
    ) -> None:
        self._shared = shared
        self._caches = caches
        self._rings = rings
        self._ring_slots = {slots_of(name, caches[name].shape) for name in rings}
        self._context_tokens = context_tokens
        bound = [self._bind(model, call, arrays) for call, arrays in shared.inputs.items()]
        self._decodes = [each for each in bound if each.call.is_decode]
        self._verifies = [each for each in bound if each.call.is_verify]
        self._prefills = [each for each in bound if not each.call.has_logits]
        self._prefill_rows = tuple({each.rows for each in self._prefills})
        # R >= window + largest prefill, so at least `largest` positions behind the window are kept, plus the one that
        # the next token replaces.
        self._rewind_rows = max(self._prefill_rows, default=1) + 1 if rings else None
        self._tokens: list[int] = []  # written at positions 0.. and not overwritten since, so never below `position`
        self._position = 0
        self._high_water = 0
        self._written = 0  # positions that may not be zero

    def _bind(self, model: ModelSection, call: Call, arrays: Mapping[str, NDArray[Any]]) -> _Bound:
        run = model.bind(call.name, {**self._caches, **arrays, "logits": self._shared.logits[:, : call.rows]})
        return _Bound(call, run, arrays["embeddings"], arrays.get("per_layer_embeddings"), arrays["input_pos"])

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    @property
    def position(self) -> int:
        return self._position

    @property
    def token_ids(self) -> Sequence[int]:
        return self._tokens[: self._position]

    @property
    def earliest_rewind(self) -> int:
        return 0 if self._rewind_rows is None else max(0, self._high_water - self._rewind_rows)

    def chunks(self, token_ids: Sequence[int]) -> Iterator[int]:
        self._check(token_ids)
        return self._run_chunks([*self._tokens[: self._position], *token_ids], len(token_ids))

    def _run_chunks(self, sequence: Sequence[int], count: int) -> Iterator[int]:
        for chunk in plan_prefill(
            self._position, count, self._prefill_rows, self._context_tokens, self._rewind_rows, self._high_water
        ):
            yield self._position
            sized = [each for each in self._prefills if each.rows == chunk.rows]
            self._run(self._decodes if chunk.is_decode else sized, sequence[chunk.start : chunk.end], chunk.start)

    def prefill(self, token_ids: Sequence[int]) -> None:
        for _ in self.chunks(token_ids):
            pass

    def decode(self, token_id: int) -> Logits:
        self._check([token_id])
        self._run(self._decodes, [token_id], self._position)
        logits: Logits = self._shared.logits[0, 0].copy()  # 1 MiB for Gemma's vocabulary: 0.1 % of a step
        return logits

    def verify_tokens(self) -> Sequence[int]:
        # A step over another span may add in another order.
        span = min((each.call.reach for each in self._decodes if each.call.takes(self._position)), default=None)
        return sorted(
            each.rows
            for each in self._verifies
            if each.call.reach == span and each.call.takes(self._position) and self._has_room(each.rows)
        )

    def _has_room(self, rows: int) -> bool:
        """Whether rows that land in one piece pass no end, of the context or of a ring."""
        return self._position + rows <= self._context_tokens and all(
            self._position % slots + rows <= slots for slots in self._ring_slots
        )

    def verify(self, token_ids: Sequence[int]) -> Logits:
        self._check(token_ids)
        rows = next((n for n in self.verify_tokens() if n >= len(token_ids)), None)
        assert rows is not None, f"{len(token_ids)} tokens at {self._position}: none of verify_tokens is so many"
        self._run([each for each in self._verifies if each.rows == rows], token_ids, self._position)
        logits: Logits = self._shared.logits[0, : len(token_ids)].copy()
        return logits

    def _run(self, among: Sequence[_Bound], token_ids: Sequence[int], start: int) -> None:
        """Run the call that reads least of the caches, its first rows `token_ids`; padding stays as it was (finite)."""
        call = min((each for each in among if each.call.takes(start)), key=lambda each: each.call.reach)
        count = len(token_ids)
        rows = call.embeddings.reshape(call.rows, -1)[:count]
        self._shared.embedder.lookup(token_ids, rows)
        place_soft_rows(token_ids, rows)
        if call.per_layer_embeddings is not None:
            assert self._shared.per_layer_embedder is not None
            per_layer = call.per_layer_embeddings.reshape(call.rows, -1)[:count]
            self._shared.per_layer_embedder.lookup(per_layer_ids(token_ids), per_layer)
        call.input_pos[:] = np.arange(start, start + call.rows)
        # A run that fails or is interrupted may have written: the marks move first.
        self._high_water = max(self._high_water, start + call.rows)
        self._written = max(self._written, self._high_water)
        del self._tokens[start:]
        self._position = start
        call.run()
        self._tokens.extend(token_ids)
        self._position = start + count

    def _check(self, token_ids: Sequence[int]) -> None:
        self._open()
        check_tokens(token_ids, self._position, self._context_tokens, self._shared.embedder.rows, "this bundle's")

    def _open(self) -> None:
        """Raises ClosedError."""
        if not self._decodes or self._decodes[0].run.is_closed:
            raise ClosedError

    def rewind(self, position: int) -> None:
        self._open()
        check_rewind(position, self)
        self._position = position

    def reset(self) -> None:
        self._open()
        # Only what was written: pages that were never touched stay unallocated. What is masked need not be zero, but a
        # NaN left by a broken run would get through the mask.
        for cache in self._parts(self._written).values():
            cache.fill(0)
        self._tokens.clear()
        self._position = self._high_water = self._written = 0

    def _parts(self, position: int) -> dict[str, NDArray[Any]]:
        """What each cache holds of the positions before this one."""
        return {
            name: cache[:, :, :position] if is_key(name) else cache[..., :position]
            for name, cache in self._caches.items()
        }

    def snapshot(self) -> Snapshot:
        self._open()
        rings = {name: self._caches[name].copy() for name in self._rings}
        return Snapshot(tuple(self.token_ids), rings, self._high_water)

    def restore(self, snapshot: Snapshot) -> None:
        self._open()
        check_restore(snapshot, self._tokens)
        self._high_water = snapshot.high_water
        for name, ring in snapshot.rings.items():
            self._caches[name][...] = ring
        self._position = len(snapshot.token_ids)

    def state(self) -> SlotState:
        self._open()
        # Of rings, also what lies above the position: the padding of a chunk may have turned them further.
        parts = self._state_parts(self._position, self._high_water)
        return SlotState(tuple(self.token_ids), self._high_water, parts)

    def set_state(self, state: SlotState) -> None:
        self._open()
        position = len(state.token_ids)
        parts = self._state_parts(position, state.high_water)
        check_state(state, parts, self._context_tokens)
        for name, part in parts.items():
            part[...] = state.arrays[name]
        self._tokens[:] = state.token_ids
        self._position = position
        self._high_water = state.high_water
        self._written = max(self._written, state.high_water)

    def _state_parts(self, position: int, high_water: int) -> dict[str, NDArray[Any]]:
        held, turned = self._parts(position), self._parts(high_water)
        return {name: turned[name] if name in self._rings else part for name, part in held.items()}

    def cached_rows(self) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        self._open()
        rows = {}
        for name in filter(is_key, self._caches):
            keys = self._caches[name][0].swapaxes(0, 1)  # [K, slots, E] -> [slots, K, E]
            values = np.moveaxis(self._caches[name.replace("_k_", "_v_")][0], 2, 0)  # [K, E, slots] -> [slots, K, E]
            first = max(0, self._high_water - len(keys))
            slots = np.arange(first, self._position) % len(keys)
            rows[int(name.rpartition("_")[2])] = (keys[slots].astype(np.float32), values[slots].astype(np.float32))
        return rows

    def give_up(self) -> dict[str, NDArray[Any]]:
        """Its caches, empty as they were; it is closed."""
        self.reset()
        caches = self._caches
        self.close()
        return caches

    def close(self) -> None:
        for each in (*self._decodes, *self._verifies, *self._prefills):
            each.run.close()
        self._decodes, self._verifies, self._prefills, self._caches = [], [], [], {}


def is_key(cache_name: str) -> bool:
    """Keys are [1, K, slots, E], values [1, K, E, slots]."""
    return cache_name.startswith("kv_cache_k")


def slots_of(cache_name: str, shape: Sequence[int]) -> int:
    """Positions that a cache of this shape holds."""
    return shape[2 if is_key(cache_name) else 3]
