"""Runs a text through a checkpoint twice, side by side: as it is, and with every layer that was reached so far rounded.

Each linear layer is rounded for the inputs it gets in the second run, so that it also makes up for what the layers
before it do wrong, as far as one layer can. Memory: the activations of one layer, twice, and the moments of one input.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter import graph as ir
from gemma_edge.converter.calibrate.moments import Moments
from gemma_edge.converter.calibrate.rounding import Rounder
from gemma_edge.converter.calibrate.scaling import Place, chosen_scales, places
from gemma_edge.converter.calibrate.spool import Spool
from gemma_edge.converter.calibrate.table import GateMoments, TableRounder
from gemma_edge.converter.checkpoint import Checkpoint
from gemma_edge.converter.evaluate import StreamingModel
from gemma_edge.converter.evaluate_machine import Hooks
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.quantize import Quantized, error_of
from gemma_edge.converter.recipes import Storage
from gemma_edge.converter.stream import Round
from gemma_edge.converter.tensors import Role, TensorSpec

Float32 = NDArray[np.float32]


def calibrate(
    checkpoint: Checkpoint,
    model: StreamingModel,
    storages: Mapping[str, Storage],
    windows: NDArray[np.integer[Any]],
    spool: Spool,
    on_bytes: OnBytes,
) -> dict[str, Round]:
    """How to round, by tensor name: every linear layer and per-layer table with less than 8 bits.

    windows: token ids [B, T]. spool: holds the layers; the head and the table are rounded when they are asked for.
    on_bytes: twice `model.read_bytes` in total.
    """
    walk = _Walk(checkpoint, model, storages, spool)
    walk.run(windows, on_bytes)
    return walk.rounds


def is_calibrated(storage: Storage) -> bool:
    """Whether it is worth the time: int8 loses a hundredth of what int4 does, and what keeps a trained grid nothing."""
    return storage.encoding.kind == "int" and storage.encoding.bits < 8 and storage.grid is None


@dataclass
class _Walk:
    checkpoint: Checkpoint
    model: StreamingModel
    storages: Mapping[str, Storage]
    spool: Spool
    rounds: dict[str, Round] = field(default_factory=dict)
    _exact_inputs: dict[str, Float32] = field(default_factory=dict)
    _inputs: "dict[ir.Value, _Input]" = field(default_factory=dict)
    _scales: dict[ir.Value, Float32] = field(default_factory=dict)

    def run(self, windows: NDArray[np.integer[Any]], on_bytes: OnBytes) -> None:
        """Both traces, op by op; what the last op leaves is the input of the head."""
        gates = GateMoments.of(self.model.graph)
        exact_run = self.model.trace(windows, Hooks(self._exact_inputs.__setitem__, None, on_bytes))
        found_run = self.model.trace(windows, Hooks(self._round_layer, self._stored, on_bytes))
        for (value, exact), (_, found) in zip(exact_run, found_run, strict=True):
            gates.see(value, found)
            last = exact, found
        self._round_head(*(hidden.reshape(-1, hidden.shape[-1]) for hidden in last))
        for spec in self._wanted(Role.PLE):
            rounder = TableRounder.of(gates, self.storages[spec.name], self._read)
            self.rounds[spec.name] = rounder.round

    def _round_layer(self, name: str, found: Float32) -> None:
        """Called before a layer's products are taken in the second run."""
        exact, storage, value = self._exact_inputs.pop(name), self.storages[name], self._linears[name].x
        if not is_calibrated(storage) or name in self.rounds:
            return
        if value not in self._inputs:
            self._take(value, Moments.of(found, exact))
        given = self._inputs[value]
        rows = self._read(name)
        if value in self._scales:
            rows *= self._scales[value]
        target = given.target(name, rows)
        stored = given.rounder(storage).round(target)
        restored = storage.encoding.dequantize(stored.data, stored.scales, rows.shape)
        stored = replace(stored, error=error_of(restored - rows, rows))
        self.spool.put(name, storage.encoding, (rows.shape[0], rows.shape[1]), stored)
        self.rounds[name] = self.spool.reader(name)
        if not given.readers:
            del self._inputs[value]

    def _take(self, value: ir.Value, moments: Moments) -> None:
        """Keep an input's moments while there are layers to round for it, and scale its columns where that is free."""
        readers = [name for name, op in self._linears.items() if op.x is value and is_calibrated(self.storages[name])]
        place = self._places.get(value)
        scales = None
        if place is not None and set(readers) == set(place.linears) and not self._have_blocks(*readers, place.source):
            matrices = [self._read(name) for name in readers]
            scales = chosen_scales(moments.gram, matrices, self.storages[readers[0]].encoding, place.rows)
        if place is not None and scales is not None:
            factors = np.ones(self.model.graph.tensors[place.source].shape[0], np.float32)
            factors[place.rows] = scales
            self.rounds[place.source] = _divided(self._round(place.source), factors)
            self._scales[value] = scales
            moments.scale(scales)
        self._inputs[value] = _Input(moments, readers)

    def _have_blocks(self, *names: str) -> bool:
        """Block scales have few bits, and hardly need the columns scaled."""
        return any(self.storages[name].encoding.block for name in names)

    def _round_head(self, exact: Float32, found: Float32) -> None:
        for spec in self._wanted(Role.HEAD):
            moments = Moments.of(found, exact)
            rounder = Rounder.of(moments.gram, self.storages[spec.name].encoding)
            self.rounds[spec.name] = _moved(rounder, moments.move())

    def _stored(self, name: str, first: int, rows: Float32) -> Float32:
        """A weight as the second run sees it: with inputs that are not scaled yet."""
        stored = self._round(name)(first, rows)
        restored = self.storages[name].encoding.dequantize(stored.data, stored.scales, rows.shape)
        scales = self._scales.get(self._linears[name].x) if name in self._linears else None
        return restored if scales is None else restored / scales

    def _round(self, name: str) -> Round:
        storage = self.storages[name]
        return self.rounds.get(name) or (lambda _first, rows: storage.store(rows))

    def _read(self, name: str) -> Float32:
        spec = self.model.graph.tensors[name]
        return spec.fold(self.checkpoint.read(spec.source))

    def _wanted(self, role: Role) -> list[TensorSpec]:
        specs = self.model.graph.tensors.values()
        return [spec for spec in specs if spec.role is role and is_calibrated(self.storages[spec.name])]

    @cached_property
    def _places(self) -> dict[ir.Value, Place]:
        return places(self.model.graph)

    @cached_property
    def _linears(self) -> dict[str, ir.Linear]:
        return {op.weight.name: op for op in self.model.graph.ops if isinstance(op, ir.Linear)}


@dataclass
class _Input:
    """An input, the layers that are yet to be rounded for it, and rounders by encoding.

    Its matrices are the largest thing in memory, so each is dropped as soon as no layer needs it.
    """

    moments: Moments | None
    readers: list[str]
    _rounders: dict[str, Rounder] = field(default_factory=dict)
    _gram: Float32 | None = None

    def target(self, name: str, rows: Float32) -> Float32:
        """See Moments.target; once for each reader."""
        assert self.moments is not None
        target = self.moments.target(rows)
        self.readers.remove(name)
        self._gram = self.moments.gram
        if not self.readers:
            self.moments = None
        return target

    def rounder(self, storage: Storage) -> Rounder:
        """For the reader that `target` was last called for."""
        name = storage.encoding.name
        if name not in self._rounders:
            self._rounders[name] = Rounder.of(self._taken_gram(), storage.encoding)
        self._gram = None
        return self._rounders[name]

    def _taken_gram(self) -> Float32:
        """Given away, so that the last rounder of an input takes its place in memory."""
        gram, self._gram = self._gram, None
        assert gram is not None
        return gram


def _moved(rounder: Rounder, move: Float32) -> Round:
    """Rows one by one, for a matrix that is too large to be taken whole."""
    return lambda _first, rows: rounder.round(rows @ move)


def _divided(round_rows: Round, factors: Float32) -> Round:
    """Rows, or the values of a vector, divided by powers of two: of integers, that divides their scales."""

    def divided(first: int, rows: Float32) -> Quantized:
        if rows.ndim == 1:
            return round_rows(first, rows / factors)
        part = factors[first : first + len(rows)]
        stored = round_rows(first, rows)
        if stored.scales is None:
            return round_rows(first, rows / part[:, np.newaxis])
        return replace(stored, scales=stored.scales / part)

    return divided
