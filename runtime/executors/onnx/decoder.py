"""The executor for ONNX directories: ONNX Runtime on the decoder graph, with keys and values in memory of ours.

Past and present of every layer are one buffer, which GroupQueryAttention then updates in place. It reads no slot behind
the current length, so nothing need be zeroed, and rewinding is forgetting, as far as sliding layers have the rows.
"""

import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
from numpy.typing import NDArray

from gemma_edge.runtime.executors.base import (
    BundleMismatchError,
    ContextOverflowError,
    ExecutorError,
    Logits,
    RewindError,
    Snapshot,
)
from gemma_edge.runtime.executors.onnx.graph import PREFILL_TOKENS, Cache, caches, in_place
from gemma_edge.runtime.executors.onnx.packed import packed_graph
from gemma_edge.runtime.executors.onnx.rows import OnnxTable
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.onnx_dir import EMBEDDER, OnnxDirectory
from gemma_edge.runtime.media.soft_tokens import is_in_vocabulary, place_soft_rows
from gemma_edge.runtime.memory.pressure import read_single_pages

_ROW_INPUTS = ("inputs_embeds", "per_layer_inputs")
_PLAIN_INPUTS = {"input_ids", "attention_mask", "position_ids", *_ROW_INPUTS}


class OnnxExecutor:
    """See `Executor`.

    Args:
        directory: what to run; its decoder graph is changed to run in place.
        threads: cores ONNX Runtime may use.
        cache_dir: where packed weights are kept; None packs into memory at every start (E2B: 1.9 GB).
        context_tokens: slots of the KV cache.
    """

    def __init__(self, directory: OnnxDirectory, threads: int, cache_dir: Path | None, context_tokens: int) -> None:
        self._path = directory.graph_path(directory.decoder)
        self._data = directory.decoder_data
        self._context_tokens = context_tokens
        graph = directory.graphs[directory.decoder]
        in_place(graph)
        self._kept = caches(graph)
        packed = None if cache_dir is None else packed_graph(directory, cache_dir, threads)
        self.weight_cache_path = None if packed is None else packed.with_name(f"{packed.name}_data")
        self._session: onnxruntime.InferenceSession | None
        try:
            self._session = _load(self._path, graph, packed, threads)
        except ExecutorError:
            if cache_dir is None or packed is None:
                raise
            shutil.rmtree(packed.parent)  # damaged: packed again, once, as for LiteRT
            packed = packed_graph(directory, cache_dir, threads)
            self._session = _load(self._path, graph, packed, threads)
        inputs = {node.name: node for node in self._session.get_inputs()}
        self._tables = {
            name: OnnxTable(directory.graph_path(EMBEDDER), directory.graphs[EMBEDDER], name)
            for name in _ROW_INPUTS
            if name in inputs
        }
        unknown = inputs.keys() - {cache.name for cache in self._kept} - _PLAIN_INPUTS
        if unknown:
            raise BundleMismatchError(
                f"{self._path}: inputs {sorted(unknown)} are not known, expected {sorted(_PLAIN_INPUTS)} and "
                "past_key_values.*; convert the checkpoint with gemma-edge"
            )
        self._caches = {cache.name: np.zeros(cache.shape(context_tokens), np.float32) for cache in self._kept}
        self._rows = {name: np.zeros((1, PREFILL_TOKENS, *inputs[name].shape[2:]), np.float32) for name in self._tables}
        self._ids = np.zeros((1, PREFILL_TOKENS), np.int64)
        self._positions = np.arange(context_tokens, dtype=np.int64)[None]
        self._mask = np.ones((1, context_tokens), np.int64)
        [vocab_size] = [node.shape[2] for node in self._session.get_outputs() if node.name == "logits"]
        self._logits = np.zeros((1, 1, vocab_size), np.float32)
        self._binding = self._bind()
        self._tokens: list[int] = []
        self._was_run = False

    def _bind(self) -> Any:
        assert self._session is not None
        binding = self._session.io_binding()
        for name, cache in self._caches.items():
            _bind_input(binding, name, cache)
            _bind_output(binding, name.replace("past_key_values", "present"), cache)
        _bind_output(binding, "logits", self._logits)
        return binding

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    @property
    def vocab_size(self) -> int:
        return int(self._logits.shape[-1])

    @property
    def kv_cache_bytes(self) -> int:
        """Memory set aside for keys and values; pages count once they are written."""
        return sum(cache.nbytes for cache in self._caches.values())

    @property
    def row_tables(self) -> dict[str, tuple[FileRange, ...]]:
        """What single rows are read of, by the input that takes them. A graph from ids on has its own in `weights`."""
        return {name: table.stored for name, table in self._tables.items()}

    @cached_property
    def weights(self) -> tuple[FileRange, ...]:
        """The files of the decoder's weights that are mapped."""
        data = self._data if self.weight_cache_path is None else [self.weight_cache_path]
        return tuple(FileRange(path, 0, path.stat().st_size) for path in data)

    @property
    def position(self) -> int:
        return len(self._tokens)

    @property
    def token_ids(self) -> Sequence[int]:
        return self._tokens

    @property
    def earliest_rewind(self) -> int:
        return max((_earliest(self.position, cache) for cache in self._kept), default=0)

    def prefill(self, token_ids: Sequence[int], before_chunk: Callable[[int], None] | None = None) -> None:
        self._check(token_ids)
        for first in range(0, len(token_ids), PREFILL_TOKENS):
            if before_chunk is not None:
                before_chunk(self.position)
            self._run(token_ids[first : first + PREFILL_TOKENS])

    def decode(self, token_id: int) -> Logits:
        self._check([token_id])
        self._run([token_id])
        logits: Logits = self._logits.reshape(-1).copy()
        return logits

    def _run(self, token_ids: Sequence[int]) -> None:
        assert self._session is not None
        count, start = len(token_ids), self.position
        for name, table in self._tables.items():
            rows = self._rows[name][:, :count]
            table.lookup(token_ids, rows.reshape(count, -1))
            if name == "inputs_embeds":
                place_soft_rows(token_ids, rows[0])
            _bind_input(self._binding, name, rows)
        if not self._tables:
            self._ids[0, :count] = token_ids
            _bind_input(self._binding, "input_ids", self._ids[:, :count])
        _bind_input(self._binding, "position_ids", self._positions[:, start : start + count])
        _bind_input(self._binding, "attention_mask", self._mask[:, : start + count])
        # A run that fails or is interrupted may have moved the rows of sliding layers: then nothing is held.
        held, self._tokens = self._tokens, []
        self._session.run_with_iobinding(self._binding)
        if self.weight_cache_path is not None and not self._was_run:  # which read all weights, in large pieces
            read_single_pages(self.weights)
        self._was_run = True
        held.extend(token_ids)
        self._tokens = held

    def _check(self, token_ids: Sequence[int]) -> None:
        self._check_open()
        asked = self.position + len(token_ids)
        if asked > self._context_tokens:
            raise ContextOverflowError(asked, self._context_tokens)
        wrong = next((token for token in token_ids if not is_in_vocabulary(token, self.vocab_size)), None)
        if wrong is not None:
            raise ExecutorError(
                f"token id {wrong} is outside the vocabulary of {self.vocab_size}; tokenize with this model's tokenizer"
            )

    def _check_open(self) -> None:
        if self._session is None:
            raise ExecutorError("the executor is closed; create a new engine")

    def rewind(self, position: int) -> None:
        self._check_open()
        if not self.earliest_rewind <= position <= self.position:
            raise RewindError(
                f"cannot rewind to position {position}; {self.earliest_rewind} to {self.position} are in the cache; "
                "restore a snapshot or reset and prefill again"
            )
        del self._tokens[position:]

    def reset(self) -> None:
        self._check_open()
        self._tokens.clear()

    def snapshot(self) -> Snapshot:
        self._check_open()
        sliding = {cache.name: self._caches[cache.name].copy() for cache in self._kept if cache.window}
        return Snapshot(tuple(self._tokens), sliding, sum(copy.nbytes for copy in sliding.values()))

    def restore(self, snapshot: Snapshot) -> None:
        self._check_open()
        position = len(snapshot.token_ids)
        if tuple(self._tokens[:position]) != snapshot.token_ids:
            raise RewindError(
                f"cannot restore the snapshot at position {position}: tokens before it were replaced since; "
                "reset and prefill again"
            )
        for name, copy in snapshot.state.items():
            self._caches[name][...] = copy
        del self._tokens[position:]

    def cached_rows(self) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """As LitertExecutor's; only of layers whose cache has dropped no row yet."""
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
        self._session = None
        self.__dict__.pop("_binding", None)
        self._caches, self._tables = {}, {}


def _load(path: Path, graph: onnx_ir.Model, packed: Path | None, threads: int) -> onnxruntime.InferenceSession:
    """The graph as it was packed; without that, as it is in memory with the weights beside `path`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; they also arrive as exceptions
    # Waiting threads sleep: where cores are shared, spinning ones halve the speed; where they are not it gains nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source: str | bytes
    if packed is None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        source = onnx_ir.to_proto(graph).SerializeToString()
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it was
        source = str(packed)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's classes share no base
        reason = str(error).splitlines()[0]
        raise ExecutorError(f"{path}: ONNX Runtime cannot load it ({reason}); convert the checkpoint again") from error


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
