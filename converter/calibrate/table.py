"""Rounding Gemma 3n's per-layer embeddings for what the layers do with them.

Layer l multiplies its part p of a table row by a gate g, both [P], and adds norm(W (g * (p + ...))) to the state. An
error e of p changes that by about w * W (g * e) / r, where w are the norm's weights and r is the root mean square that
the norm divides by. Its mean square over tokens is e H e^T with

    H = (W^T diag(w^2) W) * mean(g g^T / r^2)      both factors [P, P], multiplied value by value

so that a row of the table can be rounded like a row of a matrix, with one gram per layer (see rounding.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.rounding import SWEEPS, Rounder, Rows
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.quantize.quantize import QuantError, Quantized
from gemma_edge.converter.quantize.recipes import Storage

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]


@dataclass
class _Gate:
    """Where one layer uses its part of the table. products: sum of g g^T / r^2."""

    layer: int
    gate: ir.Value
    projected: ir.Value
    weight: str
    norm: str
    products: Float32
    tokens: int = 0


@dataclass
class GateMoments:
    """Watches the values of a run for the gates, by layer in the order of the table's columns."""

    gates: list[_Gate]
    _open: dict[ir.Value, Float32]

    @classmethod
    def of(cls, graph: ir.Graph) -> Self:
        """Find where a graph multiplies gates with parts of its input per_layer_embeddings; none without such parts."""
        producer = {op.out: op for op in graph.ops}
        norms = {op.x: op.weight for op in graph.ops if isinstance(op, ir.RmsNorm) and op.weight is not None}
        gates = []
        for op in (op for op in graph.ops if isinstance(op, ir.Linear)):
            match producer.get(op.x):
                case ir.Binary(name="mul", a=ir.Value() as a, b=ir.Value() as b):
                    for gate, part in ((a, b), (b, a)):
                        layer = _layer(part, producer)
                        if layer is not None:
                            empty = np.zeros((op.weight.shape[1], op.weight.shape[1]), np.float32)
                            gates.append(_Gate(layer, gate, op.out, op.weight.name, norms[op.out].name, empty))
        return cls(sorted(gates, key=lambda gate: gate.layer), {})

    def see(self, value: ir.Value, array: Float32) -> None:
        """Every value of the run in turn, [B, T, ...]."""
        for gate in self.gates:
            if value is gate.gate:
                self._open[value] = array.reshape(-1, array.shape[-1])
            elif value is gate.projected:
                size = np.sqrt(np.mean(np.square(array), axis=-1)).reshape(-1, 1)
                scaled = self._open.pop(gate.gate) / np.maximum(size, np.float32(1e-20))
                gate.products += scaled.T @ scaled
                gate.tokens += len(scaled)


def _layer(part: ir.Value, producer: Mapping[ir.Value, ir.Op]) -> int | None:
    """Whose part of the per-layer inputs [B, T, L, P] a value is, if it is one."""
    match producer.get(part):
        case ir.Reshape(x=ir.Value() as x):
            return _layer(x, producer)
        case ir.Slice(axis=2, start=layer):
            return layer
    return None


@dataclass(frozen=True, eq=False)
class TableRounder:
    """rounders: one per layer, for its part of a row."""

    storage: Storage
    rounders: tuple[Rounder, ...]

    @classmethod
    def of(cls, moments: GateMoments, storage: Storage, read: Callable[[str], Float32]) -> Self:
        """read: a folded tensor by name."""
        rounders = []
        for gate in moments.gates:
            weighted = read(gate.weight) * read(gate.norm)[:, np.newaxis]  # [D, P]
            gram = (weighted.T @ weighted) * (gate.products / np.float32(gate.tokens))
            rounders.append(Rounder.of(gram, storage.encoding))
        return cls(storage, tuple(rounders))

    def round(self, _first: int, rows: Float32) -> Quantized:
        """Rows [n, L * P]. One scale serves a layer's part of a row, or the whole row."""
        layers = np.split(rows, len(self.rounders), axis=1)
        if self.storage.encoding.block:
            parts = [rounder.round(layer) for rounder, layer in zip(self.rounders, layers, strict=True)]
        else:
            parts = self._with_one_scale(layers, self.storage.store(rows).scales)
        scales: list[Any] = [part.scales for part in parts]
        return Quantized(
            np.concatenate([part.data for part in parts], axis=1),
            np.concatenate(scales, axis=1) if self.storage.encoding.block else scales[0],
            sum((part.error for part in parts), QuantError()),
        )

    def _with_one_scale(self, layers: Sequence[Float32], scales: Float32 | Float16 | None) -> list[Quantized]:
        """Rounded together; all have the scales of the rows, which are searched for from `scales` on."""
        assert scales is not None
        parts = [
            Rows.of(layer, rounder, scales.astype(np.float32)[np.newaxis])
            for rounder, layer in zip(self.rounders, layers, strict=True)
        ]
        for part in parts:
            part.choose_integers()
        for _ in range(SWEEPS):
            value, size = np.sum([part.scale_terms() for part in parts], axis=0)
            for part in parts:
                part.set_scale(value / np.maximum(size, np.float32(1e-30)))
                part.improve_integers()
        return [part.stored() for part in parts]
