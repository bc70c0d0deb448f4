"""One .tflite file: buffers, subgraphs, signatures, and weights that lie behind the flatbuffer root.

Weights are known by name and size only. They are laid out 64-byte aligned after the root, found through
`Buffer.offset/size` (schema.fbs: "buffers may be stored outside the flatbuffer", which is also what lets a file pass
2 GB), and streamed there by the caller. Per-row scales are the exception: TFLite keeps them inside the flatbuffer, so
the root is packed twice, once with zeros to know its size and once when all scales have been measured.

A weight may lie in another file, whose section of a bundle is the next one: this file then goes on into that section.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from gemma_edge.converter.quantize.quantize import Quantized
from gemma_edge.converter.quantize.stored import StoredWeight, Write
from gemma_edge.runtime.formats.litertlm import section_begin

ALIGNMENT = 64  # bytes; XNNPACK and the LiteRT loader want at least 16
_UNPLACED = 1 << 40  # any non-zero offset: a zero would be left out and change the root's size

Tensors = schema.TensorType
Opcode = schema.BuiltinOperator

_NUMPY: dict[int, "np.dtype[Any]"] = {
    Tensors.FLOAT32: np.dtype("<f4"),
    Tensors.FLOAT16: np.dtype("<f2"),
    Tensors.INT32: np.dtype("<i4"),
}
_TENSOR_TYPES = {"fp32": Tensors.FLOAT32, "fp16": Tensors.FLOAT16, "int8": Tensors.INT8, "int2": Tensors.INT2}
# Kernel versions: FULLY_CONNECTED 5 has keep_num_dims with int4 weights, EMBEDDING_LOOKUP 4 int4 per row.
_OP_VERSION = {Opcode.FULLY_CONNECTED: 5, Opcode.EMBEDDING_LOOKUP: 4}


class Phase(Enum):
    """Where an op runs: integer work before, and cache writes after, the one partition XNNPACK takes."""

    PROLOGUE = 0
    BODY = 1
    EPILOGUE = 2


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of one subgraph."""

    index: int
    shape: tuple[int, ...]
    type: int
    scale: float = 0.0  # of int8 activations


@dataclass
class TfliteWeight:
    """Where a weight's bytes go, relative to the start of the file, and its per-row scales once measured."""

    weight: StoredWeight
    data_offset: int = 0
    scale_offset: int = 0  # blockwise scales, float16 [N, K / block]
    row_scales: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def tensor_type(self) -> int:
        """TFLite's element type."""
        return int(_TENSOR_TYPES.get(self.weight.encoding.name, Tensors.INT4))  # blockwise too

    @property
    def end(self) -> int:
        """The first byte after it, scales included."""
        encoding, shape = self.weight.encoding, self.weight.shape
        data_end = self.data_offset + encoding.data_bytes(shape)
        return self.scale_offset + encoding.scale_bytes(shape) if encoding.block else data_end

    def put(self, row: int, rows: Quantized, write: Write) -> None:
        """Write rows [row, row + n); see Placed. Per-row scales stay here until the root is packed."""
        write(rows.data, self.data_offset + row * self.weight.row_bytes)
        if self.weight.encoding.block:
            assert rows.scales is not None
            write(rows.scales, self.scale_offset + row * rows.scales[0].nbytes)
        elif rows.scales is not None:
            self.row_scales[row : row + len(rows.scales)] = rows.scales


class TfliteFile:
    """Collects subgraphs, then lays the file out; `root()` is the flatbuffer, `weights` say what to stream where.

    next_file: the one in the next section, complete, whose weights are read in place. reach: how many bytes of that
    section belong to this file as well, once it is laid out.
    """

    def __init__(self, description: str, next_file: "TfliteFile | None" = None) -> None:
        self._description = description
        self._next = {} if next_file is None else next_file.weights
        self.reach = 0
        self._buffers = [schema.BufferT()]  # buffer 0 is empty by convention
        self._constants: dict[bytes, int] = {}
        self._regions: list[tuple[schema.BufferT, TfliteWeight, bool, int]] = []  # buffer, weight, scales?, first byte
        self._opcodes: dict[int, int] = {}
        self._signatures: list[Any] = []
        self._subgraphs: list[Any] = []
        self._slices: dict[tuple[str, bool, int], int] = {}
        self.weights: dict[str, TfliteWeight] = {}

    def constant(self, values: NDArray[Any]) -> int:
        """Buffer index of a small constant; equal bytes share one buffer."""
        raw = values.tobytes()
        if raw not in self._constants:
            self._constants[raw] = len(self._buffers)
            self._buffers.append(schema.BufferT(data=np.frombuffer(raw, np.uint8)))
        return self._constants[raw]

    def place(self, weight: StoredWeight) -> TfliteWeight:
        """Reserve the weight's bytes; the same name again is the same bytes."""
        if weight.name not in self.weights:
            per_row = weight.encoding.kind == "int" and not weight.encoding.block
            scales = np.zeros(weight.shape[0] if per_row else 0, np.float32)
            if weight.name in self._next:
                scales = self._next[weight.name].row_scales
            self.weights[weight.name] = TfliteWeight(weight, row_scales=scales)
        placed = self.weights[weight.name]
        assert placed.weight == weight, weight.name
        return placed

    def region(self, placed: TfliteWeight, first_byte: int, nbytes: int, scales: bool = False) -> int:
        """Buffer index of a byte range of a placed weight (or of its blockwise scales)."""
        key = (placed.weight.name, scales, first_byte)
        if key not in self._slices:
            buffer = schema.BufferT(offset=_UNPLACED, size=nbytes)
            self._slices[key] = len(self._buffers)
            self._buffers.append(buffer)
            self._regions.append((buffer, placed, scales, first_byte))
        return self._slices[key]

    def opcode(self, code: int) -> int:
        """Index of an operator code."""
        return self._opcodes.setdefault(code, len(self._opcodes))

    def add_subgraph(
        self, name: str, tensors: list[Any], ops: list[Any], inputs: dict[str, Tensor], outputs: dict[str, Tensor]
    ) -> None:
        """Add one subgraph and its signature of the same name."""

        def tensor_map(named: dict[str, Tensor]) -> list[Any]:
            return [schema.TensorMapT(name=key.encode(), tensorIndex=value.index) for key, value in named.items()]

        def indices(named: dict[str, Tensor]) -> NDArray[np.int32]:
            return np.array([value.index for value in named.values()], np.int32)

        signature = schema.SignatureDefT(
            signatureKey=name.encode(),
            subgraphIndex=len(self._subgraphs),
            inputs=tensor_map(inputs),
            outputs=tensor_map(outputs),
        )
        self._signatures.append(signature)
        self._subgraphs.append(
            schema.SubGraphT(
                tensors=tensors, inputs=indices(inputs), outputs=indices(outputs), operators=ops, name=name.encode()
            )
        )

    @property
    def own_weights(self) -> list[TfliteWeight]:
        """Those that are streamed into this file, and not into the next one."""
        return [placed for name, placed in self.weights.items() if name not in self._next]

    def lay_out(self) -> int:
        """Give every weight its place; returns the size of the file in bytes, without what lies in the next section.

        The next file is laid out by then.
        """
        end = len(self.root())
        for placed in self.own_weights:
            weight = placed.weight
            placed.data_offset = _aligned(end)
            placed.scale_offset = _aligned(placed.data_offset + weight.encoding.data_bytes(weight.shape))
            end = placed.end
        next_begin = section_begin(end)
        for name in self.weights.keys() & self._next.keys():
            placed, there = self.weights[name], self._next[name]
            placed.data_offset, placed.scale_offset = next_begin + there.data_offset, next_begin + there.scale_offset
            self.reach = max(self.reach, there.end)
        for buffer, placed, scales, first_byte in self._regions:
            buffer.offset = (placed.scale_offset if scales else placed.data_offset) + first_byte
        return end

    def root(self) -> bytes:
        """The flatbuffer, with the scales and offsets known so far; its size never changes once all is added."""
        codes = [
            schema.OperatorCodeT(
                deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=_OP_VERSION.get(code, 1)
            )
            for code in self._opcodes
        ]
        # TFLite's converter reserves 16 bytes: tensorflow/lite/tools/versioning/runtime_version.cc.
        version = schema.BufferT(data=np.frombuffer(b"2.20.0".ljust(16, b"\0"), np.uint8))
        model = schema.ModelT(
            version=3,
            operatorCodes=codes,
            subgraphs=self._subgraphs,
            buffers=[*self._buffers, version],
            signatureDefs=self._signatures,
            description=self._description.encode(),
            metadata=[schema.MetadataT(name=b"min_runtime_version", buffer=len(self._buffers))],
        )
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def numpy_type(tensor_type: int) -> "np.dtype[Any]":
    """The numpy type of a constant's TFLite type."""
    return _NUMPY[tensor_type]
