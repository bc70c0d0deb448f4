"""The executor for ONNX directories: ONNX Runtime on the decoder graph, with keys and values in memory of ours.

The arrays that a run reads beside the caches, and its logits, belong to the decoder: slots run one at a time, and a
slot then costs no more than its caches.
"""

import hashlib
import logging
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime

from gemma_edge.runtime.executors.base import (
    WEIGHT_CACHE,
    BundleMismatchError,
    ClosedError,
    ExecutorError,
    KvSlot,
    Logits,
    MappedRanges,
)
from gemma_edge.runtime.executors.litert.section_hash import section_sha256
from gemma_edge.runtime.executors.litert.weight_cache import cache_opened
from gemma_edge.runtime.executors.onnx.data import check_data, with_real_files
from gemma_edge.runtime.executors.onnx.graph import PREFILL_TOKENS, Cache, caches, in_place
from gemma_edge.runtime.executors.onnx.packed import content_key, packed_in
from gemma_edge.runtime.executors.onnx.rows import OnnxTable
from gemma_edge.runtime.executors.onnx.slot import LONGEST_REASON, ROW_INPUTS, OnnxSlot, Shared
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.onnx_digests import DIGESTS
from gemma_edge.runtime.formats.onnx_dir import EMBEDDER, OnnxDirectory, as_ours

_log = logging.getLogger(__name__)
_PLAIN_INPUTS = {"input_ids", "attention_mask", "position_ids", *ROW_INPUTS}


class OnnxDecoder:
    """See `Decoder`.

    Args:
        directory: what to run; its decoder graph is changed to run in place.
        threads: cores ONNX Runtime may use.
        cache_dir: where packed weights are kept; None packs into memory at every start (E2B: 1.9 GB).

    Raises OnnxDirectoryError without metadata, which says how long a context it was converted for, and for weights that
    are not those that were converted, BundleMismatchError for a graph of others.
    """

    def __init__(self, directory: OnnxDirectory, threads: int, cache_dir: Path | None) -> None:
        self._directory = directory
        self._notes = cache_dir
        self._context_tokens = int(directory.metadata().max_num_tokens)
        path = directory.graph_path(directory.decoder)
        graph = directory.graphs[directory.decoder]
        with as_ours(path):
            in_place(graph)
            self._kept = caches(graph)
        if cache_dir is None:
            check_data(directory, graph, None)
            session, self._weight_cache = _load(path, graph, None, threads), None
        else:
            session, self._weight_cache = _load_packed(directory, cache_dir, threads)
        if directory.is_split:
            check_data(directory, directory.graphs[EMBEDDER], cache_dir)
        if directory.digests.recorded is None:
            _log.warning(
                "%s: has no %s, an older gemma-edge wrote it: damaged weights go unnoticed; convert it again",
                directory.path,
                DIGESTS,
            )
        with as_ours(path):
            inputs = {node.name: node for node in session.get_inputs()}
            tables = {
                name: OnnxTable(directory.graph_path(EMBEDDER), directory.graphs[EMBEDDER], name)
                for name in ROW_INPUTS
                if name in inputs
            }
            unknown = inputs.keys() - {cache.name for cache in self._kept} - _PLAIN_INPUTS
            if unknown:
                raise BundleMismatchError(
                    f"{path}: inputs {sorted(unknown)} are not known, expected {sorted(_PLAIN_INPUTS)} and "
                    "past_key_values.*; convert the checkpoint with gemma-edge"
                )
            outputs = {node.name: node for node in session.get_outputs()}
            missing = {"logits", *(cache.output for cache in self._kept)} - outputs.keys()
            if missing:
                raise BundleMismatchError(
                    f"{path}: no outputs {sorted(missing)}, a decoder has logits and one for each cache; convert the "
                    "checkpoint with gemma-edge"
                )
            self._vocab_size = int(outputs["logits"].shape[2])
            self._rows = {name: table.stored for name, table in tables.items()}
            self._shared = Shared(
                session,
                tables,
                {name: np.zeros((1, PREFILL_TOKENS, *inputs[name].shape[2:]), np.float32) for name in tables},
                np.zeros((1, PREFILL_TOKENS), np.int64),
                np.zeros((1, 1, self._vocab_size), np.float32),
                () if self._weight_cache is None else self._weights,
                path,
            )

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def can_verify(self) -> bool:
        """No: ONNX Runtime multiplies several rows with other kernels than one, which round otherwise (logits of Gemma
        3 270M in int4 by up to 0.6), and the text would depend on what was guessed. 4 rows take 1.8 steps (1.31.1).
        """
        return False

    @property
    def can_draft(self) -> bool:
        return False

    @property
    def batch_rows(self) -> Sequence[int]:
        """None, for the same reason: a reply would depend on what else is being written."""
        return ()

    def batches(self, slots: Sequence[KvSlot]) -> Sequence[Sequence[KvSlot]]:  # noqa: ARG002  as Decoder has it
        return ()

    def decode_batch(self, slots: Sequence[KvSlot], token_ids: Sequence[int]) -> Logits:
        return np.stack([slot.decode(token_id) for slot, token_id in zip(slots, token_ids, strict=True)])

    @property
    def embedding_bytes(self) -> int:
        rows = self._shared.rows.get(ROW_INPUTS[0])
        return 0 if rows is None else rows.shape[-1] * rows.itemsize  # from token ids on: text only

    @cached_property
    def digest(self) -> str:
        tables = (part for parts in self._rows.values() for part in parts)
        parts = [content_key(self._directory, self._notes), *(section_sha256(part, self._notes) for part in tables)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def new_slot(self, context_tokens: int | None = None) -> OnnxSlot:
        if self._shared.session is None:
            raise ClosedError
        longest = self._context_tokens
        context = longest if context_tokens is None else context_tokens
        if not 0 < context <= longest:
            raise ExecutorError(
                f"max_num_tokens is {context}, {self._directory.path.name} was converted for {longest}; "
                f"ask for 1 to {longest} or convert with a longer context"
            )
        return OnnxSlot(self._shared, self._kept, context)

    def slot_bytes(self, context_tokens: int | None = None) -> int:
        return sum(_nbytes(cache, context_tokens or self._context_tokens) for cache in self._kept)

    def snapshot_bytes(self, context_tokens: int | None = None) -> int:
        context = context_tokens or self._context_tokens
        return sum(_nbytes(cache, context) for cache in self._kept if cache.window)

    @cached_property
    def _weights(self) -> tuple[FileRange, ...]:
        """The files of the decoder's weights that are mapped."""
        data = self._directory.decoder_data if self._weight_cache is None else [self._weight_cache]
        return tuple(map(FileRange.whole, data))

    def mapped_ranges(self) -> MappedRanges:
        """A graph from token ids on has its table among the weights."""
        if self._shared.session is None:
            return MappedRanges()
        weights_name = self._directory.decoder if self._weight_cache is None else WEIGHT_CACHE
        rows = tuple(part for parts in self._rows.values() for part in parts)
        return MappedRanges(rows, self._weights, {**self._rows, weights_name: self._weights})

    def close(self) -> None:
        self._shared.close()


def _nbytes(cache: Cache, context_tokens: int) -> int:
    """Of what is written: a context shorter than a ring leaves the rest untouched."""
    shape = cache.shape(context_tokens)
    return math.prod(shape) // shape[2] * min(shape[2], context_tokens) * np.dtype(np.float32).itemsize


def _load_packed(directory: OnnxDirectory, cache_dir: Path, threads: int) -> tuple[onnxruntime.InferenceSession, Path]:
    """A session, and the file of packed weights that it maps."""
    graph_path = directory.graph_path(directory.decoder)
    with cache_opened(cache_dir) as folder:
        for is_last in (False, True):
            packed = packed_in(folder, directory, threads)
            try:
                session = _load(graph_path, directory.graphs[directory.decoder], packed, threads)
                break
            except ExecutorError:
                if is_last:
                    raise
                folder.remove(packed.parent.name)  # damaged: packed again, once, as for LiteRT
        return session, folder.path / packed.parent.name / f"{packed.name}_data"


def _load(path: Path, graph: onnx_ir.Model, packed: Path | None, threads: int) -> onnxruntime.InferenceSession:
    """The graph as it was packed; without that, as it is in memory with the weights beside `path`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; they also arrive as exceptions
    # Waiting threads sleep: where cores are shared, spinning ones halve the speed; where they are not it gains nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source: str | bytes
    if packed is None:
        source, folder = with_real_files(graph, path.parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it was
        source = str(packed)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's classes share no base
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise ExecutorError(f"{path}: ONNX Runtime cannot load it ({reason}); convert the checkpoint again") from error
