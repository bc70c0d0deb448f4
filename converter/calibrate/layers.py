"""Runs a text through a checkpoint twice, side by side: as it is, and with every layer that was reached so far rounded.

Each linear layer is rounded for the inputs it gets in the second run, so that it also makes up for what the layers
before it do wrong, as far as one layer can. Memory: the activations of one layer, twice, and the moments of one input.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.effort import efforts
from gemma_edge.converter.calibrate.factor import Factor
from gemma_edge.converter.calibrate.moments import Moments, moved
from gemma_edge.converter.calibrate.rounding import Rounder, Rows
from gemma_edge.converter.calibrate.spool import Spool
from gemma_edge.converter.calibrate.table import GateMoments, TableRounder
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.activations import round_tokens
from gemma_edge.converter.evaluate.machine import Hooks
from gemma_edge.converter.evaluate.products import one_thread_each
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.quantize.quantize import Quantized, error_of
from gemma_edge.converter.quantize.recipes import Storage
from gemma_edge.converter.quantize.stream import Quantizer
from gemma_edge.converter.tensors import Role, TensorSpec

Float32 = NDArray[np.float32]

_TOKENS: Final = 1024
"""Whose inputs are rounded at a time."""
_BATCH_BYTES: Final = 64 << 20
"""Of float32 weights that are rounded as one, if there are several matrices; a matrix is never taken apart."""


def calibrate(
    checkpoint: Checkpoint,
    model: StreamingModel,
    storages: Mapping[str, Storage],
    windows: NDArray[np.integer[Any]],
    spool: Spool,
    on_bytes: OnBytes,
) -> dict[str, Quantizer]:
    """How to round, by tensor name: every linear layer and per-layer table with less than 8 bits.

    windows: token ids [B, T]. spool: holds the layers; the head and the table are rounded when they are asked for.
    on_bytes: twice `model.read_bytes` in total.
    """
    walk = _Walk(checkpoint, model, storages, spool)
    with one_thread_each():
        walk.run(windows, on_bytes)
    return walk.quantizers


def is_calibrated(storage: Storage) -> bool:
    """Whether it is worth the time: int8 loses a hundredth of what int4 does, and what keeps a trained grid nothing."""
    return storage.encoding.kind == "int" and storage.encoding.bits < 8 and storage.grid is None


@dataclass
class _Walk:
    checkpoint: Checkpoint
    model: StreamingModel
    storages: Mapping[str, Storage]
    spool: Spool
    quantizers: dict[str, Quantizer] = field(default_factory=dict)
    _exact_inputs: dict[str, Float32] = field(default_factory=dict)
    _done: set[ir.Value] = field(default_factory=set)
    _rounded: tuple[ir.Value, Float32] | None = None

    def run(self, windows: NDArray[np.integer[Any]], on_bytes: OnBytes) -> None:
        """Both traces, op by op; what the last op leaves is the input of the head."""
        gates = GateMoments.of(self.model.graph)
        exact_run = self.model.trace(windows, Hooks(self._exact_inputs.__setitem__))
        found_run = self.model.trace(windows, Hooks(self._round_layer, self._stored, None, self._multiplied))
        reports = self._reports(windows.size)
        for (value, exact), (_, found) in zip(exact_run, found_run, strict=True):
            gates.see(value, found)
            last = exact, found
            on_bytes(next(reports))
        self._round_head(*(hidden.reshape(-1, hidden.shape[-1]) for hidden in last))
        for spec in self._wanted(Role.PLE) if gates.gates else ():  # a table that is used otherwise: value by value
            rounder = TableRounder.of(gates, self.storages[spec.name], self._read)
            self.quantizers[spec.name] = rounder.round

    def _reports(self, tokens: int) -> Iterator[int]:
        """Bytes after each op, in proportion to the time it takes: what is done with one differs very much."""
        names = {name for name in self._linears if is_calibrated(self.storages[name])}
        shares = list(itertools.accumulate(efforts(self.model.body, names, tokens)))
        total, reported = 2 * self.model.body_bytes, 0
        for share in shares:
            done = round(total * share / shares[-1])
            yield done - reported
            reported = done

    def _round_layer(self, name: str, found: Float32) -> None:
        """Called before a layer's products are taken in the second run; rounds all layers that read the same input."""
        exact, value = self._exact_inputs.pop(name), self._linears[name].x
        readers = [name for name, op in self._linears.items() if op.x is value and is_calibrated(self.storages[name])]
        if not readers or value in self._done:
            return
        self._done.add(value)
        moments = Moments.of(self._multiplied(name, found), exact)
        blocks = sorted({self.storages[name].encoding.block for name in readers})
        for block in blocks:
            names = [name for name in readers if self.storages[name].encoding.block == block]
            is_last = block == blocks[-1]
            factor = Factor.of(moments.taken_gram() if is_last else moments.gram, block, moments.damping)
            for batch in self._batches(names):
                self._round_batch(batch, moments, factor)

    def _multiplied(self, name: str, found: Float32) -> Float32:
        """An input [N, k] as the layer's kernel takes it: those of integers round it, token by token."""
        if self.storages[name].encoding.kind != "int":
            return found
        value = self._linears[name].x
        if self._rounded is None or self._rounded[0] is not value:
            self._rounded = None  # its memory serves again
            rounded = self.model.allocate(found.shape)
            for first in range(0, len(found), _TOKENS):
                part = slice(first, first + _TOKENS)
                rounded[part] = round_tokens(found[part])
            self._rounded = value, rounded
        return self._rounded[1]

    def _batches(self, names: list[str]) -> Iterator[list[str]]:
        """Matrices that are rounded as one: there are many operations on a column, and each takes a while to call."""
        batch: list[str] = []
        for name in names:
            shapes = [self._linears[each].weight.shape for each in (*batch, name)]
            alike = not batch or self.storages[name].encoding == self.storages[batch[0]].encoding
            if batch and not (alike and 4 * sum(map(math.prod, shapes)) <= _BATCH_BYTES):
                yield batch
                batch = []
            batch.append(name)
        yield batch

    def _round_batch(self, names: list[str], moments: Moments, factor: Factor) -> None:
        encoding = self.storages[names[0]].encoding
        rows = np.concatenate([self._read(name) for name in names])
        stored = Rows.transposed(moved(rows, moments, factor), Rounder(encoding, factor)).rounded().stored()
        assert stored.scales is not None
        first = 0
        for name in names:
            part = slice(first, first + self._linears[name].weight.shape[0])
            first = part.stop
            own = Quantized(stored.data[part], stored.scales[part])
            shape = rows[part].shape
            restored = encoding.dequantize(own.data, own.scales, shape)
            restored -= rows[part]
            self.spool.put(name, encoding, (shape[0], shape[1]), replace(own, error=error_of(restored, rows[part])))
            self.quantizers[name] = self.spool.reader(name)

    def _round_head(self, exact: Float32, found: Float32) -> None:
        for spec in self._wanted(Role.HEAD):
            moments = Moments.of(found, exact)
            encoding = self.storages[spec.name].encoding
            factor = Factor.of(moments.gram, encoding.block, moments.damping)
            move = moved(np.eye(len(moments.gram), dtype=np.float32), moments, factor)
            self.quantizers[spec.name] = _moved(Rounder(encoding, factor), move)

    def _stored(self, name: str, first: int, rows: Float32) -> Float32:
        """A weight as the second run sees it."""
        if name not in self.quantizers:
            return self.storages[name].restored(rows)
        stored = self.quantizers[name](first, rows)
        return self.storages[name].encoding.dequantize(stored.data, stored.scales, rows.shape)

    def _read(self, name: str) -> Float32:
        spec = self.model.graph.tensors[name]
        return spec.fold(self.checkpoint.read(spec.source))

    def _wanted(self, role: Role) -> list[TensorSpec]:
        specs = self.model.graph.tensors.values()
        return [spec for spec in specs if spec.role is role and is_calibrated(self.storages[spec.name])]

    @cached_property
    def _linears(self) -> dict[str, ir.Linear]:
        return {op.weight.name: op for op in self.model.graph.ops if isinstance(op, ir.Linear)}


def _moved(rounder: Rounder, move: Float32) -> Quantizer:
    """For a matrix that comes in pieces, as it is too large to be taken whole. move: of no rows but those of one."""
    return lambda _first, rows: Rows.transposed(move @ rows.T, rounder).rounded().stored()
