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

import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.profiles.signatures import Call
from gemma_edge.runtime.executors.base import ClosedError, Logits, SlotState, Snapshot
from gemma_edge.runtime.executors.checks import check_restore, check_rewind, check_state, check_tokens
from gemma_edge.runtime.executors.litert.drafter import ACTIVATIONS, DrafterSection
from gemma_edge.runtime.executors.litert.library import BoundSignature
from gemma_edge.runtime.executors.litert.models import ModelSection
from gemma_edge.runtime.executors.litert.prefill_plan import plan_prefill
from gemma_edge.runtime.executors.litert.tables import EmbeddingTable
from gemma_edge.runtime.media.soft_tokens import per_layer_ids, place_soft_rows


@dataclass(frozen=True)
class Shared:
    """What all slots of a decoder use, one at a time.

    arrays: of each call, embeddings [1,T,D], per_layer_embeddings [1,T,L,P] in Gemma 3n, and input_pos [T]; and
    activations [1,T,D], which those with logits give where there is a drafter.
    logits: float32 [1,N,V], of the most tokens that a call gives them of; the others write to its first rows.
    """

    arrays: Mapping[Call, Mapping[str, NDArray[Any]]]
    logits: NDArray[np.float32]
    embedder: EmbeddingTable
    per_layer_embedder: EmbeddingTable | None
    drafter: DrafterSection | None = None

    def look_up(self, token_ids: Sequence[int], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Fill the first rows of a call's arrays with the embeddings of these tokens; the others stay as they were."""
        count, embeddings = len(token_ids), arrays["embeddings"]
        rows = embeddings.reshape(embeddings.shape[1], -1)[:count]
        self.embedder.lookup(token_ids, rows)
        place_soft_rows(token_ids, rows)
        if (per_layer := arrays.get("per_layer_embeddings")) is not None:
            assert self.per_layer_embedder is not None
            self.per_layer_embedder.lookup(per_layer_ids(token_ids), per_layer.reshape(per_layer.shape[1], -1)[:count])

    def hidden(self, call: Call) -> NDArray[np.float32] | None:
        """Where a run of it leaves the hidden states of its rows, [1, T, D]; None where no drafter wants them."""
        return self.arrays[call].get(ACTIVATIONS) if call.has_logits and self.drafter is not None else None


@dataclass(frozen=True)
class _Bound:
    """A call, bound, with its arrays, as `Shared.arrays` has them."""

    call: Call
    run: BoundSignature
    arrays: Mapping[str, NDArray[Any]]

    @property
    def rows(self) -> int:
        return self.call.rows

    @property
    def input_pos(self) -> NDArray[np.int32]:
        return self.arrays["input_pos"]


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
        bound = [self._bind(model, call, arrays) for call, arrays in shared.arrays.items() if not call.is_batch]
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
        self._drafter = None if shared.drafter is None else shared.drafter.bind(caches)
        self._hidden: NDArray[np.float32] | None = None  # [n, D], of the rows that ran last
        self._hidden_start = 0  # where the first of them stands
        self.bound_elsewhere: weakref.WeakSet[BoundSignature] = weakref.WeakSet()  # over these caches; close with them
        self._release = weakref.finalize(self, _close_all, self.bound_elsewhere)

    def _bind(self, model: ModelSection, call: Call, arrays: Mapping[str, NDArray[Any]]) -> _Bound:
        run = model.bind(call.name, {**self._caches, **arrays, "logits": self._shared.logits[:, : call.rows]})
        return _Bound(call, run, arrays)

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
        self.check(token_ids)
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
        self.check([token_id])
        self._run(self._decodes, [token_id], self._position)
        logits: Logits = self._shared.logits[0, 0].copy()  # 1 MiB for Gemma's vocabulary: 0.1 % of a step
        return logits

    def verify_tokens(self) -> Sequence[int]:
        return sorted(
            each.rows
            for each in self._verifies
            if each.call.reach == self.span and each.call.takes(self._position) and self._has_room(each.rows)
        )

    def _has_room(self, rows: int) -> bool:
        """Whether rows that land in one piece pass no end, of the context or of a ring."""
        return self._position + rows <= self._context_tokens and all(
            self._position % slots + rows <= slots for slots in self._ring_slots
        )

    def verify(self, token_ids: Sequence[int]) -> Logits:
        self.check(token_ids)
        rows = next((n for n in self.verify_tokens() if n >= len(token_ids)), None)
        assert rows is not None, f"{len(token_ids)} tokens at {self._position}: none of verify_tokens is so many"
        self._run([each for each in self._verifies if each.rows == rows], token_ids, self._position)
        logits: Logits = self._shared.logits[0, : len(token_ids)].copy()
        return logits

    def draft(self, token_id: int, n: int) -> Sequence[int]:
        self.check([token_id])
        row = self._position - 1 - self._hidden_start
        if self._drafter is None or self._hidden is None or not 0 <= row < len(self._hidden):
            return ()
        return self._drafter.guesses(token_id, self._hidden[row], self._position, n)

    def _run(self, among: Sequence[_Bound], token_ids: Sequence[int], start: int) -> None:
        """Run the call that reads least of the caches, its first rows `token_ids`; padding stays as it was (finite)."""
        call = min((each for each in among if each.call.takes(start)), key=lambda each: each.call.reach)
        self._shared.look_up(token_ids, call.arrays)
        call.input_pos[:] = np.arange(start, start + call.rows)
        self.begin(start, call.rows)
        call.run()
        self.end(token_ids, self._shared.hidden(call.call))

    def begin(self, start: int, rows: int) -> None:
        """A run will write so many rows. One that fails or is interrupted may have written: the marks move first."""
        self._high_water = max(self._high_water, start + rows)
        self._written = max(self._written, self._high_water)
        del self._tokens[start:]
        self._position = start
        self._hidden = None

    def end(self, token_ids: Sequence[int], hidden: NDArray[np.float32] | None) -> None:
        """It has, and these tokens are what counts of them. hidden: of its rows, see `Shared.hidden`."""
        self._hidden = None if hidden is None else hidden[0, : len(token_ids)].copy()
        self._hidden_start = self._position
        self._tokens.extend(token_ids)
        self._position += len(token_ids)

    @property
    def shared(self) -> Shared:
        """What it was made with; slots of one model have the same."""
        return self._shared

    @property
    def caches(self) -> Mapping[str, NDArray[Any]]:
        """Keys [1,K,S,E] and values [1,K,E,S] by name, read and written in place."""
        return self._caches

    @property
    def span(self) -> float:
        """How far back the next decode step looks. A step over another span may add in another order."""
        return min((each.call.reach for each in self._decodes if each.call.takes(self._position)), default=math.inf)

    def check(self, token_ids: Sequence[int]) -> None:
        """Raises what running these tokens next would."""
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
        self._hidden = None
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
        self._hidden = None
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
        self._release()
        for each in (*self._decodes, *self._verifies, *self._prefills):
            each.run.close()
        if self._drafter is not None:
            self._drafter.close()
        self._decodes, self._verifies, self._prefills, self._caches = [], [], [], {}


def _close_all(bound: Iterable[BoundSignature]) -> None:
    for each in list(bound):
        each.close()


def is_key(cache_name: str) -> bool:
    """Keys are [1, K, slots, E], values [1, K, E, slots]."""
    return cache_name.startswith("kv_cache_k")


def slots_of(cache_name: str, shape: Sequence[int]) -> int:
    """Positions that a cache of this shape holds."""
    return shape[2 if is_key(cache_name) else 3]
