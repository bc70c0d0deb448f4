"""A checkpoint with a LoRA adapter merged into every value that is read from it, a chunk of rows at a time.

Whoever reads a MergedCheckpoint sees a Checkpoint: the plan, the stream and the evaluator know nothing of adapters. The
merge comes first, on the stored weight; a fold (see tensors.Fold) comes after it.

The arithmetic is PEFT's on float32 (LoraLayer.merge): W + (B @ A) * scale, each operation rounded to float32, and in
the product one fused multiply-add after the other, in the order of the rank, which is what BLAS does with sums as short
as these on every processor with such an instruction. numpy has none, so it is computed in float64 (see _fused_add).
The result does not depend on the processor, the BLAS, or how rows are cut into chunks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.adapter_files import SideFiles
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, TensorInfo, Unconverted, reading
from gemma_edge.converter.checkpoint.lora_adapter import Adapter, LowRank
from gemma_edge.converter.checkpoint.lora_config import CONFIG_FILE, LoraError
from gemma_edge.converter.checkpoint.spelling import DECODER_PREFIXES, EMBEDDING, HEAD_NAMES
from gemma_edge.converter.checkpoint.stored_values import read_values
from gemma_edge.converter.printing import listed
from gemma_edge.converter.tensors import TensorSpec

__all__ = ["LoraError", "MergedCheckpoint", "add_low_rank", "merged", "scale_rows"]

Float32 = NDArray[np.float32]

_BLOCK_VALUES = 1 << 15  # worked on at a time: 256 KiB as float64, so that the passes of a sum stay in L2
_HEADS = tuple(name.removesuffix(".weight") for name in HEAD_NAMES)
_HEAD = HEAD_NAMES[0]


@dataclass(frozen=True)
class MergedCheckpoint(Checkpoint):
    """A checkpoint as if PEFT's merge_and_unload had been saved. `tensors` has the adapter's where it replaces one.

    changes, tokens: by the name of the stored tensor. absent: modules of the adapter that the checkpoint lacks.
    text_only: only text was asked for, so that what the adapter does to encoders stays behind with them.
    """

    adapter: Adapter
    changes: Mapping[str, LowRank]
    absent: tuple[str, ...]
    tokens: Mapping[str, tuple[tuple[int, ...], TensorInfo]]
    side: SideFiles
    text_only: bool = False

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights came from, for the report."""
        config, low_rank = self.adapter.config, self.adapter.low_rank.values()
        return super().provenance | {
            "lora": {
                "adapter": self.adapter.path.name,
                "trained_on": config.base,
                "rank": sorted({change.rank for change in low_rank}),
                "alpha": sorted({config.alpha_of(change.module) for change in low_rank}),
                "rslora": config.is_rslora,
                "dora": config.is_dora,
                "merged_tensors": len(self.changes),
                "replaced_tensors": len(self.adapter.saved),
            }
        }

    @property
    def side_path(self) -> Path:
        """As Checkpoint.side_path; the adapter's tokenizer and chat template come before the base's."""
        return self.side.path

    def match(self, specs: Iterable[TensorSpec], ignored: Iterable[str]) -> Unconverted:
        """As Checkpoint.match; also that everything the adapter changes is converted, and nothing it should is left.

        Raises LoraError by the module's name, and CheckpointError.
        """
        specs, ignored = list(specs), tuple(ignored)
        self._check_adapter(specs, ignored)
        unconverted = super().match(specs, ignored)
        changed = {*self.changes, *(name for name, tensor in self.tensors.items() if tensor.file in self.adapter.files)}
        lost = [
            tensor.name
            for group, tensors in unconverted.groups.items()
            for tensor in tensors
            if tensor.name in changed and not group.startswith("layers.") and not self.text_only
        ]
        if lost:
            raise LoraError(
                f"{self.adapter.path}: trains {listed(lost)}, which this conversion leaves out; "
                "add its modality to --modalities, or leave it out on purpose with --modalities text"
            )
        return unconverted

    def _check_adapter(self, specs: Iterable[TensorSpec], ignored: Iterable[str]) -> None:
        """That the checkpoint has what the adapter changes, and the adapter all that it should; as for `match`.

        Raises LoraError by the module's name.
        """
        unread = tuple(prefix for prefix in ignored if prefix.startswith("layers."))
        missing = [module for module in self.absent if not _source(module).startswith(unread)]
        if missing:
            raise LoraError(
                f"{self.adapter.path}: {listed(missing)} not in {self.path}; the adapter belongs to another model"
                f"{_trained_on(self.adapter)}"
            )
        self._check_complete(specs)

    def _check_complete(self, specs: Iterable[TensorSpec]) -> None:
        """An adapter for 30 layers must not pass for one of 35: every module that is a target has weights."""
        modules = self.adapter.modules
        prefix = next((p for p in DECODER_PREFIXES for module in modules if module.startswith(p)), "model.")
        changed = {_source(module) for module in modules}
        missing: dict[str, None] = {}
        for spec in specs:
            tensor = self.resolve(spec.source)
            if len(spec.shape) != 2 or tensor is None or not tensor.name.startswith(self.prefix):
                continue
            module = prefix + spec.source.removesuffix(".weight")
            if spec.source not in changed and self.adapter.config.is_target(module):
                missing[module] = None
        if missing:
            raise LoraError(
                f"{self.adapter.path}: no weights for {listed(missing)}, which target_modules in {CONFIG_FILE} names; "
                f"the adapter is incomplete or belongs to a smaller model{_trained_on(self.adapter)}"
            )

    def read(self, source: str) -> Float32:
        """As Checkpoint.read."""
        values = super().read(source)
        if values.ndim == 2:
            for update in self._updates(source):
                update.apply(0, values)
            self._replace_tokens(source, 0, values)
        return values

    def rows(
        self, source: str, chunk_bytes: int = 8 << 20, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, Float32]]:
        """As Checkpoint.rows. Besides the two buffers, a chunk's part of one factor is in memory, and the other one."""
        updates = self._updates(source)
        for first, rows in super().rows(source, chunk_bytes, start, stop):
            for update in updates:
                update.apply(first, rows)
            self._replace_tokens(source, first, rows)
            yield first, rows

    def _replace_tokens(self, source: str, first: int, rows: Float32) -> None:
        """Put trained rows in place of those of `rows`, which are the table's from `first` on."""
        ids, stored = self.tokens.get(self._require(source).name, ((), None))
        within = [place for place, number in enumerate(ids) if first <= number < first + len(rows)]
        if stored is not None and within:
            trained = self.adapter.weights.read(stored.name)
            rows[[ids[place] - first for place in within]] = trained[within]

    def input_files(self) -> list[Path]:
        """As Checkpoint.input_files, and the adapter's."""
        own = self.adapter.files + self.side.files
        base = [file for file in super().input_files() if file not in own and file.name not in self.side.replaced]
        return base + own

    def _updates(self, source: str) -> list["_Update"]:
        """What is done to rows of a matrix."""
        change = self.changes.get(self._require(source).name)
        if change is None:
            return []
        read = self.adapter.weights.read
        magnitude = None if change.magnitude is None else read(change.magnitude.name)
        if change.is_embedding:  # B @ A is [columns, rows] there
            return [_Update(partial(_columns, change.a), read(change.b.name).T, change.scale, magnitude)]
        return [_Update(partial(_rows, change.b), read(change.a.name), change.scale, magnitude)]


def merged(base: Checkpoint, path: Path, text_only: bool = False) -> MergedCheckpoint:
    """`base` with the adapter in the directory `path`, its tokenizer and chat template where it has them.

    An adapter of a model with new tokens brings tables with more rows; config.json says how many from here on.

    Where config.json ties embedding and head and the adapter changes one of them, or both, they are two matrices from
    here on, as they were in training, and the config of what is returned says so. PEFT's merge adds what was trained
    for one to both (its issue 2018), unless "ensure_weight_tying" was set, which is what that means.

    Raises LoraError or CheckpointError, before any weight is read, for an adapter that cannot be merged or that does
    not fit this checkpoint's tensors; see also MergedCheckpoint.match.
    """
    adapter = Adapter.open(path)
    own_rows = base.text_config.get("vocab_size")
    base = _resized(base, adapter)
    ends = {_source(module) for module in (*adapter.low_rank, *adapter.saved)} & {EMBEDDING, _HEAD}
    if ends and not (adapter.config.keeps_tie and len(ends) == 1):
        base = _untied(base)
    tensors, changes, tokens, absent = dict(base.tensors), {}, {}, []
    for module in adapter.modules:
        stored = _stored(base, module)
        if stored is None:
            absent.append(module)
            continue
        saved, change = adapter.saved.get(module), adapter.low_rank.get(module)
        if module in adapter.tokens:
            tokens[stored.name] = adapter.tokens[module]
        if saved is not None:
            _check_shape(adapter, module, saved.shape, stored)
            tensors[stored.name] = replace(saved, name=stored.name)
        if change is not None:
            _check_shape(adapter, module, change.shape, stored)
            changes[stored.name] = change
    if (rows := base.text_config.get("vocab_size")) != own_rows:
        left = [n for n in (base.prefix + EMBEDDING, *(f"{h}.weight" for h in _HEADS)) if n in tensors]
        if any(tensors[name].file not in adapter.files for name in left):
            raise LoraError(
                f"{path}: has {rows} rows for one of embedding and head, and none for the other, which has {own_rows}; "
                "save the adapter with both (save_embedding_layers=True)"
            )
    return MergedCheckpoint(
        base.path,
        base.config,
        MappingProxyType(tensors),
        base.prefix,
        adapter,
        MappingProxyType(changes),
        tuple(absent),
        MappingProxyType(tokens),
        SideFiles(base.side_path, path, base.config),
        text_only,
        origin=base.origin,
    )


def _resized(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The same model with as many rows for tokens as the adapter's tables have, which take the place of its own."""
    saved = {_source(module): tensor for module, tensor in adapter.saved.items()}
    table = base.resolve(EMBEDDING)
    found = saved.get(EMBEDDING, saved.get(_HEAD))
    if table is None or found is None or len(found.shape) != 2 or found.shape[0] <= table.shape[0]:
        return base
    rows = found.shape[0]
    tensors = {
        name: replace(tensor, shape=(rows, *tensor.shape[1:])) if tensor in (table, base.resolve(_HEAD)) else tensor
        for name, tensor in base.tensors.items()
    }
    return replace(_with_settings(base, {"vocab_size": rows}), tensors=MappingProxyType(tensors))


def _with_settings(base: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
    config = {**base.config, **settings}
    if "text_config" in config:
        config["text_config"] = {**base.text_config, **settings}
    return replace(base, config=MappingProxyType(config))


def _untied(base: Checkpoint) -> Checkpoint:
    """The same model with a head of its own."""
    tensors = dict(base.tensors)
    if base.resolve(_HEAD) is None:
        tensors[_HEAD] = replace(tensors[base.prefix + EMBEDDING], name=_HEAD)
    return replace(_with_settings(base, {"tie_word_embeddings": False}), tensors=MappingProxyType(tensors))


def _source(module: str) -> str:
    """The name without the prefix that the model had in training: "layers.0.mlp.up_proj.weight"."""
    prefix = next((prefix for prefix in DECODER_PREFIXES if module.startswith(prefix)), "")
    return _HEAD if module in _HEADS else module.removeprefix(prefix) + ".weight"


def _stored(base: Checkpoint, module: str) -> TensorInfo | None:
    """The tensor behind a module's name, whichever prefixes the adapter and the checkpoint have."""
    source = _source(module)
    if source == _HEAD and base.text_config.get("tie_word_embeddings", True):
        source = EMBEDDING
    return base.resolve(source) or base.tensors.get(module + ".weight")


def _check_shape(adapter: Adapter, module: str, found: tuple[int, ...], stored: TensorInfo) -> None:
    if found != stored.shape:
        raise LoraError(
            f"{module}: the adapter is for a weight of shape {list(found)}, found {list(stored.shape)} in the "
            f"checkpoint; the adapter belongs to another model{_trained_on(adapter)}"
        )


def _trained_on(adapter: Adapter) -> str:
    return f" ({CONFIG_FILE} names {adapter.config.base})" if adapter.config.base else ""


@dataclass(frozen=True)
class _Update:
    """A change of a matrix [n, columns].

    left: reads rows [first, stop) of a factor [n, r]: it is as long as the vocabulary for a table or a head, 64 MiB at
    rank 64. right: the other factor, [r, columns]. magnitude: [n].
    """

    left: Callable[[int, int], Float32]
    right: Float32
    scale: float
    magnitude: Float32 | None

    def apply(self, first: int, rows: Float32) -> None:
        """Change `rows` in place, which are rows first, first + 1, ... of the n."""
        stop = first + len(rows)
        add_low_rank(rows, self.left(first, stop), self.right, self.scale)
        if self.magnitude is not None:
            scale_rows(rows, self.magnitude[first:stop])


def _rows(tensor: TensorInfo, first: int, stop: int) -> Float32:
    """Rows [first, stop) of a stored matrix. Through the page cache: few bytes, perhaps of one row."""
    values = np.empty((stop - first, tensor.shape[1]), np.float32)
    with reading(tensor.file, is_cached=True) as file:
        read_values(file, tensor, first * tensor.shape[1], values.reshape(-1))
    return values


def _columns(tensor: TensorInfo, first: int, stop: int) -> Float32:
    """Columns [first, stop) of a stored matrix, as rows: a piece of each of its rows, which lie far apart."""
    values = np.empty((tensor.shape[0], stop - first), np.float32)
    with reading(tensor.file, is_cached=True) as file:
        for row, piece in enumerate(values):
            read_values(file, tensor, row * tensor.shape[1] + first, piece)
    return values.T


def add_low_rank(rows: Float32, left: Float32, right: Float32, scale: float) -> None:
    """rows [n, k] += (left [n, r] @ right [r, k]) * scale, in place, as the module says."""
    n, k = rows.shape
    step = min(n, max(1, _BLOCK_VALUES // k))
    scratch = np.empty((step, k), np.float64)
    sums = np.empty((step, k), np.float32)
    left64, right64 = left.astype(np.float64), np.ascontiguousarray(right, np.float64)
    for first in range(0, n, step):
        part = rows[first : first + step]
        total = sums[: len(part)]
        total.fill(0)
        for i, factors in enumerate(right64):
            _fused_add(total, left64[first : first + step, i : i + 1], factors, scratch[: len(part)])
        np.multiply(total, np.float32(scale), out=total)
        np.add(part, total, out=part)


def _fused_add(total: Float32, a: NDArray[np.float64], b: NDArray[np.float64], scratch: NDArray[np.float64]) -> None:
    """total [n, k] += a [n, 1] * b [k], rounded once; a and b are float32 numbers.

    Their product is exact in float64 (24 + 24 bits of 53). The sum is rounded there and again to float32, which is one
    rounding too many where the first ends half way between two float32 numbers: such a sum is moved to its true side.
    """
    np.multiply(a, b, out=scratch)
    np.add(scratch, total, out=scratch)
    halfway = (scratch.view(np.uint64) & np.uint64(0x1FFF_FFFF)) == np.uint64(0x1000_0000)
    if halfway.any():
        row, column = np.nonzero(halfway)
        product, old, sums = a[row, 0] * b[column], total[row, column].astype(np.float64), scratch[row, column]
        added = sums - old
        error = (old - (sums - added)) + (product - added)  # of the sum: Knuth's two-sum
        scratch[row, column] = np.where(error == 0, sums, np.nextafter(sums, np.copysign(np.inf, error)))
    np.copyto(total, scratch, casting="same_kind")


def scale_rows(rows: Float32, lengths: Float32) -> None:
    """DoRA (arXiv 2402.09353): give row i of `rows` [n, k] the length lengths[i], in place. A row of zeros stays."""
    norms = np.sqrt(np.einsum("nk,nk->n", rows, rows, dtype=np.float64)).astype(np.float32)
    np.multiply(rows, (lengths / np.where(norms > 0, norms, np.float32(1)))[:, np.newaxis], out=rows)
