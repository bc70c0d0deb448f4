"""TFLite's ops, one method each, for building one subgraph. Shapes in, shapes out; no knowledge of models.

Op names and options are those of the TFLite schema. Everything float is written so that XNNPACK can take it:
RELU_0_TO_1, for one, is not delegated, MINIMUM of RELU is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import ArrayLike

from gemma_edge.converter.litert.file import Opcode, Phase, Tensor, Tensors, TfliteFile, numpy_type
from gemma_edge.converter.quantize.stored import StoredWeight, row_slices
from gemma_edge.runtime.formats import hadamard

Options = schema.BuiltinOptions
F32, F16, I8, I32, BOOL = Tensors.FLOAT32, Tensors.FLOAT16, Tensors.INT8, Tensors.INT32, Tensors.BOOL
_CONCAT_INPUTS = 5  # XNNPACK takes no more; one op outside would cut its partition in two
Refine = Callable[[Tensor], Tensor]


class Subgraph:
    """A tape of TFLite ops in three stages; `finish` hands it to the file."""

    def __init__(self, file: TfliteFile, name: str) -> None:
        self._file = file
        self._name = name
        self._tensors: list[Any] = []
        self._ops: dict[Phase, list[Any]] = {phase: [] for phase in Phase}
        self._constants: dict[tuple[int, tuple[int, ...], bytes], Tensor] = {}
        self._weights: dict[tuple[str, int], Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    # --- tensors

    def input(self, name: str, shape: tuple[int, ...], kind: int = F32) -> Tensor:
        """A signature input."""
        self.inputs[name] = self._tensor(shape, kind, name=name)
        return self.inputs[name]

    def output(self, name: str, tensor: Tensor) -> None:
        """A signature output; it may carry the name of an input, as KV caches do."""
        self.outputs[name] = tensor
        self._tensors[tensor.index].name = (f"{name}_out" if name in self.inputs else name).encode()

    def constant(self, values: ArrayLike, kind: int = F32, name: str = "") -> Tensor:
        """A small constant; equal ones are one tensor, unless they have names."""
        array = np.asarray(values, numpy_type(kind), order="C")
        key = (kind, array.shape, array.tobytes() + name.encode())
        if key not in self._constants:
            self._constants[key] = self._tensor(array.shape, kind, buffer=self._file.constant(array), name=name)
        return self._constants[key]

    def weight(self, weight: StoredWeight) -> Tensor:
        """A whole stored weight."""
        return self._weight_rows(weight, 0, weight.shape[0])

    def finish(self) -> None:
        """Write the subgraph and its signature into the file."""
        ops = [op for phase in Phase for op in self._ops[phase]]
        self._file.add_subgraph(self._name, self._tensors, ops, self.inputs, self.outputs)

    # --- elementwise

    def add(self, a: Tensor, b: Tensor, phase: Phase = Phase.BODY) -> Tensor:
        return self._binary(Opcode.ADD, a, b, Options.AddOptions, schema.AddOptionsT(), phase)

    def sub(self, a: Tensor, b: Tensor, phase: Phase = Phase.BODY) -> Tensor:
        return self._binary(Opcode.SUB, a, b, Options.SubOptions, schema.SubOptionsT(), phase)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return self._binary(Opcode.MUL, a, b, Options.MulOptions, schema.MulOptionsT())

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        return self._binary(Opcode.DIV, a, b, Options.DivOptions, schema.DivOptionsT())

    def maximum(self, a: Tensor, b: Tensor, phase: Phase = Phase.BODY) -> Tensor:
        options = schema.MaximumMinimumOptionsT()
        return self._binary(Opcode.MAXIMUM, a, b, Options.MaximumMinimumOptions, options, phase)

    def minimum(self, a: Tensor, b: Tensor) -> Tensor:
        options = schema.MaximumMinimumOptionsT()
        return self._binary(Opcode.MINIMUM, a, b, Options.MaximumMinimumOptions, options)

    def floor_mod(self, a: Tensor, b: Tensor, phase: Phase) -> Tensor:
        return self._binary(Opcode.FLOOR_MOD, a, b, Options.FloorModOptions, schema.FloorModOptionsT(), phase)

    def less(self, a: Tensor, b: Tensor, phase: Phase) -> Tensor:
        shape = np.broadcast_shapes(a.shape, b.shape)
        return self.op(Opcode.LESS, [a, b], shape, BOOL, Options.LessOptions, schema.LessOptionsT(), phase)

    def select(self, condition: Tensor, a: Tensor, b: Tensor, phase: Phase) -> Tensor:
        shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
        options = schema.SelectV2OptionsT()
        return self.op(Opcode.SELECT_V2, [condition, a, b], shape, a.type, Options.SelectV2Options, options, phase)

    def unary(self, code: int, x: Tensor) -> Tensor:
        """TANH, RSQRT, SQRT, SIN, COS, RELU, LOGISTIC: ops without options."""
        return self.op(code, [x], x.shape, x.type)

    def gelu(self, x: Tensor) -> Tensor:
        return self.op(Opcode.GELU, [x], x.shape, F32, Options.GeluOptions, schema.GeluOptionsT(approximate=True))

    def cast(self, x: Tensor, kind: int, phase: Phase) -> Tensor:
        options = schema.CastOptionsT(inDataType=x.type, outDataType=kind)
        return self.op(Opcode.CAST, [x], x.shape, kind, Options.CastOptions, options, phase)

    def quantize(self, x: Tensor, scale: float) -> Tensor:
        """float32 -> int8, to the nearest, ties to even."""
        options = schema.QuantizeOptionsT()
        return self.op(Opcode.QUANTIZE, [x], x.shape, I8, Options.QuantizeOptions, options, scale=scale)

    def dequantize(self, x: Tensor) -> Tensor:
        """float16, or int8 -> float32."""
        options = schema.DequantizeOptionsT()
        return self.op(Opcode.DEQUANTIZE, [x], x.shape, F32, Options.DequantizeOptions, options)

    def mean(self, x: Tensor) -> Tensor:
        """[..., N] -> [..., 1]."""
        axis = self.constant([len(x.shape) - 1], I32)
        options = schema.ReducerOptionsT(keepDims=True)
        return self.op(Opcode.MEAN, [x, axis], (*x.shape[:-1], 1), F32, Options.ReducerOptions, options)

    def softmax(self, x: Tensor) -> Tensor:
        return self.op(Opcode.SOFTMAX, [x], x.shape, F32, Options.SoftmaxOptions, schema.SoftmaxOptionsT(beta=1.0))

    # --- layout

    def reshape(self, x: Tensor, shape: Sequence[int], phase: Phase = Phase.BODY) -> Tensor:
        if tuple(shape) == x.shape:
            return x
        options = schema.ReshapeOptionsT(newShape=np.array(shape, np.int32))
        target = self.constant(list(shape), I32)
        return self.op(Opcode.RESHAPE, [x, target], shape, x.type, Options.ReshapeOptions, options, phase)

    def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
        shape = [x.shape[axis] for axis in order]
        moved = [axis for axis in order if x.shape[axis] != 1]
        if moved == sorted(moved):  # only axes of size 1 change place: the bytes stay
            return self.reshape(x, shape)
        options = schema.TransposeOptionsT()
        permutation = self.constant(list(order), I32)
        return self.op(Opcode.TRANSPOSE, [x, permutation], shape, x.type, Options.TransposeOptions, options)

    def slice(self, x: Tensor, axis: int, start: int, size: int, phase: Phase = Phase.BODY) -> Tensor:
        axis %= len(x.shape)
        if size == x.shape[axis]:
            return x
        begin = [start if i == axis else 0 for i in range(len(x.shape))]
        shape = [size if i == axis else n for i, n in enumerate(x.shape)]
        operands = [x, self.constant(begin, I32), self.constant(shape, I32)]
        return self.op(Opcode.SLICE, operands, shape, x.type, Options.SliceOptions, schema.SliceOptionsT(), phase)

    def pad(self, x: Tensor, axis: int, before: int, after: int) -> Tensor:
        """Zeros before and after the entries of one axis."""
        if not before and not after:
            return x
        amounts = [[before, after] if i == axis % len(x.shape) else [0, 0] for i in range(len(x.shape))]
        shape = [n + sum(amount) for n, amount in zip(x.shape, amounts, strict=True)]
        return self.op(
            Opcode.PAD, [x, self.constant(amounts, I32)], shape, x.type, Options.PadOptions, schema.PadOptionsT()
        )

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        if len(parts) > _CONCAT_INPUTS:
            groups = [parts[i : i + _CONCAT_INPUTS] for i in range(0, len(parts), _CONCAT_INPUTS)]
            return self.concat([self.concat(group, axis) for group in groups], axis)
        return self._concat(parts, axis, Phase.BODY)

    def concat_in_turn(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """As `concat` at the end, with zeros behind, and by LiteRT: one at a time, each into the memory of the last.

        XNNPACK would make all of them in its partition, and all would be in memory at once.
        """
        shape = [1 if i == axis else n for i, n in enumerate(parts[0].shape)]
        filling = self.constant(np.zeros(shape, numpy_type(parts[0].type)), parts[0].type)
        parts = [*parts, *[filling] * (_CONCAT_INPUTS + 1 - len(parts))]  # more than XNNPACK takes
        return self._concat(parts, axis, Phase.EPILOGUE)

    def _concat(self, parts: Sequence[Tensor], axis: int, phase: Phase) -> Tensor:
        axis %= len(parts[0].shape)
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        options = schema.ConcatenationOptionsT(axis=axis)
        code, form, scale = Opcode.CONCATENATION, Options.ConcatenationOptions, parts[0].scale
        return self.op(code, list(parts), shape, parts[0].type, form, options, phase, scale)

    def pack(self, scalars: Sequence[Tensor], phase: Phase) -> Tensor:
        """Scalars [] -> [n]."""
        options, shape = schema.PackOptionsT(valuesCount=len(scalars), axis=0), (len(scalars),)
        return self.op(Opcode.PACK, list(scalars), shape, scalars[0].type, Options.PackOptions, options, phase)

    def gather(self, x: Tensor, indices: Tensor, axis: int, phase: Phase) -> Tensor:
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        options = schema.GatherOptionsT(axis=axis)
        return self.op(Opcode.GATHER, [x, indices], shape, x.type, Options.GatherOptions, options, phase)

    def dynamic_update_slice(self, x: Tensor, update: Tensor, start: Tensor, phase: Phase) -> Tensor:
        return self.op(Opcode.DYNAMIC_UPDATE_SLICE, [x, update, start], x.shape, x.type, phase=phase)

    # --- with weights

    def floats(self, weight: StoredWeight) -> Tensor:
        """A whole stored weight as float32."""
        w = self.weight(weight)
        return self.dequantize(w) if w.type == F16 else w

    def fully_connected(self, x: Tensor, weight: StoredWeight, scale: float = 0.0) -> Tensor:
        """[..., K] times the transpose of [N, K], in row slices where the weight is large.

        scale: of outputs in int8, for inputs in int8 and a weight of integers per row.
        """
        parts = []
        for first, last in row_slices(weight.shape[0], weight.row_bytes):
            w = self._weight_rows(weight, first, last)
            parts.append(self.multiply_rows(x, self.dequantize(w) if w.type == F16 else w, scale))
        return self.concat(parts, -1)

    def multiply_rows(self, x: Tensor, rows: Tensor, scale: float = 0.0) -> Tensor:
        """[..., K] times the transpose of rows [N, K], which may be computed. scale: as above."""
        options = schema.FullyConnectedOptionsT(keepNumDims=True)
        shape, kind = (*x.shape[:-1], rows.shape[0]), I8 if scale else F32
        code, form = Opcode.FULLY_CONNECTED, Options.FullyConnectedOptions
        return self.op(code, [x, rows, None], shape, kind, form, options, scale=scale)

    def hadamard(self, x: Tensor) -> Tensor:
        """[..., K], every 64 columns turned: rows of 64 times one small matrix, which all layers share."""
        blocks = self.reshape(x, (1, math.prod(x.shape) // hadamard.BLOCK, hadamard.BLOCK))
        return self.reshape(self.multiply_rows(blocks, self.constant(hadamard.matrix())), x.shape)

    def conv2d(
        self, x: Tensor, kernel: Tensor, bias: Tensor, stride: tuple[int, int], same: bool, shape: Sequence[int]
    ) -> Tensor:
        """[B, H, W, I], kernel [O, KH, KW, I], bias [O] -> shape."""
        options = schema.Conv2DOptionsT(
            padding=_padding(same), strideH=stride[0], strideW=stride[1], dilationHFactor=1, dilationWFactor=1
        )
        return self.op(Opcode.CONV_2D, [x, kernel, bias], shape, F32, Options.Conv2DOptions, options)

    def depthwise_conv2d(
        self, x: Tensor, kernel: Tensor, bias: Tensor, stride: tuple[int, int], same: bool, shape: Sequence[int]
    ) -> Tensor:
        """[B, H, W, C], kernel [1, KH, KW, C], bias [C] -> shape."""
        options = schema.DepthwiseConv2DOptionsT(
            padding=_padding(same), strideH=stride[0], strideW=stride[1], dilationHFactor=1, dilationWFactor=1,
            depthMultiplier=1,
        )  # fmt: skip
        operands = [x, kernel, bias]
        return self.op(Opcode.DEPTHWISE_CONV_2D, operands, shape, F32, Options.DepthwiseConv2DOptions, options)

    def average_pool(self, x: Tensor, size: int, shape: Sequence[int]) -> Tensor:
        """Squares of `size` that do not overlap."""
        options = schema.Pool2DOptionsT(
            padding=_padding(same=False), strideH=size, strideW=size, filterHeight=size, filterWidth=size
        )
        return self.op(Opcode.AVERAGE_POOL_2D, [x], shape, F32, Options.Pool2DOptions, options)

    def batch_matmul(self, a: Tensor, b: Tensor, transpose_b: bool = False) -> Tensor:
        shape = (*a.shape[:-1], b.shape[-2] if transpose_b else b.shape[-1])
        options = schema.BatchMatMulOptionsT(adjY=transpose_b)
        return self.op(Opcode.BATCH_MATMUL, [a, b], shape, F32, Options.BatchMatMulOptions, options)

    def embedding_lookup(self, ids: Tensor, table: StoredWeight, refine: Refine | None = None) -> Tensor:
        """ids [n] -> [n, N]. EMBEDDING_LOOKUP has no float16 kernel, so those tables go through GATHER.

        Nor does it know blocks: their integers and their scales are looked up, then multiplied.
        refine: what to make of integers of blocks before that.
        """
        shape = (*ids.shape, table.shape[1])
        if table.encoding.block:
            integers, scales = self._integers_and_scales(table)
            factors = self.cast(self.gather(scales, ids, 0, Phase.BODY), F32, Phase.BODY)  # [n, blocks]
            blocks = (*factors.shape, table.encoding.block)
            rows = self.op(Opcode.EMBEDDING_LOOKUP, [ids, integers], shape, F32)
            rows = self.reshape(rows if refine is None else refine(rows), blocks)
            return self.reshape(self.mul(rows, self.reshape(factors, (*factors.shape, 1))), shape)
        rows = self.weight(table)
        if rows.type == F16:
            return self.cast(self.gather(rows, ids, 0, Phase.BODY), F32, Phase.BODY)
        return self.op(Opcode.EMBEDDING_LOOKUP, [ids, rows], shape, F32)

    def nibbles(self, weight: StoredWeight, ids: Tensor) -> Tensor:
        """Rows of a stored weight's bytes, ids [n] -> [n, 2 * bytes of a row], from -8 to 7."""
        rows, columns = weight.shape[0], 2 * weight.row_bytes
        buffer = self._file.region(self._file.place(weight), 0, rows * weight.row_bytes)
        packed = self._tensor((rows, columns), Tensors.INT4, buffer, weight.label, _per_tensor(1.0))
        return self.op(Opcode.EMBEDDING_LOOKUP, [ids, packed], (*ids.shape, columns), F32)

    # --- inside

    def _integers_and_scales(self, table: StoredWeight) -> tuple[Tensor, Tensor]:
        """[V, N] int4 with a scale of 1, and [V, blocks] float16."""
        placed = self._file.place(table)
        nbytes = table.encoding.data_bytes(table.shape), table.encoding.scale_bytes(table.shape)
        one = schema.QuantizationParametersT(scale=np.ones(1, np.float32), zeroPoint=np.zeros(1, np.int64))
        integers = self._file.region(placed, 0, nbytes[0])
        scales = self._file.region(placed, 0, nbytes[1], scales=True)
        return (
            self._tensor(table.shape, placed.tensor_type, integers, table.label, one),
            self._tensor(table.encoding.scale_shape(table.shape), F16, scales, f"{table.label}.scale"),
        )

    def _weight_rows(self, weight: StoredWeight, first: int, last: int) -> Tensor:
        key = (weight.name, first)
        if key not in self._weights:
            placed = self._file.place(weight)
            count = last - first if len(weight.shape) == 2 else 1
            nbytes = count * weight.row_bytes
            buffer = self._file.region(placed, first * weight.row_bytes, nbytes)
            shape = (last - first, *weight.shape[1:])
            quantization = None
            if weight.encoding.block:
                block = weight.encoding.block
                scale_bytes = weight.shape[1] // block * 2  # float16
                scales = self._tensor(
                    (last - first, weight.shape[1] // block),
                    F16,
                    self._file.region(placed, first * scale_bytes, (last - first) * scale_bytes, scales=True),
                    f"{weight.label}.scale",
                )
                details = schema.BlockwiseQuantizationT(scales=scales.index, zeroPoints=-1, blockSize=block)
                quantization = schema.QuantizationParametersT(
                    detailsType=schema.QuantizationDetails.BlockwiseQuantization,
                    details=details,
                    quantizedDimension=0,
                )
            elif weight.encoding.kind == "int":
                quantization = schema.QuantizationParametersT(
                    scale=placed.row_scales[first:last],  # a view: filled in while the weight streams
                    zeroPoint=np.zeros(last - first, np.int64),
                    quantizedDimension=0,
                )
            self._weights[key] = self._tensor(shape, placed.tensor_type, buffer, weight.label, quantization)
        return self._weights[key]

    def _tensor(
        self, shape: Sequence[int], kind: int, buffer: int = 0, name: str = "", quantization: Any = None
    ) -> Tensor:
        index = len(self._tensors)
        self._tensors.append(
            schema.TensorT(
                shape=np.array(shape, np.int32),
                type=kind,
                buffer=buffer,
                name=(name or f"t{index}").encode(),
                hasRank=True,
                quantization=quantization,
            )
        )
        return Tensor(index, tuple(int(n) for n in shape), kind)

    def op(
        self,
        code: int,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        kind: int,
        options_type: int = Options.NONE,
        options: Any = None,
        phase: Phase = Phase.BODY,
        scale: float = 0.0,
        unread: tuple[Sequence[int], int] | None = None,
    ) -> Tensor:
        """Any op. unread: shape and type of an output before its own, which nobody reads."""
        outputs = [] if unread is None else [self._tensor(*unread)]
        out = self._tensor(shape, kind, quantization=_per_tensor(scale) if scale else None)
        out = replace(out, scale=scale)
        operator = schema.OperatorT(
            opcodeIndex=self._file.opcode(code),
            inputs=np.array([-1 if x is None else x.index for x in inputs], np.int32),
            outputs=np.array([*(other.index for other in outputs), out.index], np.int32),
            builtinOptionsType=options_type,
            builtinOptions=options,
        )
        self._ops[phase].append(operator)
        return out

    def _binary(
        self, code: int, a: Tensor, b: Tensor, options_type: int, options: Any, phase: Phase = Phase.BODY
    ) -> Tensor:
        assert a.type == b.type, (a.type, b.type)
        return self.op(code, [a, b], np.broadcast_shapes(a.shape, b.shape), a.type, options_type, options, phase)


def _per_tensor(scale: float) -> Any:
    return schema.QuantizationParametersT(scale=np.array([scale], np.float32), zeroPoint=np.zeros(1, np.int64))


def _padding(same: bool) -> int:
    return int(schema.Padding.SAME if same else schema.Padding.VALID)
