"""One graph on its way into one ONNX file: what lowering an op may ask and tell.

Positions and lengths come from `position_ids` and `attention_mask`, as transformers.js and onnxruntime-genai give them.
B and T are open; rows of a batch are equally long, without padding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir

from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.onnx.file import F32, I32, I64, MICROSOFT, OnnxFile
from gemma_edge.converter.quantize.stored import StoredWeight
from gemma_edge.converter.tensors import TensorSpec
from gemma_edge.runtime.formats.encoding import Encoding

BATCH, TOKENS = "batch_size", "sequence_length"  # transformers.js looks for the first by name
PAST, TOTAL = "past_sequence_length", "total_sequence_length"

Values = Mapping[str, onnx_ir.Value]


class Lowering:
    """One graph on its way into one file: what each Value and weight has become."""

    def __init__(self, file: OnnxFile, graph: ir.Graph, encodings: Mapping[str, Encoding], inputs: Values) -> None:
        self.file = file
        self._encodings = encodings
        self._values = {value: inputs[name] for name, value in graph.inputs.items()}
        self._caches: dict[int, _Cache] = {}
        self._positions: Positions | None = None

    @property
    def positions(self) -> "Positions":
        """Made when the first op asks: a lookup has none."""
        if self._positions is None:
            self._positions = Positions(self.file)
        return self._positions

    def run(
        self, graph: ir.Graph, lower: Mapping[type, Callable[["Lowering", Any], onnx_ir.Value]]
    ) -> dict[str, onnx_ir.Value]:
        """Lower every op, declare the caches as outputs and return the graph's own outputs.

        lower: a function for each kind of op.
        """
        for op in graph.ops:
            self._values[op.out] = lower[type(op)](self, op)
        for cache in graph.caches.values():
            self._caches[cache.layer].declare_present(self.file)
        return {name: self._values[value] for name, value in graph.outputs.items()}

    def __getitem__(self, operand: ir.Operand) -> onnx_ir.Value:
        """The tensor of a value, a weight vector or a number."""
        if isinstance(operand, ir.Value):
            return self._values[operand]
        if isinstance(operand, TensorSpec):
            return self.file.plain(self.stored(operand))
        return self.file.constant(operand)

    def stored(self, spec: TensorSpec) -> StoredWeight:
        """The weight as the recipe wants it stored."""
        return StoredWeight(spec.name, spec.shape, self._encodings[spec.name], spec.fold.hadamard)

    def flat(self, x: ir.Value) -> onnx_ir.Value:
        """[B, T, H, E] -> [B, T, H*E]."""
        return self.file.op("Reshape", self[x], self.file.constant([0, 0, x.shape[2] * x.shape[3]], np.int64))

    def cache(self, cache: ir.KVCache) -> "_Cache":
        """The tensors of one layer's cache, shared by all who read it."""
        if cache.layer not in self._caches:
            self._caches[cache.layer] = _Cache(self, cache)
        return self._caches[cache.layer]


class Positions:
    """What a decoder derives from position_ids and attention_mask, each part built when first asked for."""

    def __init__(self, file: OnnxFile) -> None:
        self._file = file
        mask = file.input("attention_mask", I64, (BATCH, TOTAL))
        ids = file.input("position_ids", I64, (BATCH, TOKENS))
        first_row = file.op("Gather", ids, file.constant(0, np.int64), axis=0)  # [T]; rows are equally long
        as_float = file.op("Cast", first_row, to=F32)
        self._column = file.op("Unsqueeze", as_float, file.constant([1], np.int64))  # [T, 1]
        lengths = file.op("ReduceSum", mask, file.constant([1], np.int64), keepdims=0)  # [B]
        self.last = file.op("Cast", file.op("Sub", lengths, file.constant(1, np.int64)), to=I32)  # [B]
        total = file.op("Gather", file.op("Shape", mask), file.constant(1, np.int64), axis=0)
        self.total = file.op("Cast", total, to=I32)  # []
        self._angles: dict[tuple[ir.Rope, int], tuple[onnx_ir.Value, onnx_ir.Value]] = {}

    def angles(self, rope: ir.Rope, head_size: int) -> tuple[onnx_ir.Value, onnx_ir.Value]:
        """cos and sin of the run's positions, [T, E/2] each: no table, so no limit to the context."""
        key = (rope, head_size)
        if key not in self._angles:
            frequencies = self._file.constant(rope.inverse_frequencies(head_size)[None])
            angle = self._file.op("Mul", self._column, frequencies)
            self._angles[key] = self._file.op("Cos", angle), self._file.op("Sin", angle)
        return self._angles[key]


class _Cache:
    """One layer's keys and values: past as inputs, present as outputs, [B, K, S, E]."""

    def __init__(self, s: Lowering, cache: ir.KVCache) -> None:
        self._layer = cache.layer
        _, _, self.kv_heads, self._head_size = cache.k.shape
        shape = (BATCH, self.kv_heads, PAST, self._head_size)
        self._key = s.file.input(f"past_key_values.{cache.layer}.key", F32, shape)
        self._value = s.file.input(f"past_key_values.{cache.layer}.value", F32, shape)
        self._new_rows: tuple[onnx_ir.Value, ...] = (s.flat(cache.k), s.flat(cache.v))  # [B, T, K*E]
        self._is_written = False

    def attend(self, s: Lowering, q: onnx_ir.Value, **attributes: Any) -> onnx_ir.Value:
        """The first reader writes this run's rows and gives the present; later ones read that with no rows to add.

        Nobody reads what later ones give as present, but onnxruntime 1.30, transformers.js', crashes without it.
        """
        results = s.file.ops(
            "GroupQueryAttention", q, *self._new_rows, self._key, self._value, s.positions.last, s.positions.total,
            domain=MICROSOFT, outputs=3, kv_num_heads=self.kv_heads, **attributes,
        )  # fmt: skip
        if not self._is_written:
            _, self._key, self._value = results
            self._new_rows = (_no_rows(s.file, self._new_rows[0]),) * 2
            self._is_written = True
        return results[0]

    def declare_present(self, file: OnnxFile) -> None:
        """Make what the first reader has written outputs of the file."""
        shape = (BATCH, self.kv_heads, TOTAL, self._head_size)
        file.output(f"present.{self._layer}.key", self._key, shape)
        file.output(f"present.{self._layer}.value", self._value, shape)


def _no_rows(file: OnnxFile, rows: onnx_ir.Value) -> onnx_ir.Value:
    """[B, T, N] -> [B, 0, N]."""
    zero, tokens = file.constant([0], np.int64), file.constant([1], np.int64)
    return file.op("Slice", rows, zero, zero, tokens)
