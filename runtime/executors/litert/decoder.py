"""Our executor: LiteRT's compiled model on the decoder section inside the bundle.

The KV cache is memory of ours, read and written in place by `decode` and by every `prefill_N`. Embedding rows come from
the mapped tables. Facts behind every rule here were measured with ai-edge-litert 2.3.0:

- the cache starts zeroed: a NaN in an unused slot poisons the logits even when masked;
- rows of a partly filled chunk are real tokens first, padding after; padding is overwritten by what comes next;
- a chunk that passes the end of the context corrupts the cache (the write is clamped), so none ever does;
- sliding layers may keep rings of R slots with R >= window + largest prefill. A ring is exact at a position as long as
  the highest position ever written, padding included, is at most R - window + 1 above it.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemma_edge.runtime.executors.base import (
    BundleMismatchError,
    ContextOverflowError,
    ExecutorError,
    Logits,
    RewindError,
    Snapshot,
)
from gemma_edge.runtime.executors.litert.library import BoundSignature, CompiledSection, Signature, aligned_zeros
from gemma_edge.runtime.executors.litert.prefill_plan import plan_prefill
from gemma_edge.runtime.executors.litert.section_hash import section_sha256
from gemma_edge.runtime.executors.litert.sections import has_model, section_range
from gemma_edge.runtime.executors.litert.tables import EmbeddingTable
from gemma_edge.runtime.executors.litert.weight_cache import compile_section
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType
from gemma_edge.runtime.media.soft_tokens import is_in_vocabulary, place_soft_rows

_INPUTS = {"embeddings", "per_layer_embeddings", "input_pos"}
_CACHE = re.compile(r"kv_cache_([kv])_\d+")


@dataclass(frozen=True)
class DecoderSections:
    """Where the parts of a text decoder lie; `per_layer_embedder` is Gemma 3n's."""

    decoder: FileRange
    embedder: FileRange
    per_layer_embedder: FileRange | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> "DecoderSections":
        """The sections of a bundle. Raises BundleError when one is missing."""
        has_per_layer = has_model(bundle, ModelType.PER_LAYER_EMBEDDER)
        return cls(
            section_range(bundle, ModelType.PREFILL_DECODE),
            section_range(bundle, ModelType.EMBEDDER),
            section_range(bundle, ModelType.PER_LAYER_EMBEDDER) if has_per_layer else None,
        )


@dataclass(frozen=True)
class _Call:
    """A bound signature with the arrays it reads: embeddings [1,T,D], per-layer [1,T,L,P] or None, positions [T]."""

    run: BoundSignature
    embeddings: NDArray[np.float32]
    per_layer_embeddings: NDArray[np.float32] | None
    input_pos: NDArray[np.int32]

    @property
    def rows(self) -> int:
        return len(self.input_pos)


class LitertExecutor:
    """See `Executor`.

    Args:
        sections: what to run.
        threads: cores XNNPACK may use.
        cache_dir: where packed weights are kept; None packs into memory at every start (E2B: 2.5 GB, 6 s).
        max_num_tokens: a context shorter than the bundle's.
    """

    def __init__(
        self, sections: DecoderSections, threads: int, cache_dir: Path | None, max_num_tokens: int | None = None
    ) -> None:
        self._model: CompiledSection | None
        self._model, self.weight_cache_path = compile_section(sections.decoder, threads, cache_dir)
        try:
            self._embedder = _table(sections.embedder, cache_dir)
            per_layer = sections.per_layer_embedder
            self._per_layer_embedder = None if per_layer is None else _table(per_layer, cache_dir)
            self._bind(sections, max_num_tokens)
        except BaseException:
            self.close()
            raise
        self._tokens: list[int] = []  # written at positions 0.. and not overwritten since, so never below `position`
        self._position = 0
        self._high_water = 0

    def _bind(self, sections: DecoderSections, max_num_tokens: int | None) -> None:
        model = self._model
        assert model is not None
        signatures = model.signatures
        if "decode" not in signatures or "logits" not in signatures["decode"].outputs:
            raise BundleMismatchError(
                f"{sections.decoder.path}: found signatures {sorted(signatures)}, expected decode with logits; "
                "convert the checkpoint with gemma-edge"
            )
        decode = signatures["decode"]
        caches = {name: tensor for name, tensor in decode.inputs.items() if _CACHE.fullmatch(name)}
        unknown = decode.inputs.keys() - caches.keys() - _INPUTS
        if unknown:
            raise BundleMismatchError(
                f"{sections.decoder.path}: decoder inputs {sorted(unknown)} are not known, expected {sorted(_INPUTS)} "
                "and kv_cache_*; convert the checkpoint with gemma-edge"
            )
        self._check_widths(decode, sections)
        self._caches = {name: aligned_zeros(tensor) for name, tensor in caches.items()}
        slots = {name: tensor.shape[2 if _is_key(name) else 3] for name, tensor in caches.items()}
        longest = max(slots.values())
        self._rings = [name for name, count in slots.items() if count < longest]
        self._context_tokens = longest if max_num_tokens is None else max_num_tokens
        if not 0 < self._context_tokens <= longest:
            raise ExecutorError(
                f"max_num_tokens is {max_num_tokens}, the KV cache of {sections.decoder.path.name} holds {longest}; "
                f"ask for 1 to {longest} or convert with a longer context"
            )
        self._logits = aligned_zeros(decode.outputs["logits"])
        self._decode = self._make_call("decode")
        prefills = sorted(name for name in signatures if re.fullmatch(r"prefill_\d+", name))
        self._prefills = {call.rows: call for call in map(self._make_call, prefills)}
        # R >= window + largest prefill, so at least `largest` positions behind the window are kept, plus the one that
        # the next token replaces.
        self._rewind_rows = max(self._prefills, default=1) + 1 if self._rings else None

    def _check_widths(self, decode: Signature, sections: DecoderSections) -> None:
        tables = {"embeddings": self._embedder, "per_layer_embeddings": self._per_layer_embedder}
        for name, table in tables.items():
            wanted = math.prod(decode.inputs[name].shape) if name in decode.inputs else 0
            found = 0 if table is None else table.width
            if wanted != found:
                raise BundleMismatchError(
                    f"{sections.decoder.path}: the decoder takes {name} of {wanted} values a token, the bundle's table "
                    f"gives {found}; convert the checkpoint again"
                )

    def _make_call(self, name: str) -> _Call:
        assert self._model is not None
        signature = self._model.signatures[name]
        arrays = {key: aligned_zeros(signature.inputs[key]) for key in _INPUTS & signature.inputs.keys()}
        run = self._model.bind(name, {**self._caches, **arrays, "logits": self._logits})
        return _Call(run, arrays["embeddings"], arrays.get("per_layer_embeddings"), arrays["input_pos"])

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    @property
    def vocab_size(self) -> int:
        return int(self._logits.shape[-1])

    @property
    def kv_cache_bytes(self) -> int:
        """Memory set aside for keys and values."""
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

    def prefill(self, token_ids: Sequence[int], before_chunk: Callable[[int], None] | None = None) -> None:
        self._check(token_ids)
        sequence = [*self._tokens[: self._position], *token_ids]
        chunks = plan_prefill(
            self._position,
            len(token_ids),
            tuple(self._prefills),
            self._context_tokens,
            self._rewind_rows,
            self._high_water,
        )
        for chunk in chunks:
            if before_chunk is not None:
                before_chunk(self._position)
            call = self._decode if chunk.is_decode else self._prefills[chunk.rows]
            self._run(call, sequence[chunk.start : chunk.end], chunk.start)

    def decode(self, token_id: int) -> Logits:
        self._check([token_id])
        self._run(self._decode, [token_id], self._position)
        logits: Logits = self._logits.reshape(-1).copy()  # 1 MiB for Gemma's vocabulary: 0.1 % of a step
        return logits

    def _run(self, call: _Call, token_ids: Sequence[int], start: int) -> None:
        """Run one call whose first rows are `token_ids`; the padding after them is left as it was (finite)."""
        count = len(token_ids)
        rows = call.embeddings.reshape(call.rows, -1)[:count]
        self._embedder.lookup(token_ids, rows)
        place_soft_rows(token_ids, rows)
        if call.per_layer_embeddings is not None:
            assert self._per_layer_embedder is not None
            self._per_layer_embedder.lookup(token_ids, call.per_layer_embeddings.reshape(call.rows, -1)[:count])
        call.input_pos[:] = np.arange(start, start + call.rows)
        # A run that fails or is interrupted may have written: the marks move first.
        self._high_water = max(self._high_water, start + call.rows)
        del self._tokens[start:]
        self._position = start
        call.run()
        self._tokens.extend(token_ids)
        self._position = start + count

    def _check(self, token_ids: Sequence[int]) -> None:
        self._check_open()
        asked = self._position + len(token_ids)
        if asked > self._context_tokens:
            raise ContextOverflowError(asked, self._context_tokens)
        wrong = next((token for token in token_ids if not is_in_vocabulary(token, self._embedder.rows)), None)
        if wrong is not None:
            raise ExecutorError(
                f"token id {wrong} is outside the vocabulary of {self._embedder.rows}; "
                "tokenize with this bundle's tokenizer"
            )

    def _check_open(self) -> None:
        if self._model is None:
            raise ExecutorError("the executor is closed; create a new engine")

    def rewind(self, position: int) -> None:
        self._check_open()
        if not self.earliest_rewind <= position <= self._position:
            raise RewindError(
                f"cannot rewind to position {position}; {self.earliest_rewind} to {self._position} are in the cache; "
                "restore a snapshot or reset and prefill again"
            )
        self._position = position

    def reset(self) -> None:
        self._check_open()
        # Only what was written: pages that were never touched stay unallocated. What is masked need not be zero, but a
        # NaN left by a broken run would get through the mask.
        for name, cache in self._caches.items():
            written = cache[:, :, : self._high_water] if _is_key(name) else cache[..., : self._high_water]
            written.fill(0)
        self._tokens.clear()
        self._position = self._high_water = 0

    def snapshot(self) -> Snapshot:
        self._check_open()
        rings = {name: self._caches[name].copy() for name in self._rings}
        nbytes = sum(ring.nbytes for ring in rings.values())
        return Snapshot(tuple(self.token_ids), (rings, self._high_water), nbytes)

    def restore(self, snapshot: Snapshot) -> None:
        self._check_open()
        position = len(snapshot.token_ids)
        if tuple(self._tokens[:position]) != snapshot.token_ids:
            raise RewindError(
                f"cannot restore the snapshot at position {position}: tokens before it were replaced since; "
                "reset and prefill again"
            )
        rings, self._high_water = snapshot.state
        for name, ring in rings.items():
            self._caches[name][...] = ring
        self._position = position

    def cached_rows(self) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Copies of what each layer's cache holds: keys and values [n, K, E] of the last n positions, by layer."""
        self._check_open()
        rows = {}
        for name in filter(_is_key, self._caches):
            keys = self._caches[name][0].swapaxes(0, 1)  # [K, slots, E] -> [slots, K, E]
            values = np.moveaxis(self._caches[name.replace("_k_", "_v_")][0], 2, 0)  # [K, E, slots] -> [slots, K, E]
            first = max(0, self._high_water - len(keys))
            slots = np.arange(first, self._position) % len(keys)
            rows[int(name.rpartition("_")[2])] = (keys[slots].astype(np.float32), values[slots].astype(np.float32))
        return rows

    def close(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None
        self._caches = {}


def _table(section: FileRange, notes: Path | None) -> EmbeddingTable:
    section_sha256(section, notes)  # raises BundleError where the file is damaged
    return EmbeddingTable(section)


def _is_key(cache_name: str) -> bool:
    """Keys are [1, K, slots, E], values [1, K, E, slots]."""
    return cache_name.startswith("kv_cache_k")
