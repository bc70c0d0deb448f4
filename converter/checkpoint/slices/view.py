"""A slice of a checkpoint (see models/matformer.py): whoever reads a SlicedCheckpoint sees a smaller checkpoint.

Values are cut out while they are read: no smaller checkpoint is ever written, and memory is that of reading the whole.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, Unconverted
from gemma_edge.converter.checkpoint.safetensors_file import TensorInfo
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.matformer.pair import stored_parts
from gemma_edge.converter.models.matformer.slices import Slice
from gemma_edge.converter.tensors import TensorSpec

Float32 = NDArray[np.float32]
Spans = tuple[tuple[int, int], ...]
"""Stretches [begin, end) of an axis, in order."""

_LAYER = re.compile(r"layers\.(?P<layer>\d+)\.(?P<rest>.+)")
_PLE, _PLE_PROJECTION = "embed_tokens_per_layer.weight", "per_layer_model_projection.weight"


@dataclass(frozen=True)
class Cut:
    """Where the values of a tensor lie in the whole: rows and columns of what is stored there; None for all."""

    source: str
    rows: Spans | None = None
    columns: Spans | None = None

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Of what is cut out of a tensor of this shape."""
        cut = list(whole)
        for axis, spans in enumerate((self.rows, self.columns)):
            if spans is not None and axis < len(cut):
                cut[axis] = sum(end - begin for begin, end in spans)
        return tuple(cut)


@dataclass(frozen=True)
class CutCheckpoint(Checkpoint):
    """whole: what it is cut from, perhaps with an adapter. cuts: by source name; other tensors are the whole's."""

    whole: Checkpoint
    cuts: Mapping[str, Cut]

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights came from, for the report."""
        return self.whole.provenance

    @property
    def side_path(self) -> Path:
        """As Checkpoint.side_path."""
        return self.whole.side_path

    def read(self, source: str) -> Float32:
        """As Checkpoint.read."""
        if (cut := self.cuts.get(source)) is None:
            return self.whole.read(source)
        if cut.rows is None and cut.columns is None:
            return self.whole.read(cut.source)
        values = np.empty(self._require(source).shape, np.float32)
        for first, rows in self.rows(source):
            values[first : first + len(rows)] = rows
        return values

    def rows(
        self, source: str, chunk_bytes: int = 8 << 20, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, Float32]]:
        """As Checkpoint.rows. Of a stretch of columns, whole rows are read."""
        if (cut := self.cuts.get(source)) is None:
            yield from self.whole.rows(source, chunk_bytes, start, stop)
            return
        count = self._require(source).shape[0]
        stop = count if stop is None else stop
        for first, (begin, end) in _within(cut.rows or ((0, count),), start, stop):
            for row, values in self.whole.rows(cut.source, chunk_bytes, begin, end):
                yield first + row - begin, values if cut.columns is None else _columns(values, cut.columns)

    def input_files(self) -> list[Path]:
        """As Checkpoint.input_files."""
        return self.whole.input_files()


@dataclass(frozen=True)
class SlicedCheckpoint(CutCheckpoint):
    """cuts: of all tensors of the decoder."""

    slice: Slice

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights came from, for the report."""
        cut = {"name": self.slice.name, "kept_layers": list(self.slice.kept), "mmlu": self.slice.mmlu}
        widths = self.text_config["intermediate_size"]
        return self.whole.provenance | {"slice": cut | {"intermediate_size": widths}}

    def match(self, specs: Iterable[TensorSpec], ignored: Iterable[str]) -> Unconverted:
        """As Checkpoint.match; what the slice leaves out has to be right as well."""
        specs, ignored = list(specs), tuple(ignored)
        model = Model.from_json(self.whole.text_config)
        uncut = [spec for spec in specs if spec.source not in self.cuts]
        self.whole.match([*model.tensors.values(), *uncut], (*ignored, *model.config.unused_tensors()))
        return super().match(specs, ignored)


def in_parts(whole: Checkpoint, model: Model) -> CutCheckpoint:
    """The same values, in the parts that a large model (models/matformer/pair.py) is stored in."""
    tensors, cuts, split = dict(whole.tensors), dict[str, Cut](), set[str]()
    for part in stored_parts(model):
        name = whole.prefix + part.name
        span = ((part.begin, part.end),)
        cuts[part.name] = Cut(part.source, **{("rows", "columns")[part.axis]: span})
        if (stored := whole.tensors.get(whole.prefix + part.source)) is not None:
            tensors[name] = _info(stored, name, cuts[part.name].shape(stored.shape))
            split.add(stored.name)
    left = MappingProxyType({name: stored for name, stored in tensors.items() if name not in split})
    return CutCheckpoint(
        whole.path, whole.config, left, whole.prefix, whole, MappingProxyType(cuts), origin=whole.origin
    )


def sliced(whole: Checkpoint, wanted: Slice) -> SlicedCheckpoint:
    """The slice of a checkpoint. Raises SliceError and ConfigError as `Slice.config` does."""
    config = wanted.checkpoint_config(whole.config)
    text = config.get("text_config", config)
    widths, places = text["intermediate_size"], {layer: i for i, layer in enumerate(wanted.kept)}
    tensors: dict[str, TensorInfo] = {}
    cuts: dict[str, Cut] = {}
    for name, stored in whole.tensors.items():
        source = name.removeprefix(whole.prefix)
        if layer := _LAYER.match(source):
            place = places.get(int(layer["layer"]))
            if place is None:
                continue
            own = f"layers.{place}.{layer['rest']}"
            cuts[own] = _cut_layer(source, layer["rest"], widths[place])
        elif source in (_PLE, _PLE_PROJECTION):
            own = source
            cuts[own] = _cut_per_layer(source, stored, wanted)
        else:
            tensors[name] = stored
            continue
        tensors[whole.prefix + own] = _info(stored, whole.prefix + own, cuts[own].shape(stored.shape))
    views = MappingProxyType(config), MappingProxyType(tensors)
    return SlicedCheckpoint(
        whole.path, *views, whole.prefix, whole, MappingProxyType(cuts), wanted, origin=whole.origin
    )


def _cut_layer(source: str, rest: str, width: int) -> Cut:
    kept = ((0, width),)
    if rest in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
        return Cut(source, rows=kept)
    return Cut(source, columns=kept) if rest == "mlp.down_proj.weight" else Cut(source)


def _cut_per_layer(source: str, stored: TensorInfo, wanted: Slice) -> Cut:
    """Each layer has a block of the table's columns, and of the projection's rows."""
    axis = int(source == _PLE)
    block = stored.shape[axis] // (len(wanted.ffn) + len(wanted.skipped)) if axis < len(stored.shape) else 0
    spans = tuple((layer * block, (layer + 1) * block) for layer in wanted.kept)
    return Cut(source, columns=_joined(spans)) if axis else Cut(source, rows=_joined(spans))


def _joined(spans: Spans) -> Spans:
    """The same with neighbours put together."""
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        goes_on = bool(joined) and joined[-1][1] == begin
        joined.append((joined.pop()[0] if goes_on else begin, end))
    return tuple(joined)


def _info(stored: TensorInfo, name: str, shape: tuple[int, ...]) -> TensorInfo:
    """nbytes: of the values that are cut out. The place in the file is the whole's."""
    values = max(1, math.prod(stored.shape))
    return replace(stored, name=name, shape=shape, nbytes=stored.nbytes * math.prod(shape) // values)


def _within(spans: Spans, start: int, stop: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Rows [start, stop) of what is cut: (first of them, where they lie in the whole), stretch by stretch."""
    done = 0
    for begin, end in spans:
        first, last = max(start, done), min(stop, done + end - begin)
        if first < last:
            yield first, (begin + first - done, begin + last - done)
        done += end - begin


def _columns(values: Float32, spans: Spans) -> Float32:
    """A copy in one piece, [n, columns]."""
    return np.concatenate([values[:, begin:end] for begin, end in spans], axis=1)
