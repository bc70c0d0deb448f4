"""Whether a TFLite model holds together: what its tables say of each other, and of the bytes behind them.

LiteRT trusts a model: an operand that is no tensor, a constant shorter than its shape, an op that writes into the
mapped file or reads what nothing has written end the process. This reads tables only, and no weight: 0.7 s for the
decoder of E2B, 1.4 GiB, of which verifying the flatbuffer takes a tenth.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ai_edge_litert import schema_py_generated as schema

from gemma_edge.runtime.formats.flatbuffer import Buffer, FlatbufferError, verify

IDENTIFIER: Final = b"TFL3"
_VERSION: Final = 3
_MOST_DIMENSIONS: Final = 8  # LITERT_TENSOR_MAX_RANK
_MOST_BYTES: Final = 1 << 40  # of one tensor
_NO_TENSOR: Final = -1  # an operand that is left out

_KINDS: Final = schema.TensorType
_BITS: Final[Mapping[int, int]] = {
    **dict.fromkeys((_KINDS.INT2,), 2),
    **dict.fromkeys((_KINDS.INT4, _KINDS.UINT4), 4),
    **dict.fromkeys((_KINDS.UINT8, _KINDS.INT8, _KINDS.BOOL, _KINDS.FLOAT8_E4M3FN, _KINDS.FLOAT8_E5M2), 8),
    **dict.fromkeys((_KINDS.FLOAT16, _KINDS.BFLOAT16, _KINDS.INT16, _KINDS.UINT16), 16),
    **dict.fromkeys((_KINDS.FLOAT32, _KINDS.INT32, _KINDS.UINT32), 32),
    **dict.fromkeys((_KINDS.INT64, _KINDS.UINT64, _KINDS.FLOAT64, _KINDS.COMPLEX64), 64),
    **dict.fromkeys((_KINDS.COMPLEX128,), 128),
    **dict.fromkeys((_KINDS.STRING, _KINDS.RESOURCE, _KINDS.VARIANT), 0),  # of no fixed size
}
_OPERATORS: Final = frozenset(value for key, value in vars(schema.BuiltinOperator).items() if key.isupper())
# Fields of an op's options that are the index of a subgraph, by the class of the options.
_CALLS: Final[Mapping[str, Sequence[str]]] = {
    "CallOptions": ("Subgraph",),
    "CallOnceOptions": ("InitSubgraphIndex",),
    "IfOptions": ("ThenSubgraphIndex", "ElseSubgraphIndex"),
    "WhileOptions": ("CondSubgraphIndex", "BodySubgraphIndex"),
    "StableHLOCompositeOptions": ("DecompositionSubgraphIndex",),
    "StablehloWhileOptions": ("CondSubgraphIndex", "BodySubgraphIndex"),
    "StablehloReduceOptions": ("BodySubgraphIndex",),
    "StablehloReduceWindowOptions": ("BodySubgraphIndex",),
    "StablehloScatterOptions": ("UpdateComputationSubgraphIndex",),
    "StablehloSortOptions": ("ComparatorSubgraphIndex",),
}


def check_model(view: Buffer) -> None:
    """Check a model from its first byte to its last.

    view: the whole of a section or file; a buffer behind the flatbuffer's root counts from its beginning.
    Raises FlatbufferError: what does not hold, and of which tensor or operator.
    """
    verify(view, "Model", identifier=IDENTIFIER)
    model = schema.Model.GetRootAs(view, 0)
    if model.Version() != _VERSION:
        raise FlatbufferError(f"TFLite version {model.Version()}, expected {_VERSION}")
    if not model.SubgraphsLength():
        raise FlatbufferError("no subgraph")
    buffers = [_buffer_bytes(model.Buffers(i), i, len(view)) for i in range(model.BuffersLength())]
    codes = [_operator(model.OperatorCodes(i), i) for i in range(model.OperatorCodesLength())]
    graphs = [
        _Graph(model.Subgraphs(i), f"subgraph {i}", buffers, codes, model.SubgraphsLength())
        for i in range(model.SubgraphsLength())
    ]
    _check_calls([graph.calls for graph in graphs])
    for i in range(model.MetadataLength()):
        _index(model.Metadata(i).Buffer(), len(buffers), f"buffer of metadata {i}")
    _check_signatures(model, graphs)


def _buffer_bytes(buffer: Any, index: int, nbytes: int) -> int:
    """How long a buffer is. Its bytes lie in the flatbuffer, which is verified, or behind it."""
    offset, size = buffer.Offset(), buffer.Size()
    if offset > 1 and offset + size > nbytes:
        raise FlatbufferError(f"buffer {index} lies at bytes {offset} to {offset + size} of {nbytes}")
    return int(size if offset > 1 else buffer.DataLength())


def _operator(code: Any, index: int) -> int:
    builtin = int(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
    if builtin not in _OPERATORS:
        raise FlatbufferError(f"operator code {index} is {builtin}, which TFLite does not have")
    return builtin


def _index(value: int, count: int, what: str) -> int:
    if not 0 <= value < count:
        raise FlatbufferError(f"{what} is {value}, expected 0 to {count - 1}")
    return value


class _Graph:
    """A checked subgraph. inputs, outputs: indices of tensors. calls: subgraphs that its ops run."""

    def __init__(self, graph: Any, what: str, buffers: Sequence[int], codes: Sequence[int], subgraphs: int) -> None:
        self._graph, self._what = graph, what
        self._codes, self._subgraphs = codes, subgraphs
        self.count = graph.TensorsLength()
        self._constants = {i for i in range(self.count) if self._is_constant(graph.Tensors(i), i, buffers)}
        self.inputs = self._indices(graph, "Inputs", what)
        self.outputs = self._indices(graph, "Outputs", what)
        self.calls: set[int] = set()
        self._check_operators()

    def _is_constant(self, tensor: Any, index: int, buffers: Sequence[int]) -> bool:
        """Whether a tensor, which is checked, has its values in the file."""
        what = f"{self._what}, tensor {index}"
        shape, bits = _vector(tensor, "Shape"), _BITS.get(tensor.Type())
        if bits is None:
            raise FlatbufferError(f"{what} has type {tensor.Type()}, which TFLite does not have")
        if len(shape) > _MOST_DIMENSIONS or any(size < 0 for size in shape):
            raise FlatbufferError(f"{what} has shape {shape[: _MOST_DIMENSIONS + 1]}")
        if _vector(tensor, "ShapeSignature") and tensor.ShapeSignatureLength() != len(shape):
            raise FlatbufferError(f"{what} has a shape signature of {tensor.ShapeSignatureLength()} for {shape}")
        wanted = bits
        for size in shape:
            wanted *= size
            if wanted > 8 * _MOST_BYTES:
                raise FlatbufferError(f"{what} has shape {shape}, more than {_MOST_BYTES} bytes")
        if tensor.ExternalBuffer():
            raise FlatbufferError(f"{what} lies in another file")
        found = buffers[_index(tensor.Buffer(), len(buffers), f"buffer of {what}")]
        if found and bits and tensor.Sparsity() is None and found != -(-wanted // 8):
            raise FlatbufferError(f"{what} has {found} bytes, {shape} needs {-(-wanted // 8)}")
        self._check_quantization(tensor.Quantization(), shape, what)
        if found and tensor.IsVariable():
            raise FlatbufferError(f"{what} is a variable and has values in the file")
        return bool(found) or tensor.IsVariable()

    def _check_quantization(self, quantization: Any, shape: Sequence[int], what: str) -> None:
        if quantization is None:
            return
        scales, zeros = quantization.ScaleLength(), quantization.ZeroPointLength()
        axis = quantization.QuantizedDimension()
        if scales > 1 and (not 0 <= axis < len(shape) or scales != shape[axis]):
            raise FlatbufferError(f"{what} of {list(shape)} has {scales} scales along dimension {axis}")
        if zeros not in (0, 1, scales):
            raise FlatbufferError(f"{what} has {zeros} zero points for {scales} scales")
        if quantization.DetailsType() == schema.QuantizationDetails.BlockwiseQuantization:
            blocks = _member(quantization.Details(), schema.BlockwiseQuantization)
            _index(blocks.Scales(), self.count, f"scales of {what}")
            if blocks.ZeroPoints() != _NO_TENSOR:
                _index(blocks.ZeroPoints(), self.count, f"zero points of {what}")
            if blocks.BlockSize() < 1 or not shape or shape[-1] % blocks.BlockSize():
                raise FlatbufferError(f"{what} of {list(shape)} has blocks of {blocks.BlockSize()}")

    def _indices(self, table: Any, field: str, what: str) -> list[int]:
        return [_index(i, self.count, f"one of the {field.lower()} of {what}") for i in _vector(table, field)]

    def _check_operators(self) -> None:
        """Each op reads what there is by then, and writes what nothing else does."""
        known = self._constants | set(self.inputs)
        for position in range(self._graph.OperatorsLength()):
            operator = self._graph.Operators(position)
            what = f"{self._what}, operator {position}"
            _index(operator.OpcodeIndex(), len(self._codes), f"code of {what}")
            for index in _vector(operator, "Inputs"):
                if index != _NO_TENSOR and _index(index, self.count, f"an input of {what}") not in known:
                    if self._has_no_values(index):
                        known.add(index)
                        continue
                    raise FlatbufferError(f"{what} reads tensor {index} before anything writes it")
            self._indices(operator, "Intermediates", what)
            for index in self._indices(operator, "Outputs", what):
                if index in known:
                    raise FlatbufferError(f"{what} writes tensor {index}, which has values by then")
                known.add(index)
            self.calls.update(self._called(operator, what))
        for index in self.outputs:
            if index not in known:
                raise FlatbufferError(f"{self._what} gives tensor {index}, which nothing writes")

    def _has_no_values(self, index: int) -> bool:
        """An empty constant: some dimension of it is 0."""
        return 0 in _vector(self._graph.Tensors(index), "Shape")

    def _called(self, operator: Any, what: str) -> Iterator[int]:
        for union, kind, options in (
            (schema.BuiltinOptions, operator.BuiltinOptionsType(), operator.BuiltinOptions()),
            (schema.BuiltinOptions2, operator.BuiltinOptions2Type(), operator.BuiltinOptions2()),
        ):
            name = next((key for key in _CALLS if getattr(union, key, None) == kind), None)
            if name is not None and options is not None:
                table = _member(options, getattr(schema, name))
                for field in _CALLS[name]:
                    yield _index(getattr(table, field)(), self._subgraphs, f"{field} of {what}")


def _vector(table: Any, field: str) -> list[int]:
    """A vector of whole numbers."""
    values = getattr(table, f"{field}AsNumpy")()
    return [] if isinstance(values, int) else [int(value) for value in values]  # 0 where there is none


def _member(table: Any, kind: Any) -> Any:
    """A union's member as the table that it is."""
    member = kind()
    member.Init(table.Bytes, table.Pos)
    return member


def _check_calls(calls: Sequence[set[int]]) -> None:
    """No subgraph runs itself, through others or not. Takes out what runs nothing that is left, until nothing is."""
    left = dict(enumerate(calls))
    while ready := [index for index, called in left.items() if not called & left.keys()]:
        for index in ready:
            del left[index]
    if left:
        raise FlatbufferError(f"subgraphs {sorted(left)[:8]} run each other without end")


def _check_signatures(model: Any, graphs: Sequence[_Graph]) -> None:
    """Every name leads to an input or output of the signature's subgraph."""
    keys = set()
    for i in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(i)
        key = _text(signature.SignatureKey(), f"name of signature {i}")
        if key in keys:
            raise FlatbufferError(f"two signatures are called {key!r}")
        keys.add(key)
        graph = graphs[_index(signature.SubgraphIndex(), len(graphs), f"subgraph of signature {key!r}")]
        for field, allowed in (("Inputs", graph.inputs), ("Outputs", graph.outputs)):
            names = set()
            for k in range(getattr(signature, f"{field}Length")()):
                entry = getattr(signature, field)(k)
                name = _text(entry.Name(), f"name of one of the {field.lower()} of signature {key!r}")
                if name in names:
                    raise FlatbufferError(f"signature {key!r} has two {field.lower()} called {name!r}")
                names.add(name)
                if entry.TensorIndex() not in allowed:
                    raise FlatbufferError(
                        f"{name!r} of signature {key!r} is tensor {entry.TensorIndex()}, not one of the "
                        f"{field.lower()} of its subgraph"
                    )


def _text(raw: bytes | None, what: str) -> str:
    try:
        return (raw or b"").decode()
    except UnicodeDecodeError:
        raise FlatbufferError(f"the {what} is {raw!r}, which is not UTF-8") from None
