"""Our executor: LiteRT's compiled model on the decoder section inside the bundle.

Embedding rows come from the mapped tables. The arrays that a run reads beside the caches, and its logits, belong to the
decoder: slots run one at a time, and a slot then costs no more than its caches.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.profiles.signatures import Call, row_name
from gemma_edge.runtime.executors.base import (
    WEIGHT_CACHE,
    BundleMismatchError,
    ClosedError,
    ExecutorError,
    KvSlot,
    Logits,
    MappedRanges,
)
from gemma_edge.runtime.executors.litert.batch import Batches
from gemma_edge.runtime.executors.litert.drafter import ACTIVATIONS, DrafterSection
from gemma_edge.runtime.executors.litert.library import CompiledSection, Signature, TensorType, aligned_zeros
from gemma_edge.runtime.executors.litert.models import ModelSection
from gemma_edge.runtime.executors.litert.section_hash import section_sha256
from gemma_edge.runtime.executors.litert.sections import has_model, section_range
from gemma_edge.runtime.executors.litert.slot import LitertSlot, Shared, slots_of
from gemma_edge.runtime.executors.litert.tables import EmbeddingTable
from gemma_edge.runtime.executors.litert.weight_cache import compile_section
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType
from gemma_edge.runtime.formats.model import NamedModel, models_of

_INPUTS = {"embeddings", "per_layer_embeddings", "input_pos"}
_CACHE = re.compile(r"kv_cache_([kv])_\d+")


@dataclass(frozen=True)
class DecoderSections:
    """Where the parts of a text decoder lie; `per_layer_embedder` is Gemma 3n's. named: every section of the bundle.

    drafter: what guesses, where that is wanted.
    """

    decoder: FileRange
    embedder: FileRange
    per_layer_embedder: FileRange | None = None
    named: Mapping[str, FileRange] = field(default_factory=dict)
    models: tuple[NamedModel, ...] = ()  # where the decoder holds several
    drafter: FileRange | None = None

    @classmethod
    def of(cls, bundle: Bundle, *, with_drafter: bool = False) -> "DecoderSections":
        """The sections of a bundle. Raises BundleError when one is missing; a drafter may be."""
        has_drafter = with_drafter and has_model(bundle, ModelType.MTP_DRAFTER)
        has_per_layer = has_model(bundle, ModelType.PER_LAYER_EMBEDDER)
        return cls(
            section_range(bundle, ModelType.PREFILL_DECODE),
            section_range(bundle, ModelType.EMBEDDER),
            section_range(bundle, ModelType.PER_LAYER_EMBEDDER) if has_per_layer else None,
            {section.name: FileRange(bundle.path, section.begin, section.nbytes) for section in bundle.sections},
            models_of(bundle),
            section_range(bundle, ModelType.MTP_DRAFTER) if has_drafter else None,
        )

    @property
    def tables(self) -> tuple[FileRange, ...]:
        """The tables that rows are read from."""
        return (self.embedder,) if self.per_layer_embedder is None else (self.embedder, self.per_layer_embedder)


def _caches(decode: Signature) -> dict[str, TensorType]:
    return {name: tensor for name, tensor in decode.inputs.items() if _CACHE.fullmatch(name)}


class LitertDecoder:
    """See `Decoder`.

    Args:
        sections: what to run.
        threads: cores XNNPACK may use.
        cache_dir: where packed weights are kept; None packs into memory at every start (E2B: 2.5 GB, 6 s).
    """

    def __init__(self, sections: DecoderSections, threads: int, cache_dir: Path | None) -> None:
        self._sections = sections
        self._notes = cache_dir
        self._model: CompiledSection | None
        self._model, self._weight_cache = compile_section(sections.decoder, threads, cache_dir)
        self._drafter: DrafterSection | None = None
        try:
            self._embedder = self._table(sections.embedder)
            per_layer = sections.per_layer_embedder
            self._per_layer_embedder = None if per_layer is None else self._table(per_layer)
            self._large = ModelSection(self._model, "")
            decode = self._decode_signature(self._large)
            self._caches = _caches(decode)
            self._check_inputs(decode, self._per_layer_embedder)
            self._slots = {name: slots_of(name, tensor.shape) for name, tensor in self._caches.items()}
            if sections.drafter is not None:
                vocabulary = decode.outputs["logits"].shape[-1]
                self._drafter = DrafterSection(
                    sections.drafter, threads, cache_dir, self._embedder, self._caches, vocabulary
                )
            self._shared = self._make_shared(self._large, self._per_layer_embedder, self._drafter)
            self._others = {model.name: self._other(self._model, model) for model in sections.models[1:]}
            both = [(self._large, self._shared), *self._others.values()]
            self._batches = {id(shared): Batches(model, shared) for model, shared in both}
        except BaseException:
            self.close()
            raise

    def _table(self, section: FileRange) -> EmbeddingTable:
        section_sha256(section, self._notes)  # raises BundleError where the file is damaged
        return EmbeddingTable(section)

    def _other(self, section: CompiledSection, named: NamedModel) -> tuple[ModelSection, Shared]:
        """A smaller model over caches of the large one. Raises BundleMismatchError."""
        model = ModelSection(section, named.name)
        decode = self._decode_signature(model)
        if not _caches(decode).items() <= self._caches.items():
            raise BundleMismatchError(
                f"{self._sections.decoder.path}: model {named.name} keeps keys and values that the large one does not; "
                "convert the checkpoint again"
            )
        table, layers = self._per_layer_embedder, len(self._sections.models[0].layers)
        if table is not None:
            table = table.of_layers(named.layers, layers)
        self._check_inputs(decode, table)
        return model, self._make_shared(model, table)

    def _decode_signature(self, model: ModelSection) -> Signature:
        signatures = model.signatures
        if "decode" not in signatures or "logits" not in signatures["decode"].outputs:
            raise BundleMismatchError(
                f"{self._sections.decoder.path}: found signatures {sorted(signatures)}, expected decode with logits; "
                "convert the checkpoint with gemma-edge"
            )
        return signatures["decode"]

    def _check_inputs(self, decode: Signature, per_layer: EmbeddingTable | None) -> None:
        path = self._sections.decoder.path
        unknown = decode.inputs.keys() - self._caches.keys() - _INPUTS
        if unknown:
            raise BundleMismatchError(
                f"{path}: decoder inputs {sorted(unknown)} are not known, expected {sorted(_INPUTS)} "
                "and kv_cache_*; convert the checkpoint with gemma-edge"
            )
        tables = {"embeddings": self._embedder, "per_layer_embeddings": per_layer}
        for name, table in tables.items():
            wanted = math.prod(decode.inputs[name].shape) if name in decode.inputs else 0
            found = 0 if table is None else table.width
            if wanted != found:
                raise BundleMismatchError(
                    f"{path}: the decoder takes {name} of {wanted} values a token, the bundle's table "
                    f"gives {found}; convert the checkpoint again"
                )

    def _calls(self, model: ModelSection) -> Sequence[Call]:
        """What of the signatures is run. Raises BundleMismatchError where they do not work on the same caches."""
        own = _caches(model.signatures["decode"])
        calls = [call for name in model.signatures if (call := Call.of_name(name)) is not None]
        for call in calls:
            inputs = model.signatures[call.name].inputs
            caches = {name: tensor for name, tensor in inputs.items() if name not in _INPUTS}
            expected = own
            if call.is_batch:
                expected = {row_name(name, row): own[name] for name in own for row in range(call.rows)}
            whole = model.signatures.get(call.whole.name)
            if caches != expected or whole is None or inputs != whole.inputs:
                raise BundleMismatchError(
                    f"{self._sections.decoder.path}: the inputs of {call.name} are not those of "
                    f"{call.whole.name if caches == expected else 'decode'}; convert the checkpoint with gemma-edge"
                )
            logits = model.signatures[call.name].outputs.get("logits")
            if call.is_batch and (logits is None or logits.shape[1] != call.rows):
                raise BundleMismatchError(
                    f"{self._sections.decoder.path}: {call.name} does not give logits of {call.rows} rows; convert the "
                    "checkpoint with gemma-edge"
                )
        longest = max((call.rows for call in calls if not call.has_logits), default=1)
        for call in calls:
            if call.is_verify and (call.rows > longest or "logits" not in model.signatures[call.name].outputs):
                raise BundleMismatchError(
                    f"{self._sections.decoder.path}: {call.name} cannot be taken back, expected logits, and no more "
                    f"rows than the longest prefill has, {longest}; convert the checkpoint with gemma-edge"
                )
        return calls

    def _activations(self, call: Call) -> TensorType:
        return TensorType((1, call.rows, self._embedder.width), np.dtype(np.float32))

    def _check_activations(self, model: ModelSection, calls: Sequence[Call], has_drafter: bool) -> None:
        """Raises BundleMismatchError where a signature gives others than its rows have, or none to a drafter."""
        for call in calls:
            outputs, expected = model.signatures[call.name].outputs, self._activations(call)
            if outputs.get(ACTIVATIONS, expected) != expected or (
                has_drafter and call.has_logits and ACTIVATIONS not in outputs
            ):
                raise BundleMismatchError(
                    f"{self._sections.decoder.path}: {call.name} does not give {ACTIVATIONS} of {expected.shape}, "
                    "which a drafter takes; convert the checkpoint again, or leave speculative decoding out"
                )

    def _make_shared(
        self, model: ModelSection, per_layer: EmbeddingTable | None, drafter: DrafterSection | None = None
    ) -> Shared:
        calls = self._calls(model)
        self._check_activations(model, calls, drafter is not None)
        arrays: dict[str, dict[str, NDArray[Any]]] = {}  # those of one size share them
        for call in calls:
            if call.whole.name not in arrays:
                whole = model.signatures[call.whole.name]
                own = {key: whole.inputs[key] for key in _INPUTS & whole.inputs.keys()}
                own[ACTIVATIONS] = self._activations(call)  # where it gives any; LiteRT wants a place for them
                arrays[call.whole.name] = {key: aligned_zeros(tensor) for key, tensor in own.items()}
        outputs = [model.signatures[call.name].outputs["logits"] for call in calls if call.has_logits]
        logits = aligned_zeros(max(outputs, key=lambda tensor: tensor.nbytes))
        arrays_of = {call: arrays[call.whole.name] for call in calls}
        return Shared(arrays_of, logits, self._embedder, per_layer, drafter)

    @property
    def context_tokens(self) -> int:
        return max(self._slots.values())

    @property
    def vocab_size(self) -> int:
        return int(self._shared.logits.shape[-1])

    @property
    def can_verify(self) -> bool:
        return any(call.is_verify for call in self._shared.arrays)

    @property
    def can_draft(self) -> bool:
        return self._drafter is not None

    @property
    def batch_rows(self) -> Sequence[int]:
        return sorted({call.rows for call in self._shared.arrays if call.is_batch})

    def batches(self, slots: Sequence[KvSlot]) -> Sequence[Sequence[KvSlot]]:
        of_model: dict[int, list[LitertSlot]] = {}
        for slot in slots:
            assert isinstance(slot, LitertSlot)
            of_model.setdefault(id(slot.shared), []).append(slot)
        return [group for key, together in of_model.items() for group in self._batches[key].groups(together)]

    def decode_batch(self, slots: Sequence[KvSlot], token_ids: Sequence[int]) -> Logits:
        own = [slot for slot in slots if isinstance(slot, LitertSlot)]
        return self._batches[id(own[0].shared)].decode(own, token_ids)

    @property
    def embedding_bytes(self) -> int:
        return self._embedder.width * np.dtype(np.float32).itemsize

    @cached_property
    def digest(self) -> str:
        parts = (self._sections.decoder, *self._sections.tables)
        return hashlib.sha256("".join(section_sha256(part, self._notes) for part in parts).encode()).hexdigest()

    def new_slot(self, context_tokens: int | None = None) -> LitertSlot:
        if self._model is None:
            raise ClosedError
        longest = self.context_tokens
        context = longest if context_tokens is None else context_tokens
        if not 0 < context <= longest:
            raise ExecutorError(
                f"max_num_tokens is {context_tokens}, the KV cache of {self._sections.decoder.path.name} holds "
                f"{longest}; ask for 1 to {longest} or convert with a longer context"
            )
        caches = {name: aligned_zeros(tensor) for name, tensor in self._caches.items()}
        return LitertSlot(self._large, self._shared, caches, self._rings, context)

    @property
    def models(self) -> Sequence[str]:
        """See SeveralModels; none where there is one."""
        return tuple(model.name for model in self._sections.models)

    def switched(self, slot: KvSlot, model: str) -> LitertSlot:
        """See SeveralModels."""
        assert isinstance(slot, LitertSlot)
        section, shared = self._others.get(model, (self._large, self._shared))
        context_tokens = slot.context_tokens
        return LitertSlot(section, shared, slot.give_up(), self._rings, context_tokens)

    def slot_bytes(self, context_tokens: int | None = None) -> int:
        return sum(self._written_bytes(name, context_tokens) for name in self._caches)

    def snapshot_bytes(self, context_tokens: int | None = None) -> int:
        del context_tokens  # rings are copied whole
        return sum(self._caches[name].nbytes for name in self._rings)

    def _written_bytes(self, name: str, context_tokens: int | None) -> int:
        tensor, slots = self._caches[name], self._slots[name]
        return tensor.nbytes // slots * min(slots, context_tokens or slots)

    @property
    def _rings(self) -> frozenset[str]:
        longest = self.context_tokens
        return frozenset(name for name, count in self._slots.items() if count < longest)

    def mapped_ranges(self) -> MappedRanges:
        named: dict[str, tuple[FileRange, ...]] = {name: (part,) for name, part in self._sections.named.items()}
        weights = tuple(part for part in (self._sections.decoder, self._sections.drafter) if part is not None)
        caches = (self._weight_cache, None if self._drafter is None else self._drafter.weight_cache)
        packed = tuple(FileRange.whole(cache) for cache in caches if cache is not None)
        if packed:
            named[WEIGHT_CACHE] = packed
        return MappedRanges(self._sections.tables, (*weights, *packed), named)

    def close(self) -> None:
        if self._drafter is not None:
            self._drafter.close()
        if self._model is not None:
            self._model.close()
            self._model = None
