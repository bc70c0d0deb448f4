"""One .onnx file: a tape of nodes, small constants inside, weights in data files beside it that are only referenced."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, DTypeLike

from gemma_edge.converter.onnx.data import DataFiles, PlacedWeight, values_of_bytes
from gemma_edge.converter.quantize.stored import StoredWeight, row_slices
from gemma_edge.runtime.formats.encoding import Encoding

F32, F16, U8, BOOL = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.UINT8, ir.DataType.BOOL
I32, I64 = ir.DataType.INT32, ir.DataType.INT64
MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators; also those of its web build
OPSETS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10  # the newest that onnxruntime 1.20 reads

Dim = int | str
_INT8 = Encoding("int", 8)
_SMALLEST = 1e-30  # of what a row of x is divided by: a row of zeros stays one
_FLOATS = {"fp32": F32, "fp16": F16}


class OnnxFile:
    """Collects nodes and weights; `content` is the file, `weights` say what to stream where.

    many_rows: matrices are multiplied with hundreds of rows at a time, as in an encoder.
    """

    def __init__(self, file_name: str, many_rows: bool = False) -> None:
        self.file_name = file_name  # "model_q4.onnx"
        self._many_rows = many_rows
        self.data = DataFiles(file_name)
        self.weights: dict[str, PlacedWeight] = {}
        self._tape = ir.tape.Tape()
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._tensors: dict[str, ir.Value] = {}

    def input(self, name: str, kind: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """Something the caller provides; names in `shape` are lengths known at run time."""
        value = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def output(self, name: str, value: ir.Value, shape: Sequence[Dim]) -> None:
        """A float32 result."""
        value.name, value.type, value.shape = name, ir.TensorType(F32), ir.Shape(shape)
        self._outputs.append(value)

    def constant(self, values: ArrayLike, kind: DTypeLike = np.float32) -> ir.Value:
        """A small constant; equal ones are one initializer."""
        array = np.asarray(values, kind)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            tensor = ir.Tensor(array, name=f"constant_{len(self._constants)}")
            self._constants[key] = self._tape.initializer(tensor)
        return self._constants[key]

    def op(self, name: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Append a node with one output."""
        return self._tape.op(name, inputs, attributes, domain=domain)

    def ops(
        self, name: str, *inputs: ir.Value | None, domain: str, outputs: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs."""
        return self._tape.op_multi_out(name, inputs, attributes, domain=domain, num_outputs=outputs)

    def plain(self, weight: StoredWeight) -> ir.Value:
        """A float weight as it is, fp16 widened to float32."""
        value = self._tensor(weight, self._place(weight, is_table=False))
        return value if weight.encoding.bits == 32 else self.op("Cast", value, to=F32)

    def rows(self, table: StoredWeight, ids: ir.Value) -> ir.Value:
        """Rows of a table [V, N] by ids int64 [B, T]: float32 [B, T, N]. See runtime/formats/onnx_tables.py."""
        placed = self._place(table, is_table=True)
        if table.encoding.kind == "float":
            rows = self.op("Gather", self._tensor(table, placed), ids, axis=0)
            return rows if table.encoding.bits == 32 else self.op("Cast", rows, to=F32)
        data = self._external(placed, "", U8, (table.shape[0], table.row_bytes), placed.data_offset)
        scales = self.op("Gather", self._scales(placed, 0, table.shape[0]), ids, axis=0)  # [..., blocks]
        rows = self._values(self.op("Gather", data, ids, axis=0), table.encoding.bits)
        rows = self.op("Reshape", rows, self.constant([0, 0, placed.blocks, placed.block], np.int64))
        rows = self.op("Mul", rows, self.op("Unsqueeze", scales, self.constant([-1], np.int64)))
        return self.op("Reshape", rows, self.constant([0, 0, table.shape[1]], np.int64))

    def _values(self, codes: ir.Value, bits: int) -> ir.Value:
        """uint8 [..., bytes] -> float32, each byte's values in a dimension of their own where they are several."""
        if bits == 8:
            return self.op("Sub", self.op("Cast", codes, to=F32), self.constant(128.0))
        return self.op("Gather", self.constant(values_of_bytes(bits)), self.op("Cast", codes, to=I32), axis=0)

    def linear(self, x: ir.Value, weight: StoredWeight, *, is_rounded: bool) -> ir.Value:
        """[..., K] times the transpose of [N, K].

        is_rounded: whether x is on levels of its own, which a kernel that rounds to int8 would move it off.
        """
        if weight.encoding.kind == "float":
            return self.op("FusedMatMul", x, self.plain(weight), domain=MICROSOFT, transB=1)
        placed = self._place(weight, is_table=False)
        if self._many_rows and weight.encoding == _INT8 and not is_rounded:
            return self._rounded_linear(x, placed)
        level = 1 if is_rounded else 4  # 4: int8 activations, as XNNPACK; every other level is five times slower
        parts = [self._int_linear(x, placed, level, *rows) for rows in row_slices(weight.shape[0], weight.row_bytes)]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=-1)

    def _int_linear(self, x: ir.Value, placed: PlacedWeight, level: int, first: int, last: int) -> ir.Value:
        """Rows [first, last) of a matrix, which are a range of its bytes."""
        weight, bits, name = placed.weight, placed.weight.encoding.bits, f".rows_{first}" if first else ""
        shape = (last - first, placed.blocks, placed.block * bits // 8)
        data = self._external(placed, name, U8, shape, placed.data_offset + first * weight.row_bytes)
        scales = self._scales(placed, first, last)
        return self.op(
            "MatMulNBits", x, data, scales,
            domain=MICROSOFT, bits=bits, block_size=placed.block, K=weight.shape[1], N=last - first,
            accuracy_level=level,
        )  # fmt: skip

    def _rounded_linear(self, x: ir.Value, placed: PlacedWeight) -> ir.Value:
        """A whole int8 matrix by MatMulInteger, with many rows 2 to 4 times faster than MatMulNBits.

        Each row of x is rounded to int8 with a scale of its own, as XNNPACK does; DynamicQuantizeLinear has one scale
        for all. Both sides are unsigned: with signed weights ONNX Runtime's kernel for AVX2 adds pairs of products in
        16 bits, which saturate (its documentation of quantization, "S8S8, U8U8 and U8S8"). Weights are turned to [K, N]
        once, at load.
        """
        data = self._external(placed, "", U8, placed.weight.shape, placed.data_offset)
        first = (self.constant([bound], np.int64) for bound in (0, 1, 1))  # a row's blocks all carry the row's scale
        scales = self.op("Slice", self._scales(placed, 0, placed.weight.shape[0]), *first)  # [N, 1]
        last_axis, middle = self.constant([-1], np.int64), self.constant(128, np.uint8)
        largest = self.op("ReduceMax", self.op("Abs", x), last_axis, keepdims=1)  # [..., 1]
        to_integers = self.op("Div", self.constant(127.0), self.op("Max", largest, self.constant(_SMALLEST)))
        rounded = self.op("QuantizeLinear", self.op("Mul", x, to_integers), self.constant(1.0), middle)
        y = self.op("MatMulInteger", rounded, self.op("Transpose", data, perm=(1, 0)), middle, middle)
        y = self.op("Mul", self.op("Cast", y, to=F32), self.op("Reshape", scales, last_axis))
        return self.op("Div", y, to_integers)

    @cached_property
    def content(self) -> bytes:
        """The file; nothing can be added any more."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports=OPSETS,
            name=self.file_name.removesuffix(".onnx"),
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="gemma-edge")
        data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
        return data

    def _place(self, weight: StoredWeight, is_table: bool) -> PlacedWeight:
        if weight.name not in self.weights:
            self.weights[weight.name] = self.data.place(weight, is_table)
        placed = self.weights[weight.name]
        assert placed.weight == weight, weight.name
        return placed

    def _tensor(self, weight: StoredWeight, placed: PlacedWeight) -> ir.Value:
        return self._external(placed, "", _FLOATS[weight.encoding.name], weight.shape, placed.data_offset)

    def _scales(self, placed: PlacedWeight, first: int, last: int) -> ir.Value:
        """Of rows [first, last)."""
        name = f".scale.rows_{first}" if first else ".scale"
        return self._external(
            placed, name, F32, (last - first, placed.blocks), placed.scale_offset + first * placed.blocks * 4
        )

    def _external(
        self, placed: PlacedWeight, suffix: str, kind: ir.DataType, shape: Sequence[int], offset: int
    ) -> ir.Value:
        name = placed.weight.label + suffix
        if name not in self._tensors:
            nbytes = math.prod(shape) * (kind.bitwidth // 8)
            tensor = ir.ExternalTensor(placed.file, offset, nbytes, kind, shape=ir.Shape(shape), name=name)
            self._tensors[name] = self._tape.initializer(tensor)
        return self._tensors[name]
