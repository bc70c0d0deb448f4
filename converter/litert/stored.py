"""The weights inside a bundle, by the graph's names, as `file.py` has placed them. Mapped, not read."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from gemma_edge.converter.quantize.packed_rows import PackedRows
from gemma_edge.converter.tensors import TensorSpec
from gemma_edge.runtime.formats import hadamard
from gemma_edge.runtime.formats.encoding import FACTOR, RESTS, Encoding
from gemma_edge.runtime.formats.litertlm import Bundle, BundleError, SectionKind

_PLAIN = {
    schema.TensorType.FLOAT32: "fp32", schema.TensorType.FLOAT16: "fp16",
    schema.TensorType.INT8: "int8", schema.TensorType.INT4: "int4", schema.TensorType.INT2: "int2",
}  # fmt: skip


def stored_rows(path: Path, specs: Mapping[str, TensorSpec]) -> dict[str, list[PackedRows]]:
    """Those of `specs`. Raises BundleError: no bundle, or a section that is no TFLite model."""
    bundle = Bundle.open(path)
    found: dict[str, list[tuple[int, PackedRows]]] = {}
    for section in bundle.sections:
        if section.kind is SectionKind.TFLITE_MODEL:
            view = bundle.view(section)
            try:
                model, content = schema.Model.GetRootAs(view, 0), np.frombuffer(view, np.uint8)
                for name, offset, rows in _tensors(model, content, specs):
                    found.setdefault(name, []).append((offset, rows))
            except Exception as error:  # generated accessors index a corrupt buffer blindly
                raise BundleError(f"{path}: its {section.name} section is corrupt; copy the file again") from error
    return {name: [rows for _, rows in sorted(parts, key=lambda part: part[0])] for name, parts in found.items()}


def _tensors(
    model: Any, content: NDArray[np.uint8], specs: Mapping[str, TensorSpec]
) -> Iterator[tuple[str, int, PackedRows]]:
    """(name, offset, rows) of every weight behind the flatbuffer, each buffer once; scales come with their weight."""
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
            rests, factor = places.get(name + RESTS), places.get(name + FACTOR)
            yield name, int(buffer.Offset()), PackedRows(
                encoding, columns, data, scales, turned=label != name,
                rests=None if rests is None else _buffer(model, graph.Tensors(rests), content).reshape(len(data), -1),
                factor=1.0 if factor is None else _buffer(model, graph.Tensors(factor), content).view("<f4").item(),
            )  # fmt: skip


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
    return _buffer(model, scales, content).view("<f2").reshape(scales.ShapeAsNumpy().tolist())


def _buffer(model: Any, tensor: Any, content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The bytes of a tensor, which lie behind the flatbuffer or inside it."""
    buffer = model.Buffers(tensor.Buffer())
    if not buffer.Size():
        return np.frombuffer(buffer.DataAsNumpy(), np.uint8)
    return content[buffer.Offset() : buffer.Offset() + buffer.Size()]
