"""Embedding rows straight from a bundle's embedder section, without running it.

The section is a TFLite model that looks one row up. Its table is mapped, not loaded: per token the embedder reads one
row (E2B: 2 KiB, per layer 4 KiB out of 1 GiB), so MADV_RANDOM keeps the kernel from reading ahead and the page cache
small (36 MB instead of 142 after 2000 rows). The result is bit-equal to running the section.
"""

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.litert.sections import check_mapped
from gemma_edge.runtime.formats import hadamard
from gemma_edge.runtime.formats.file_range import FileRange

_FLOATS = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16}
_INTEGERS = (schema.TensorType.INT8, schema.TensorType.INT4)
_LOOKUP_OPS = {
    schema.BuiltinOperator.EMBEDDING_LOOKUP,
    schema.BuiltinOperator.RESHAPE,
    # An id outside the table becomes 0.
    schema.BuiltinOperator.LESS,
    schema.BuiltinOperator.MAXIMUM,
    schema.BuiltinOperator.SELECT_V2,
    # Tables and scales of float16 are looked up by these two.
    schema.BuiltinOperator.GATHER,
    schema.BuiltinOperator.CAST,
}
_SCALES = b".scale"  # ends the name of a table of scales, which begins with the name of its table

# Both values of an int4 byte, low nibble first, as two int8 in one uint16: one table look-up unpacks two columns.
_NIBBLES = np.array([[(byte << 4) & 0xF0, byte & 0xF0] for byte in range(256)], np.uint8).view(np.int8) >> 4
_INT4_PAIRS = np.ascontiguousarray(_NIBBLES).view(np.uint16).reshape(256)


class EmbeddingTable:
    """A mapped table of rows: `rows` x `width`, each row int4, int8, fp16 or fp32.

    Raises:
        BundleMismatchError: the section is not a plain look-up in such a table.
    """

    def __init__(self, section: FileRange) -> None:
        start = section.offset % mmap.ALLOCATIONGRANULARITY
        with section.path.open("rb") as file:
            mapped = mmap.mmap(
                file.fileno(), section.nbytes + start, access=mmap.ACCESS_READ, offset=section.offset - start
            )
        mapped.madvise(mmap.MADV_RANDOM)
        check_mapped(memoryview(mapped)[start:], section)
        try:
            self._parse(mapped, start, section)
        except BundleMismatchError:
            raise
        except Exception as error:  # a sound model, but tensors without names, or scales for another table
            raise BundleMismatchError(
                f"{section.path}: the embedder section at {section.offset} is no table of rows ({error}); "
                "convert the checkpoint with gemma-edge"
            ) from error

    def _parse(self, mapped: mmap.mmap, start: int, section: FileRange) -> None:
        model = schema.Model.GetRootAs(mapped, start)
        graph = _only_graph(model, section)
        tensor = _table_tensor(graph, section)
        self._is_turned = tensor.Name().endswith(hadamard.SUFFIX.encode())
        self.rows, self.width = (int(size) for size in tensor.ShapeAsNumpy())
        self._is_int4 = tensor.Type() == schema.TensorType.INT4
        dtype = np.dtype(_FLOATS.get(tensor.Type(), np.uint8 if self._is_int4 else np.int8))
        columns = self.width // 2 if self._is_int4 else self.width
        offset, found = _buffer_span(model.Buffers(tensor.Buffer()), mapped, start)
        expected = self.rows * columns * dtype.itemsize
        if found != expected:  # rows of an odd number of int4 values, which share bytes
            raise BundleMismatchError(
                f"{section.path}: embedding table has {found} bytes, {self.rows} rows of {self.width} need {expected}; "
                "convert the checkpoint again"
            )
        self._table = np.frombuffer(mapped, dtype, self.rows * columns, offset).reshape(self.rows, columns)
        blocks = _named(graph, tensor.Name() + _SCALES)
        if blocks is None:
            self._scales = _row_scales(tensor, self.rows, section)
        else:
            offset, found = _buffer_span(model.Buffers(blocks.Buffer()), mapped, start)
            self._scales = np.frombuffer(mapped, "<f2", found // 2, offset).reshape(self.rows, -1)

    def lookup(self, token_ids: Sequence[int], out: NDArray[np.float32]) -> None:
        """Write the rows of `token_ids` to `out`, float32 [len(token_ids), width].

        An id outside the table gives row 0, as Gemma 3n does for the per-layer rows of image and audio tokens
        (transformers, Gemma3nModel.forward: per_layer_inputs_mask).
        """
        ids = np.asarray(token_ids, np.int64)
        ids = np.where((ids >= 0) & (ids < self.rows), ids, 0)
        values: NDArray[Any] = self._table[ids]
        if self._is_int4:
            values = _INT4_PAIRS[values].view(np.int8)  # [n, width/2] bytes -> [n, width]
        if self._scales is None:
            out[...] = values
        else:
            scales = self._scales[ids].astype(np.float32)
            groups = (*scales.shape, -1)  # [n, blocks, block]
            np.multiply(values.reshape(groups), scales[..., None], out=out.reshape(groups))
        if self._is_turned:
            out[...] = hadamard.turn(out)


def _only_graph(model: Any, section: FileRange) -> Any:
    codes = {_builtin_code(model.OperatorCodes(i)) for i in range(model.OperatorCodesLength())}
    # A product is scales with their integers, or columns turned back; else what a look-up alone would leave out.
    allowed = set(_LOOKUP_OPS)
    if _has_name(model, _SCALES):
        allowed.add(schema.BuiltinOperator.MUL)
    if _has_name(model, hadamard.SUFFIX.encode()):
        allowed.add(schema.BuiltinOperator.FULLY_CONNECTED)
    if model.SubgraphsLength() < 1 or not codes <= allowed:
        raise BundleMismatchError(
            f"{section.path}: the embedder section computes more than a row look-up (operators {sorted(codes)}); "
            "convert the checkpoint with gemma-edge"
        )
    return model.Subgraphs(0)


def _has_name(model: Any, ending: bytes) -> bool:
    graphs = [model.Subgraphs(i) for i in range(min(1, model.SubgraphsLength()))]
    return any(graph.Tensors(i).Name().endswith(ending) for graph in graphs for i in range(graph.TensorsLength()))


def _builtin_code(operator_code: Any) -> int:
    # Codes above 127 do not fit the deprecated byte field (tflite schema, OperatorCode).
    return int(max(operator_code.BuiltinCode(), operator_code.DeprecatedBuiltinCode()))


def _table_tensor(graph: Any, section: FileRange) -> Any:
    tables = [
        tensor
        for tensor in (graph.Tensors(i) for i in range(graph.TensorsLength()))
        if tensor.ShapeLength() == 2 and (tensor.Type() in _FLOATS or tensor.Type() in _INTEGERS) and tensor.Buffer()
    ]
    tables = [tensor for tensor in tables if tensor.Shape(0) > 1 and not tensor.Name().endswith(_SCALES)]
    if len(tables) > 1:  # the small matrix that turns columns is one as well
        tables = [tensor for tensor in tables if tensor.Name().endswith(hadamard.SUFFIX.encode())]
    if len(tables) != 1:
        raise BundleMismatchError(
            f"{section.path}: found {len(tables)} embedding tables of int4, int8, fp16 or fp32, expected 1; "
            "convert the checkpoint with gemma-edge"
        )
    return tables[0]


def _buffer_span(buffer: Any, mapped: mmap.mmap, start: int) -> tuple[int, int]:
    """(offset in the mapping, bytes) of a buffer that lies behind the flatbuffer or inside it."""
    if buffer.Offset() > 1:
        return start + int(buffer.Offset()), int(buffer.Size())
    data = buffer.DataAsNumpy()
    if isinstance(data, int):  # flatbuffers returns 0 for an absent vector
        return start, 0
    base = np.frombuffer(mapped, np.uint8).ctypes.data
    return int(data.ctypes.data - base), int(data.nbytes)


def _named(graph: Any, name: bytes) -> Any | None:
    tensors = (graph.Tensors(i) for i in range(graph.TensorsLength()))
    return next((tensor for tensor in tensors if tensor.Name() == name), None)


def _row_scales(tensor: Any, rows: int, section: FileRange) -> NDArray[np.float32] | None:
    """One scale per row, [rows, 1], or None for a table of floats."""
    if tensor.Type() in _FLOATS:
        return None
    quantization = tensor.Quantization()
    scales = np.float32(0) if quantization is None else quantization.ScaleAsNumpy()
    if np.size(scales) != rows or np.ndim(scales) != 1:
        raise BundleMismatchError(
            f"{section.path}: embedding table of {rows} rows has {np.size(scales)} scales, expected one per row; "
            "convert with a per-row encoding for embedding and ple"
        )
    return np.asarray(scales, np.float32)[:, None]
