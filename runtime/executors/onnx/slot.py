"""The KV cache of one token sequence in an ONNX decoder: past and present of every layer are one buffer.

GroupQueryAttention updates it in place. It reads no slot behind the current length, so nothing need be zeroed, and
rewinding is forgetting, as far as sliding layers have the rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gemma_edge.runtime.executors.base import ClosedError, ExecutorError, Logits, SlotState, Snapshot
from gemma_edge.runtime.executors.checks import check_restore, check_rewind, check_state, check_tokens
from gemma_edge.runtime.executors.onnx.graph import PREFILL_TOKENS, Cache
from gemma_edge.runtime.executors.onnx.rows import OnnxTable
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.media.soft_tokens import per_layer_ids, place_soft_rows
from gemma_edge.runtime.memory.pressure import read_single_pages

LONGEST_REASON = 300
"""Characters of what ONNX Runtime says that a message repeats."""
ROW_INPUTS = ("inputs_embeds", "per_layer_inputs")


class Shared:
    """What all slots of a decoder use, one at a time.

    Args:
        session: None once it is closed.
        tables: that rows are read of, by input; none in a graph that takes token ids.
        rows: float32 [1, PREFILL_TOKENS, ...] by input.
        ids: int64 [1, PREFILL_TOKENS].
        logits: float32 [1, 1, V].
        packed: mapped files of weights that the first run reads in large pieces, and later runs page by page.
        path: of the graph, for messages.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        tables: Mapping[str, OnnxTable],
        rows: Mapping[str, NDArray[np.float32]],
        ids: NDArray[np.int64],
        logits: NDArray[np.float32],
        packed: Sequence[FileRange],
        path: Path,
    ) -> None:
        self.session: onnxruntime.InferenceSession | None = session
        self.tables = tables
        self.rows = rows
        self.ids = ids
        self.logits = logits
        self._packed: Sequence[FileRange] = packed
        self._path = path

    def run(self, binding: Any) -> None:
        """One run of the model. Raises ExecutorError where ONNX Runtime cannot."""
        assert self.session is not None
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's classes share no base
            reason = " ".join(str(error).split())[:LONGEST_REASON]
            raise ExecutorError(
                f"{self._path}: ONNX Runtime cannot run it ({reason}); convert the checkpoint again"
            ) from error
        if self._packed:
            read_single_pages(self._packed)
            self._packed = ()

    def close(self) -> None:
        """Let go of the model and its tables."""
        self.session, self.tables = None, {}


class OnnxSlot:
    """See `KvSlot`. Made by `OnnxDecoder.new_slot`."""

    def __init__(self, shared: Shared, kept: Sequence[Cache], context_tokens: int) -> None:
        assert shared.session is not None
        self._shared = shared
        self._kept = kept
        self._context_tokens = context_tokens
        self._caches = {cache.name: np.zeros(cache.shape(context_tokens), np.float32) for cache in kept}
        self._positions = np.arange(context_tokens, dtype=np.int64)[None]
        self._mask = np.ones((1, context_tokens), np.int64)
        self._tokens: list[int] = []
        self._binding: Any = shared.session.io_binding()
        for cache in kept:
            _bind_input(self._binding, cache.name, self._caches[cache.name])
            _bind_output(self._binding, cache.output, self._caches[cache.name])
        _bind_output(self._binding, "logits", shared.logits)

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    @property
    def position(self) -> int:
        return len(self._tokens)

    @property
    def token_ids(self) -> Sequence[int]:
        return tuple(self._tokens)

    @property
    def earliest_rewind(self) -> int:
        return max((_earliest(self.position, cache) for cache in self._kept), default=0)

    def chunks(self, token_ids: Sequence[int]) -> Iterator[int]:
        self._check(token_ids)
        return self._run_chunks(token_ids)

    def _run_chunks(self, token_ids: Sequence[int]) -> Iterator[int]:
        for first in range(0, len(token_ids), PREFILL_TOKENS):
            yield self.position
            self._run(token_ids[first : first + PREFILL_TOKENS])

    def prefill(self, token_ids: Sequence[int]) -> None:
        for _ in self.chunks(token_ids):
            pass

    def decode(self, token_id: int) -> Logits:
        self._check([token_id])
        self._run([token_id])
        logits: Logits = self._shared.logits.reshape(-1).copy()
        return logits

    def verify_tokens(self) -> Sequence[int]:
        return ()  # see OnnxDecoder.can_verify

    def verify(self, token_ids: Sequence[int]) -> Logits:
        return np.stack([self.decode(token_id) for token_id in token_ids])

    def draft(self, token_id: int, n: int) -> Sequence[int]:
        del token_id, n
        return ()  # no drafter is written for it

    def _run(self, token_ids: Sequence[int]) -> None:
        count, start = len(token_ids), self.position
        for name, table in self._shared.tables.items():
            rows = self._shared.rows[name][:, :count]
            is_text = name == "inputs_embeds"
            table.lookup(token_ids if is_text else per_layer_ids(token_ids), rows.reshape(count, -1))
            if is_text:
                place_soft_rows(token_ids, rows[0])
            _bind_input(self._binding, name, rows)
        if not self._shared.tables:
            self._shared.ids[0, :count] = token_ids
            _bind_input(self._binding, "input_ids", self._shared.ids[:, :count])
        _bind_input(self._binding, "position_ids", self._positions[:, start : start + count])
        _bind_input(self._binding, "attention_mask", self._mask[:, : start + count])
        # A run that fails or is interrupted may have moved the rows of sliding layers: then nothing is held.
        held, self._tokens = self._tokens, []
        self._shared.run(self._binding)
        held.extend(token_ids)
        self._tokens = held

    def _check(self, token_ids: Sequence[int]) -> None:
        self._check_open()
        vocabulary = int(self._shared.logits.shape[-1])
        check_tokens(token_ids, self.position, self._context_tokens, vocabulary, "this model's")

    def _check_open(self) -> None:
        if self._shared.session is None or not self._caches:
            raise ClosedError

    def rewind(self, position: int) -> None:
        self._check_open()
        check_rewind(position, self)
        del self._tokens[position:]

    def reset(self) -> None:
        self._check_open()
        self._tokens.clear()

    def snapshot(self) -> Snapshot:
        self._check_open()
        sliding = {cache.name: self._caches[cache.name].copy() for cache in self._kept if cache.window}
        return Snapshot(tuple(self._tokens), sliding, self.position)

    def restore(self, snapshot: Snapshot) -> None:
        self._check_open()
        check_restore(snapshot, self._tokens)
        for name, copy in snapshot.rings.items():
            self._caches[name][...] = copy
        del self._tokens[len(snapshot.token_ids) :]

    def state(self) -> SlotState:
        self._check_open()
        return SlotState(tuple(self._tokens), self.position, self._parts(self.position))

    def set_state(self, state: SlotState) -> None:
        self._check_open()
        parts = self._parts(len(state.token_ids))
        check_state(state, parts, self._context_tokens)
        for name, part in parts.items():
            part[...] = state.arrays[name]
        self._tokens[:] = state.token_ids

    def _parts(self, position: int) -> dict[str, NDArray[Any]]:
        """What is held at this position: of sliding layers all of it once they are full."""
        return {name: cache[:, :, :position] for name, cache in self._caches.items()}

    def cached_rows(self) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        self._check_open()
        pairs = zip(self._kept[::2], self._kept[1::2], strict=True)  # key, value of each layer
        return {
            int(key.name.split(".")[1]): (self._rows_of(key), self._rows_of(value))
            for key, value in pairs
            if _earliest(self.position, key) == 0
        }

    def _rows_of(self, cache: Cache) -> NDArray[np.float32]:
        """[1, K, slots, E] -> [position, K, E]."""
        rows: NDArray[np.float32] = self._caches[cache.name][0, :, : self.position].swapaxes(0, 1).copy()
        return rows

    def close(self) -> None:
        self._caches, self._binding = {}, None


def _earliest(position: int, cache: Cache) -> int:
    """The lowest position whose rows lie where they lie now.

    A sliding cache of C slots drops G = C - window + 1 rows at once when it is full; how often it did by position T is
    ceil((T - C) / G) (onnxruntime, documentation of GroupQueryAttention, "Windowed KV Cache").
    """
    if cache.window is None:
        return 0
    slots = cache.window + PREFILL_TOKENS
    dropped = slots - cache.window + 1
    times = -(-(position - slots) // dropped)
    return slots + (times - 1) * dropped + 1 if times > 0 else 0


def _bind_input(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
