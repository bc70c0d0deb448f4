"""The weights inside a bundle or an ONNX directory as numbers again, by the graph's names.

Only files of this project carry those names. Rows are dequantized when asked for; the files are mapped, not read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from gemma_edge.converter.tensors import TensorSpec
from gemma_edge.runtime.formats import hadamard
from gemma_edge.runtime.formats.encoding import Encoding
from gemma_edge.runtime.formats.litertlm import Bundle, BundleError, SectionKind
from gemma_edge.runtime.formats.onnx_dir import GRAPHS, OnnxDirectory

if TYPE_CHECKING:
    import onnx_ir

Float32 = NDArray[np.float32]

_PLAIN = {
    schema.TensorType.FLOAT32: "fp32", schema.TensorType.FLOAT16: "fp16",
    schema.TensorType.INT8: "int8", schema.TensorType.INT4: "int4", schema.TensorType.INT2: "int2",
}  # fmt: skip
_ONNX_SIGN_BITS = {2: 0xAA, 4: 0x88, 8: 0x80}  # ONNX stores value + 2^(bits - 1), see onnx/data.py
_BLOCK_BYTES = 16 << 20  # of numbers
_ONNX_NAME = re.compile(r"(?P<weight>.+?)(?P<turned>\.hadamard)?(?P<scale>\.scale)?(?:\.rows_(?P<row>\d+))?")


@dataclass(frozen=True)
class Slab:
    """Some rows of a matrix, or a vector as one row.

    data: uint8 [rows, bytes per row]. scales: [rows, groups of columns that share one], None for floats.
    flip: bits that differ from the encoding's in every byte. turned: whether its columns are, see formats/hadamard.py.
    """

    encoding: Encoding  # without blocks: the groups say how many columns share a scale
    columns: int
    data: NDArray[np.uint8]
    scales: NDArray[Any] | None
    flip: int = 0
    turned: bool = False

    def rows(self, first: int, last: int) -> Float32:
        """Rows [first, last), float32 [n, columns]."""
        data = self.data[first:last]
        if self.scales is None:
            values: Float32 = self.encoding.unpack(data.reshape(-1), (len(data), self.columns)).astype(np.float32)
            return values
        if self.encoding.bits == 8:
            values = (data ^ np.uint8(self.flip)).view(np.int8).astype(np.float32)  # [n, columns]
        else:
            values = _byte_values(self.encoding, self.flip)[data].view(np.float32)  # [n, columns]
        groups = values.reshape(len(data), self.scales.shape[1], -1)  # [n, groups, columns / groups]
        groups *= self.scales[first:last].astype(np.float32)[..., None]
        return values


@cache
def _byte_values(encoding: Encoding, flip: int) -> NDArray[Any]:
    """What each byte holds: 256 entries of one, two or four float32 side by side, so that one look-up unpacks them.

    At 960 M values/s on one core of x86-64, where shifting nibbles apart does 260.
    """
    per_byte = 8 // encoding.bits
    data = np.arange(256, dtype=np.uint8) ^ np.uint8(flip)
    entry = {1: np.float32, 2: np.float64, 4: np.complex128}[per_byte]  # of the right width; never used as numbers
    return encoding.unpack(data, (256, per_byte)).astype(np.float32).view(entry).reshape(256)


@dataclass(frozen=True)
class StoredWeights:
    """All weights of one bundle; each is one slab or several, one after the other."""

    slabs: Mapping[str, tuple[Slab, ...]]

    @classmethod
    def of(cls, bundle: Bundle | OnnxDirectory, specs: Mapping[str, TensorSpec]) -> "StoredWeights":
        """What of `specs` is there, under its name. Raises BundleError for a section that is no TFLite model."""
        slabs = _onnx_slabs(bundle, specs) if isinstance(bundle, OnnxDirectory) else _tflite_slabs(bundle, specs)
        found = {}
        for name, spec in specs.items():
            rows = spec.shape[0] if len(spec.shape) == 2 else 1
            parts = tuple(slabs.get(name, ()))
            if sum(len(part.data) for part in parts) == rows and all(p.columns == spec.shape[-1] for p in parts):
                found[name] = parts
        return cls(found)

    @property
    def turned(self) -> frozenset[str]:
        """The names of matrices whose columns are turned."""
        return frozenset(name for name, slabs in self.slabs.items() if slabs[0].turned)

    def __contains__(self, name: str) -> bool:
        return name in self.slabs

    def encoding(self, name: str) -> str:
        """ "int4", or "int4-b32" where 32 columns share a scale."""
        slab = self.slabs[name][0]
        groups = 1 if slab.scales is None else slab.scales.shape[1]
        return slab.encoding.name + (f"-b{slab.columns // groups}" if groups > 1 else "")

    def rows(self, name: str, first: int, count: int) -> Float32:
        """Rows [first, first + count) of a matrix, float32 [count, K]."""
        parts = []
        for slab in self.slabs[name]:
            last = min(first + count, len(slab.data))
            if first < last:
                parts.append(slab.rows(first, last))
                first, count = 0, count - len(parts[-1])
            else:
                first -= len(slab.data)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read(self, spec: TensorSpec, start: int, stop: int | None) -> Iterator[tuple[int, Float32]]:
        """evaluate_machine.Read: the bundle's values alone."""
        if len(spec.shape) == 1:
            yield 0, self.rows(spec.name, 0, 1)[0]
            return
        stop = spec.shape[0] if stop is None else stop
        step = max(1, _BLOCK_BYTES // (4 * spec.shape[1]))
        for first in range(start, stop, step):
            yield first, self.rows(spec.name, first, min(step, stop - first))

    def substitute(self, name: str, first: int, rows: Float32) -> Float32:
        """evaluate.Substitute: the bundle's values in the place of the checkpoint's."""
        if rows.ndim == 1:
            vector: Float32 = self.rows(name, 0, 1)[0]
            return vector
        return self.rows(name, first, len(rows))


def _tflite_slabs(bundle: Bundle, specs: Mapping[str, TensorSpec]) -> dict[str, list[Slab]]:
    slabs: dict[str, list[tuple[int, Slab]]] = {}
    for section in bundle.sections:
        if section.kind is SectionKind.TFLITE_MODEL:
            view = bundle.view(section)
            try:
                model, content = schema.Model.GetRootAs(view, 0), np.frombuffer(view, np.uint8)
                for name, offset, slab in _tensors(model, content, specs):
                    slabs.setdefault(name, []).append((offset, slab))
            except Exception as error:  # generated accessors index a corrupt buffer blindly
                raise BundleError(
                    f"{bundle.path}: its {section.name} section is corrupt; copy the file again"
                ) from error
    return {name: [slab for _, slab in sorted(parts, key=lambda part: part[0])] for name, parts in slabs.items()}


def _tensors(
    model: Any, content: NDArray[np.uint8], specs: Mapping[str, TensorSpec]
) -> Iterator[tuple[str, int, Slab]]:
    """(name, offset, slab) of every weight behind the flatbuffer, each buffer once; scales come with their weight."""
    seen = set()
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        names = [graph.Tensors(k).Name().decode() for k in range(graph.TensorsLength())]
        places = {name: k for k, name in reversed([*enumerate(names)])}
        for k, label in enumerate(names):
            name = label.removesuffix(hadamard.SUFFIX)
            if name not in specs:
                continue
            tensor = graph.Tensors(k)
            buffer = model.Buffers(tensor.Buffer())
            if not buffer.Size() or tensor.Buffer() in seen or tensor.Type() not in _PLAIN:
                continue
            seen.add(tensor.Buffer())
            *rows, columns = tensor.ShapeAsNumpy().tolist()
            data = content[buffer.Offset() : buffer.Offset() + buffer.Size()].reshape(rows[0] if rows else 1, -1)
            encoding = Encoding.parse(_PLAIN[tensor.Type()])
            scales = (
                None
                if encoding.kind == "float"
                else _scales(model, graph, tensor, places.get(f"{label}.scale"), content)
            )
            yield name, int(buffer.Offset()), Slab(encoding, columns, data, scales, turned=label != name)


def _scales(model: Any, graph: Any, tensor: Any, table: int | None, content: NDArray[np.uint8]) -> NDArray[Any]:
    """table: a table's scales of blocks are a table themselves, a tensor of its own."""
    quantization = tensor.Quantization()
    if quantization.DetailsType() == schema.QuantizationDetails.BlockwiseQuantization:
        details = schema.BlockwiseQuantization()
        details.Init(quantization.Details().Bytes, quantization.Details().Pos)
        scales = graph.Tensors(details.Scales())
    elif table is not None:
        scales = graph.Tensors(table)
    else:
        per_row: NDArray[Any] = np.array(quantization.ScaleAsNumpy(), np.float32)[:, None]
        return per_row
    buffer = model.Buffers(scales.Buffer())
    stored = content[buffer.Offset() : buffer.Offset() + buffer.Size()]
    return stored.view("<f2").reshape(scales.ShapeAsNumpy().tolist())


def _onnx_slabs(directory: OnnxDirectory, specs: Mapping[str, TensorSpec]) -> dict[str, list[Slab]]:
    parts: dict[tuple[str, int], dict[bool, NDArray[Any]]] = {}  # by (weight, first row): data and scales
    turned: set[str] = set()
    for model in directory.graphs.values():
        for name, tensor in _external(model):
            matched = _ONNX_NAME.fullmatch(name)
            assert matched is not None
            content = np.memmap(
                directory.path / GRAPHS / str(tensor.location), np.uint8, "r", tensor.offset or 0, (tensor.length or 0,)
            )
            key = matched["weight"], int(matched["row"] or 0)
            if matched["turned"]:
                turned.add(matched["weight"])
            if matched["weight"] in specs:
                rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
                parts.setdefault(key, {})[bool(matched["scale"])] = content.reshape(rows, -1)
    slabs: dict[str, list[Slab]] = {}
    for (name, _), part in sorted(parts.items()):
        columns, data, scales = specs[name].shape[-1], part[False], part.get(True)
        bits = 8 * data.shape[1] // columns
        kind = f"fp{bits}" if scales is None else f"int{bits}"
        scales = None if scales is None else np.ascontiguousarray(scales).view("<f4")
        flip = 0 if scales is None else _ONNX_SIGN_BITS[bits]
        slabs.setdefault(name, []).append(Slab(Encoding.parse(kind), columns, data, scales, flip, name in turned))
    return slabs


def _external(model: "onnx_ir.Model") -> Iterator[tuple[str, Any]]:
    import onnx_ir

    for name, value in model.graph.initializers.items():
        if isinstance(value.const_value, onnx_ir.ExternalTensor):
            yield str(name), value.const_value
