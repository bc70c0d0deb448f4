"""One graph on its way into one ONNX file: what lowering an op may ask and tell.

Positions and lengths come from `position_ids` and `attention_mask`, as transformers.js and onnxruntime-genai give them.
B and T are open. Rows of a batch may be padded on either side, or in between: `Positions.packed`.
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
        self._caches: dict[int, _Cache] = {}
        self._positions: Positions | None = None
        self._values = {value: inputs[name] for name, value in graph.inputs.items()}
        if graph.caches:
            self._values = {value: self.positions.packed(x, value.shape) for value, x in self._values.items()}

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
    """What a decoder derives from position_ids and attention_mask [B, past and T new].

    GroupQueryAttention takes a row's tokens to lie side by side from slot 0 on. So padding among the new tokens is
    moved behind the real ones, where no real token sees it, and the next run's tokens are written over it: slots of a
    cache hold real tokens only, whichever side was padded, and a window counts what it should.
    """

    def __init__(self, file: OnnxFile) -> None:
        self._file = file
        self._angles: dict[tuple[ir.Rope, int], tuple[onnx_ir.Value, onnx_ir.Value]] = {}
        mask = file.input("attention_mask", I64, (BATCH, TOTAL))
        ids = file.input("position_ids", I64, (BATCH, TOKENS))
        axis, one = file.constant([1], np.int64), file.constant(1, np.int64)
        tokens, total = self._size(ids, 1), self._size(mask, 1)  # []
        new = file.op("Slice", mask, self._as_list(file.op("Sub", total, tokens)), self._as_list(total), axis)  # [B, T]
        real = file.op("ReduceSum", new, axis, keepdims=1)  # [B, 1]
        held = file.op("Sub", file.op("ReduceSum", mask, axis, keepdims=1), real)  # [B, 1], in the cache
        last = file.op("Sub", file.op("Add", file.op("Squeeze", held, axis), tokens), one)
        self.last = file.op("Cast", last, to=I32)  # [B]: of the slots that are full after this run, padding included
        self.total = file.op("Cast", total, to=I32)  # []

        steps = self._range(tokens)  # [T]
        padding_last = file.op("Add", steps, file.op("Mul", file.op("Sub", one, new), tokens))  # [B, T], all differ
        _, order = file.ops("TopK", padding_last, self._as_list(tokens), domain="", outputs=2, axis=1, largest=0)
        begins = file.op("Mul", self._range(self._size(ids, 0)), tokens)
        begins = file.op("Unsqueeze", begins, axis)  # [B, 1], of each row among B*T
        self._order = file.op("Add", order, begins)
        self._last_real = file.op("Add", file.op("Max", file.op("Sub", real, one), file.constant(0, np.int64)), begins)
        self.rows = file.op("Add", steps, begins)  # [B, T], of angles
        positions = file.op("Cast", self.packed(ids, (1, ir.ANY)), to=F32)
        self._column = file.op("Reshape", positions, file.constant([-1, 1], np.int64))  # [B*T, 1]

    def packed(self, x: onnx_ir.Value, shape: ir.Shape) -> onnx_ir.Value:
        """[B, T, ...], each row's real tokens first."""
        return self._gathered(x, shape, self._order)

    def last_token(self, x: onnx_ir.Value, shape: ir.Shape) -> onnx_ir.Value:
        """[B, T, ...] that is packed -> [B, 1, ...], each row's last real token."""
        return self._gathered(x, shape, self._last_real)

    def angles(self, rope: ir.Rope, head_size: int) -> tuple[onnx_ir.Value, onnx_ir.Value]:
        """cos and sin of the run's positions, [B*T, E/2] each: no table, so no limit to the context."""
        key = (rope, head_size)
        if key not in self._angles:
            frequencies = self._file.constant(rope.inverse_frequencies(head_size)[None])
            angle = self._file.op("Mul", self._column, frequencies)
            self._angles[key] = self._file.op("Cos", angle), self._file.op("Sin", angle)
        return self._angles[key]

    def _gathered(self, x: onnx_ir.Value, shape: ir.Shape, rows: onnx_ir.Value) -> onnx_ir.Value:
        flat = self._file.op("Reshape", x, self._file.constant([-1, *shape[2:]], np.int64))  # [B*T, ...]
        return self._file.op("Gather", flat, rows, axis=0)

    def _size(self, x: onnx_ir.Value, axis: int) -> onnx_ir.Value:
        return self._file.op("Gather", self._file.op("Shape", x), self._file.constant(axis, np.int64), axis=0)

    def _as_list(self, number: onnx_ir.Value) -> onnx_ir.Value:
        """[] -> [1]."""
        return self._file.op("Unsqueeze", number, self._file.constant([0], np.int64))

    def _range(self, end: onnx_ir.Value) -> onnx_ir.Value:
        zero, one = (self._file.constant(number, np.int64) for number in (0, 1))
        return self._file.op("Range", zero, end, one)


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
