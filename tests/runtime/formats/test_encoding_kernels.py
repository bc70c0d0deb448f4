"""LiteRT reads packed bytes as we do: models of one op, FULLY_CONNECTED or EMBEDDING_LOOKUP, against dequantize.

The product of the weights with 127 * identity shows each stored weight: such activations survive the rounding to int8
without a loss. XNNPACK is the delegate that runs on devices; "builtin" is LiteRT's own kernel.
"""

from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from gemma_edge.converter.quantize.quantize import Search, quantize_rows
from gemma_edge.runtime.formats.encoding import BLOCKS, Encoding

ROWS, COLUMNS = 12, 512
TENSOR_TYPES = {2: schema.TensorType.INT2, 4: schema.TensorType.INT4, 8: schema.TensorType.INT8}
RESOLVERS = {"xnnpack": OpResolverType.AUTO, "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}


class OneOp:
    """A .tflite file with one op over one [ROWS, COLUMNS] weight."""

    def __init__(self, encoding: Encoding, data: NDArray[np.uint8], scales: NDArray[np.floating]) -> None:
        self.tensors: list[Any] = []
        self.buffers = [schema.BufferT()]
        quantization = schema.QuantizationParametersT()
        if encoding.block:
            details = schema.BlockwiseQuantizationT()
            details.scales = self.tensor(scales.shape, schema.TensorType.FLOAT16, scales)
            details.blockSize, details.zeroPoints = encoding.block, -1
            quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
            quantization.details = details
        else:
            quantization.scale, quantization.zeroPoint = scales.tolist(), [0] * ROWS
            quantization.quantizedDimension = 0
        self.weight = self.tensor((ROWS, COLUMNS), TENSOR_TYPES[encoding.bits], data)
        self.tensors[self.weight].quantization = quantization

    def tensor(self, shape: tuple[int, ...], kind: int, data: NDArray[Any] | None = None) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = f"t{len(self.tensors)}", list(shape), kind
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            self.buffers.append(buffer)
            tensor.buffer = len(self.buffers) - 1
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def run(self, resolver: OpResolverType, code: int, options: Any, inputs: list[int], given: NDArray[Any]) -> Any:
        operator, operator_code = schema.OperatorT(), schema.OperatorCodeT()
        operator_code.builtinCode = operator_code.deprecatedBuiltinCode = code
        output = self.tensor((len(given), self.output_columns(code)), schema.TensorType.FLOAT32)
        operator.inputs, operator.outputs = inputs, [output]
        if options is not None:
            operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
            operator.builtinOptions = options
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators, graph.outputs = self.tensors, [operator], [output]
        graph.inputs = [index for index in inputs if index not in (self.weight, -1)]
        model.version, model.operatorCodes = 3, [operator_code]
        model.subgraphs, model.buffers = [graph], self.buffers
        builder = flatbuffers.Builder(0)
        builder.Finish(model.Pack(builder), b"TFL3")
        interpreter = Interpreter(
            model_content=bytes(builder.Output()), num_threads=1, experimental_op_resolver_type=resolver
        )
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], given)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    @staticmethod
    def output_columns(code: int) -> int:
        return ROWS if code == schema.BuiltinOperator.FULLY_CONNECTED else COLUMNS

    def multiplied(self, activations: NDArray[np.float32], resolver: OpResolverType) -> Any:
        """activations [n, COLUMNS] -> [n, ROWS]."""
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        given = self.tensor(activations.shape, schema.TensorType.FLOAT32)
        code = schema.BuiltinOperator.FULLY_CONNECTED
        return self.run(resolver, code, options, [given, self.weight, -1], activations)

    def looked_up(self, rows: NDArray[np.int32]) -> Any:
        """rows [n] -> [n, COLUMNS]."""
        given = self.tensor(rows.shape, schema.TensorType.INT32)
        code = schema.BuiltinOperator.EMBEDDING_LOOKUP
        return self.run(OpResolverType.AUTO, code, None, [given, self.weight], rows)


def _stored(encoding: Encoding, search: Search) -> tuple[OneOp, NDArray[np.float32]]:
    values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    values[3] = 0  # whatever scale a row of zeros gets, the kernels must take it
    values[4] *= np.float32(1e-7)
    stored = quantize_rows(values, encoding, search)
    assert stored.scales is not None
    return OneOp(encoding, stored.data, stored.scales), encoding.dequantize(stored.data, stored.scales, values.shape)


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("search", Search)
@pytest.mark.parametrize("name", ["int8", "int4", "int2", *(f"int4-b{block}" for block in BLOCKS)])
def test_fully_connected_reads_our_weights(name: str, search: Search, resolver: str) -> None:
    model, expected = _stored(Encoding.parse(name), search)
    found = model.multiplied(127 * np.eye(COLUMNS, dtype=np.float32), RESOLVERS[resolver])  # [COLUMNS, ROWS]
    # The last bits: the kernels multiply by the activation's scale as well, which is 1 up to float32 rounding.
    np.testing.assert_allclose(found.T / 127, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_embedding_lookup_reads_our_rows(name: str) -> None:
    model, expected = _stored(Encoding.parse(name), Search.MSE)
    rows = np.array([ROWS - 1, 0, 4, 3], np.int32)
    np.testing.assert_array_equal(model.looked_up(rows), expected[rows])


def test_minus_eight_is_not_portable() -> None:
    """Why int4 stops at -7. When this fails, LiteRT's own kernel has learnt to read -8."""
    encoding = Encoding.parse("int4")
    values = np.full((ROWS, COLUMNS), -8, np.int8)
    model = OneOp(encoding, encoding.pack(values), np.ones(ROWS, np.float32))
    ones = 127 * np.eye(COLUMNS, dtype=np.float32)
    assert (model.multiplied(ones, RESOLVERS["builtin"]) == 8 * 127).all()
