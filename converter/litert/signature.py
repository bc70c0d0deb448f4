"""One graph on its way into one subgraph of a TFLite file: what lowering an op may ask and tell."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemma_edge.converter.evaluate.machine import operands
from gemma_edge.converter.graph import draft_ops
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.litert.attention import CacheTensors, Positions
from gemma_edge.converter.litert.drafting import PastTensors
from gemma_edge.converter.litert.file import Phase, Tensor, TfliteFile
from gemma_edge.converter.litert.ops import BOOL, F32, I32, Subgraph
from gemma_edge.converter.plan.cache_layout import CacheLayout
from gemma_edge.converter.quantize.stored import StoredWeight
from gemma_edge.converter.tensors import StaticScales, TensorSpec
from gemma_edge.runtime.formats.encoding import Encoding

_TYPES: dict[ir.DType, int] = {"float32": F32, "int32": I32, "bool": BOOL}


class Signature:
    """One graph on its way into one subgraph: what each Value and weight has become."""

    def __init__(
        self, file: TfliteFile, graph: ir.Graph, encodings: Mapping[str, Encoding], layout: CacheLayout | None
    ) -> None:
        self.sub = Subgraph(file, graph.name)
        self._graph = graph
        self._encodings = encodings
        self._layout = layout
        self._values: dict[ir.Value, Tensor] = {}
        self._caches: dict[int, Sequence[CacheTensors]] = {}
        self._pasts: dict[draft_ops.Past, PastTensors] = {}
        self._streams: list[Positions] = []
        self.levels: dict[ir.Value, Tensor] = {}  # in int8
        integers = (op.x for op in graph.ops if isinstance(op, ir.Linear) and self.static_scales(op))
        reads = Counter(value for op in graph.ops for value in operands(op)) - Counter(integers)
        self._read_as_float = {*reads, *graph.outputs.values()}

    @property
    def streams(self) -> Sequence[Positions]:
        """Of consecutive rows: one, of a batch one for each row. Made when the first op asks: a lookup has none."""
        if not self._streams:
            assert self._layout is not None, "a graph with positions needs a cache layout"
            graph, layout = self._graph, self._layout
            pos = self.sub.input("input_pos", (graph.tokens,), I32)
            for part in self.split(pos, 0, Phase.PROLOGUE):
                made = Positions(self.sub, part, layout, graph.past, is_steps=graph.is_steps, wraps=graph.wraps)
                self._streams.append(made)
        return self._streams

    def split(self, x: Tensor, axis: int, phase: Phase = Phase.BODY) -> list[Tensor]:
        """A tensor of this run's rows in parts, one for each stream; axis: that of the rows."""
        rows = 1 if self._graph.is_batch else self._graph.tokens
        return [self.sub.slice(x, axis, start, rows, phase) for start in range(0, self._graph.tokens, rows)]

    def emit(self, lower: Mapping[type, Callable[["Signature", Any], Tensor]]) -> None:
        """Lower every op, then the cache writes, then the declared outputs. lower: a function for each kind of op."""
        for name, value in self._graph.inputs.items():
            self._values[value] = self.sub.input(name, value.shape, _TYPES[value.dtype])
        for op in self._graph.ops:
            self._values[op.out] = lower[type(op)](self, op)
        for cache in self._graph.caches.values():
            for tensors, positions in zip(self.cache(cache), self.streams, strict=True):
                tensors.output(positions)
        for name, value in self._graph.outputs.items():
            self.sub.output(name, self._values[value])
        self.sub.finish()

    def __getitem__(self, operand: ir.Operand) -> Tensor:
        """The tensor of a value, a weight vector or a number."""
        if isinstance(operand, ir.Value):
            return self._values[operand]
        if isinstance(operand, TensorSpec):
            return self.sub.weight(self.stored(operand))
        return self.sub.constant(operand)

    def stored(self, spec: TensorSpec) -> StoredWeight:
        """The weight as the recipe wants it stored."""
        return StoredWeight(spec.name, spec.shape, self._encodings[spec.name], spec.fold.hadamard)

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """All of the model's, by name."""
        return self._graph.tensors

    def static_scales(self, op: ir.Linear) -> StaticScales | None:
        """Of a layer that multiplies int8 and gives int8, both in scales that are known beforehand; None of others.

        Kernels do that with integers of 2, 4 and 8 bits that have a scale per row.
        """
        static, encoding = op.weight.static, self._encodings[op.weight.name]
        if static is None or not (static.inputs and static.outputs) or encoding.kind == "float" or encoding.block:
            return None
        return static

    def is_read_as_float(self, value: ir.Value) -> bool:
        """Whether anything but such a layer reads it."""
        return value in self._read_as_float

    def cache(self, cache: ir.KVCache) -> Sequence[CacheTensors]:
        """The tensors of one layer's cache, of each stream, shared by all who read it."""
        if cache.layer not in self._caches:
            assert self._layout is not None
            graph, read_slots = self._graph, self._layout.read_slots(cache.window, self._graph.past)
            parts = zip(self.split(self[cache.k], 1), self.split(self[cache.v], 1), strict=True)
            self._caches[cache.layer] = [
                CacheTensors(self.sub, cache, self._layout, read_slots, k, v, row if graph.is_batch else None)
                for row, (k, v) in enumerate(parts)
            ]
            if graph.is_steps:
                for tensors, positions in zip(self._caches[cache.layer], self.streams, strict=True):
                    tensors.write(positions, Phase.BODY)
        return self._caches[cache.layer]

    def past(self, past: draft_ops.Past) -> PastTensors:
        """The tensors of a cache that this graph reads and leaves as it is, shared by all who read it."""
        if past not in self._pasts:
            assert self._layout is not None
            self._pasts[past] = PastTensors(self.sub, past, self._layout)
        return self._pasts[past]
