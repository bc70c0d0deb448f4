"""Whether a TFLite model holds together: what its tables say of each other, and of the bytes behind them.

LiteRT trusts a model: an operand that is no tensor, a constant shorter than its shape, an op that writes into the
mapped file or reads what nothing has written end the process. This reads tables only, and no weight: 0.7 s for the
decoder of E2B, 1.4 GiB, of which verifying the flatbuffer takes a tenth.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Final

from gemma_edge.runtime.formats.flatbuffer import Buffer, FlatbufferError, Table, kind_of, root_of, verify

IDENTIFIER: Final = b"TFL3"
_VERSION: Final = 3
_MOST_DIMENSIONS: Final = 8  # LITERT_TENSOR_MAX_RANK
_MOST_BYTES: Final = 1 << 40  # of one tensor
_NO_TENSOR: Final = -1  # an operand that is left out


class TensorType(IntEnum):
    """What the values of a tensor are."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT32 = 2
    UINT8 = 3
    INT64 = 4
    STRING = 5
    BOOL = 6
    INT16 = 7
    COMPLEX64 = 8
    INT8 = 9
    FLOAT64 = 10
    COMPLEX128 = 11
    UINT64 = 12
    RESOURCE = 13
    VARIANT = 14
    UINT32 = 15
    UINT16 = 16
    INT4 = 17
    BFLOAT16 = 18
    INT2 = 19
    UINT4 = 20
    FLOAT8_E4M3FN = 21
    FLOAT8_E5M2 = 22


class Operator(IntEnum):
    """The builtin operators that are asked for by name; TFLite has `OPERATORS`."""

    ADD = 0
    CONCATENATION = 2
    EMBEDDING_LOOKUP = 7
    FLOOR = 8
    FULLY_CONNECTED = 9
    MUL = 18
    RESHAPE = 22
    GATHER = 36
    SUB = 41
    TOPK_V2 = 48
    CAST = 53
    MAXIMUM = 55
    MINIMUM = 57
    LESS = 58
    SLICE = 65
    SELECT_V2 = 123


OPERATORS: Final = 210
_BITS: Final[Mapping[int, int]] = {
    **dict.fromkeys((TensorType.INT2,), 2),
    **dict.fromkeys((TensorType.INT4, TensorType.UINT4), 4),
    **dict.fromkeys((TensorType.UINT8, TensorType.INT8, TensorType.BOOL), 8),
    **dict.fromkeys((TensorType.FLOAT8_E4M3FN, TensorType.FLOAT8_E5M2), 8),
    **dict.fromkeys((TensorType.FLOAT16, TensorType.BFLOAT16, TensorType.INT16, TensorType.UINT16), 16),
    **dict.fromkeys((TensorType.FLOAT32, TensorType.INT32, TensorType.UINT32), 32),
    **dict.fromkeys((TensorType.INT64, TensorType.UINT64, TensorType.FLOAT64, TensorType.COMPLEX64), 64),
    **dict.fromkeys((TensorType.COMPLEX128,), 128),
    **dict.fromkeys((TensorType.STRING, TensorType.RESOURCE, TensorType.VARIANT), 0),  # of no fixed size
}
# Fields of an op's options that are the index of a subgraph, by the class of the options.
_CALLS: Final[Mapping[str, Sequence[str]]] = {
    "CallOptions": ("subgraph",),
    "CallOnceOptions": ("init_subgraph_index",),
    "IfOptions": ("then_subgraph_index", "else_subgraph_index"),
    "WhileOptions": ("cond_subgraph_index", "body_subgraph_index"),
    "StableHLOCompositeOptions": ("decomposition_subgraph_index",),
    "StablehloWhileOptions": ("cond_subgraph_index", "body_subgraph_index"),
    "StablehloReduceOptions": ("body_subgraph_index",),
    "StablehloReduceWindowOptions": ("body_subgraph_index",),
    "StablehloScatterOptions": ("update_computation_subgraph_index",),
    "StablehloSortOptions": ("comparator_subgraph_index",),
}


def check_model(view: Buffer) -> None:
    """Check a model from its first byte to its last.

    view: the whole of a section or file; a buffer behind the flatbuffer's root counts from its beginning.
    Raises FlatbufferError: what does not hold, and of which tensor or operator.
    """
    verify(view, "Model", identifier=IDENTIFIER)
    model = root_of(view, "Model")
    if model.version != _VERSION:
        raise FlatbufferError(f"TFLite version {model.version}, expected {_VERSION}")
    if not model.subgraphs:
        raise FlatbufferError("no subgraph")
    buffers = [_buffer_bytes(buffer, i, len(view)) for i, buffer in enumerate(model.buffers)]
    codes = [_operator(code, i) for i, code in enumerate(model.operator_codes)]
    graphs = [
        _Graph(graph, f"subgraph {i}", buffers, codes, len(model.subgraphs)) for i, graph in enumerate(model.subgraphs)
    ]
    _check_calls([graph.calls for graph in graphs])
    for i, metadata in enumerate(model.metadata):
        _index(metadata.buffer, len(buffers), f"buffer of metadata {i}")
    _check_signatures(model, graphs)


def _buffer_bytes(buffer: Table, index: int, nbytes: int) -> int:
    """How long a buffer is. Its bytes lie in the flatbuffer, which is verified, or behind it."""
    offset, size = buffer.offset, buffer.size
    if offset > 1 and offset + size > nbytes:
        raise FlatbufferError(f"buffer {index} lies at bytes {offset} to {offset + size} of {nbytes}")
    return int(size if offset > 1 else len(buffer.data))


def builtin_code(operator_code: Table) -> int:
    """Codes above 127 do not fit the deprecated byte field (tflite schema, OperatorCode)."""
    return int(max(operator_code.builtin_code, operator_code.deprecated_builtin_code))


def _operator(operator_code: Table, index: int) -> int:
    builtin = builtin_code(operator_code)
    if not 0 <= builtin < OPERATORS:
        raise FlatbufferError(f"operator code {index} is {builtin}, which TFLite does not have")
    return builtin


def _index(value: int, count: int, what: str) -> int:
    if not 0 <= value < count:
        raise FlatbufferError(f"{what} is {value}, expected 0 to {count - 1}")
    return value


class _Graph:
    """A checked subgraph. inputs, outputs: indices of tensors. calls: subgraphs that its ops run."""

    def __init__(self, graph: Table, what: str, buffers: Sequence[int], codes: Sequence[int], subgraphs: int) -> None:
        self._graph, self._what = graph, what
        self._codes, self._subgraphs = codes, subgraphs
        self.count = len(graph.tensors)
        self._constants = {i for i, tensor in enumerate(graph.tensors) if self._is_constant(tensor, i, buffers)}
        self.inputs = self._indices(graph, "inputs", what)
        self.outputs = self._indices(graph, "outputs", what)
        self.calls: set[int] = set()
        self._check_operators()

    def _is_constant(self, tensor: Table, index: int, buffers: Sequence[int]) -> bool:
        """Whether a tensor, which is checked, has its values in the file."""
        what = f"{self._what}, tensor {index}"
        shape, bits = tensor.shape.tolist(), _BITS.get(tensor.type)
        if bits is None:
            raise FlatbufferError(f"{what} has type {tensor.type}, which TFLite does not have")
        if len(shape) > _MOST_DIMENSIONS or any(size < 0 for size in shape):
            raise FlatbufferError(f"{what} has shape {shape[: _MOST_DIMENSIONS + 1]}")
        if len(tensor.shape_signature) not in (0, len(shape)):
            raise FlatbufferError(f"{what} has a shape signature of {len(tensor.shape_signature)} for {shape}")
        wanted = bits
        for size in shape:
            wanted *= size
            if wanted > 8 * _MOST_BYTES:
                raise FlatbufferError(f"{what} has shape {shape}, more than {_MOST_BYTES} bytes")
        if tensor.external_buffer:
            raise FlatbufferError(f"{what} lies in another file")
        found = buffers[_index(tensor.buffer, len(buffers), f"buffer of {what}")]
        if found and bits and tensor.sparsity is None and found != -(-wanted // 8):
            raise FlatbufferError(f"{what} has {found} bytes, {shape} needs {-(-wanted // 8)}")
        self._check_quantization(tensor.quantization, shape, what)
        if found and tensor.is_variable:
            raise FlatbufferError(f"{what} is a variable and has values in the file")
        return bool(found or tensor.is_variable)

    def _check_quantization(self, quantization: Table | None, shape: Sequence[int], what: str) -> None:
        if quantization is None:
            return
        scales, zeros = len(quantization.scale), len(quantization.zero_point)
        axis = quantization.quantized_dimension
        if scales > 1 and (not 0 <= axis < len(shape) or scales != shape[axis]):
            raise FlatbufferError(f"{what} of {list(shape)} has {scales} scales along dimension {axis}")
        if zeros not in (0, 1, scales):
            raise FlatbufferError(f"{what} has {zeros} zero points for {scales} scales")
        details = quantization.details
        if details is not None and kind_of(details) == "BlockwiseQuantization":
            _index(details.scales, self.count, f"scales of {what}")
            if details.zero_points != _NO_TENSOR:
                _index(details.zero_points, self.count, f"zero points of {what}")
            if details.block_size < 1 or not shape or shape[-1] % details.block_size:
                raise FlatbufferError(f"{what} of {list(shape)} has blocks of {details.block_size}")

    def _indices(self, table: Table, field: str, what: str) -> list[int]:
        return [_index(i, self.count, f"one of the {field} of {what}") for i in getattr(table, field)]

    def _check_operators(self) -> None:
        """Each op reads what there is by then, and writes what nothing else does."""
        known = self._constants | set(self.inputs)
        for position, operator in enumerate(self._graph.operators):
            what = f"{self._what}, operator {position}"
            _index(operator.opcode_index, len(self._codes), f"code of {what}")
            for index in operator.inputs:
                if index != _NO_TENSOR and _index(index, self.count, f"an input of {what}") not in known:
                    if self._has_no_values(index):
                        known.add(index)
                        continue
                    raise FlatbufferError(f"{what} reads tensor {index} before anything writes it")
            self._indices(operator, "intermediates", what)
            for index in self._indices(operator, "outputs", what):
                if index in known:
                    raise FlatbufferError(f"{what} writes tensor {index}, which has values by then")
                known.add(index)
            self.calls.update(self._called(operator, what))
        for index in self.outputs:
            if index not in known:
                raise FlatbufferError(f"{self._what} gives tensor {index}, which nothing writes")

    def _has_no_values(self, index: int) -> bool:
        """An empty constant: some dimension of it is 0."""
        return 0 in self._graph.tensors[index].shape

    def _called(self, operator: Table, what: str) -> Iterator[int]:
        for options in (operator.builtin_options, operator.builtin_options2):
            if options is not None:
                for field in _CALLS.get(kind_of(options), ()):
                    yield _index(getattr(options, field), self._subgraphs, f"{field} of {what}")


def _check_calls(calls: Sequence[set[int]]) -> None:
    """No subgraph runs itself, through others or not. Takes out what runs nothing that is left, until nothing is."""
    left = dict(enumerate(calls))
    while ready := [index for index, called in left.items() if not called & left.keys()]:
        for index in ready:
            del left[index]
    if left:
        raise FlatbufferError(f"subgraphs {sorted(left)[:8]} run each other without end")


def _check_signatures(model: Table, graphs: Sequence[_Graph]) -> None:
    """Every name leads to an input or output of the signature's subgraph."""
    keys = set()
    for i, signature in enumerate(model.signature_defs):
        key = _text(signature.signature_key, f"name of signature {i}")
        if key in keys:
            raise FlatbufferError(f"two signatures are called {key!r}")
        keys.add(key)
        graph = graphs[_index(signature.subgraph_index, len(graphs), f"subgraph of signature {key!r}")]
        for field, allowed in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            names = set()
            for entry in getattr(signature, field):
                name = _text(entry.name, f"name of one of the {field} of signature {key!r}")
                if name in names:
                    raise FlatbufferError(f"signature {key!r} has two {field} called {name!r}")
                names.add(name)
                if entry.tensor_index not in allowed:
                    raise FlatbufferError(
                        f"{name!r} of signature {key!r} is tensor {entry.tensor_index}, not one of the {field} of its "
                        "subgraph"
                    )


def _text(raw: bytes | None, what: str) -> str:
    try:
        return (raw or b"").decode()
    except UnicodeDecodeError:
        raise FlatbufferError(f"the {what} is {raw!r}, which is not UTF-8") from None
