"""Embedding rows straight from a bundle's embedder section, without running it.

The section is a TFLite model that looks one row up. Its table stays in the file: a token needs one row of it (E2B:
2 KiB, per layer 4 KiB out of 1 GiB), see executors/rows.py. The result is bit-equal to running the section.
"""

import mmap
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.litert.sections import check_mapped
from gemma_edge.runtime.executors.rows import RowsInFile
from gemma_edge.runtime.formats import hadamard
from gemma_edge.runtime.formats.encoding import FACTOR, RESTS, Encoding, with_rests
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.flatbuffer import Table, root_of
from gemma_edge.runtime.formats.tflite_model import Operator, TensorType, builtin_code

_FLOATS = {TensorType.FLOAT32: np.float32, TensorType.FLOAT16: np.float16}
_INTEGERS = (TensorType.INT8, TensorType.INT4)
_LOOKUP_OPS = {
    Operator.EMBEDDING_LOOKUP,
    Operator.RESHAPE,
    # An id outside the table becomes 0.
    Operator.LESS,
    Operator.MAXIMUM,
    Operator.SELECT_V2,
    # Tables and scales of float16 are looked up by these two.
    Operator.GATHER,
    Operator.CAST,
}
_SCALES = b".scale"  # ends the name of a table of scales, which begins with the name of its table

# Both values of an int4 byte, low nibble first, as two int8 in one uint16: one table look-up unpacks two columns.
_NIBBLES = np.array([[(byte << 4) & 0xF0, byte & 0xF0] for byte in range(256)], np.uint8).view(np.int8) >> 4
_REST = Encoding.parse("head+3")
_REST_OPS = {
    # Three bits more of each value, see formats/encoding.py.
    *(Operator.FLOOR, Operator.SLICE, Operator.CONCATENATION),
    *(Operator.ADD, Operator.SUB, Operator.MINIMUM),
}
_INT4_PAIRS = np.ascontiguousarray(_NIBBLES).view(np.uint16).reshape(256)


class EmbeddingTable:
    """A table of rows in a file: `rows` x `width`, each row int4, int8, fp16 or fp32; of int4, with three bits more.

    Raises:
        BundleMismatchError: the section is not a plain look-up in such a table.
    """

    def __init__(self, section: FileRange) -> None:
        start = section.offset % mmap.ALLOCATIONGRANULARITY
        with section.path.open("rb") as file:
            mapped = mmap.mmap(
                file.fileno(), section.nbytes + start, access=mmap.ACCESS_READ, offset=section.offset - start
            )
        view = memoryview(mapped)[start:]
        check_mapped(view, section)
        try:
            self._parse(view, section)
        except BundleMismatchError:
            raise
        except Exception as error:  # a sound model, but tensors without names, or scales for another table
            raise BundleMismatchError(
                f"{section.path}: the embedder section at {section.offset} is no table of rows ({error}); "
                "convert the checkpoint with gemma-edge"
            ) from error

    def _parse(self, view: memoryview, section: FileRange) -> None:
        model = root_of(view, "Model")
        graph = _only_graph(model, section)
        tensor = _table_tensor(graph, section)
        self._layers: list[int] | None = None
        self._layer_count = 1
        self._is_turned = tensor.name.endswith(hadamard.SUFFIX.encode())
        self.rows: int
        self.width: int
        self.rows, self.width = tensor.shape
        self._is_int4 = tensor.type == TensorType.INT4
        dtype = np.dtype(_FLOATS.get(tensor.type, np.uint8 if self._is_int4 else np.int8))
        columns = self.width // 2 if self._is_int4 else self.width
        found = _values(model.buffers[tensor.buffer], view)
        expected = self.rows * columns * dtype.itemsize
        if len(found) != expected:  # rows of an odd number of int4 values, which share bytes
            raise BundleMismatchError(
                f"{section.path}: embedding table has {len(found)} bytes, {self.rows} rows of {self.width} need "
                f"{expected}; convert the checkpoint again"
            )
        self._table = _in_file(found, view, section, (self.rows, columns), dtype)
        self._scales: RowsInFile | NDArray[np.float32] | None
        blocks = _named(graph, tensor.name + _SCALES)
        if blocks is None:
            self._scales = _row_scales(tensor, self.rows, section)
        else:
            found = _values(model.buffers[blocks.buffer], view)
            self._scales = _in_file(found, view, section, (self.rows, _columns(found, self.rows, 2)), np.dtype("<f2"))
        base = tensor.name.removesuffix(hadamard.SUFFIX.encode())
        self._rests: RowsInFile | None = None
        if (rests := _named(graph, base + RESTS.encode())) is not None:
            if not self._is_int4 or blocks is None:
                raise ValueError("rests without int4 in blocks")
            shape = self.rows, _REST.data_bytes((1, self.width))
            found = _values(model.buffers[rests.buffer], view)
            if len(found) != shape[0] * shape[1]:
                raise ValueError(f"{len(found)} bytes of rests for {self.rows} rows of {self.width}")
            self._rests = _in_file(found, view, section, shape, np.dtype(np.uint8))
        self._factor: np.float32 | None = None
        if (factor := _named(graph, base + FACTOR.encode())) is not None:
            [self._factor] = np.frombuffer(_values(model.buffers[factor.buffer], view), "<f4")

    def of_layers(self, layers: Sequence[int], count: int) -> "EmbeddingTable":
        """The same table, of whose rows, which are `count` layers long, only these layers are used."""
        part = copy(self)
        part._layers, part._layer_count = list(layers), count
        part.width = self.width // count * len(layers)
        return part

    def lookup(self, token_ids: Sequence[int], out: NDArray[np.float32]) -> None:
        """Write the rows of `token_ids` to `out`, float32 [len(token_ids), width].

        An id outside the table gives row 0, as Gemma 3n does for the per-layer rows of image and audio tokens
        (transformers, Gemma3nModel.forward: per_layer_inputs_mask).
        """
        ids = np.asarray(token_ids, np.int64)
        ids = np.where((ids >= 0) & (ids < self.rows), ids, 0)
        values = self._of(self._table, ids)
        if self._is_int4:
            values = _INT4_PAIRS[values].view(np.int8)  # [n, width/2] bytes -> [n, width]
        if self._rests is not None:
            values = with_rests(values, _REST.unpack(self._rests[ids], values.shape))
        if self._scales is None:
            out[...] = values
        else:
            scales = self._of(self._scales, ids).astype(np.float32)
            groups = (*scales.shape, -1)  # [n, blocks, block]
            np.multiply(values.reshape(groups), scales[..., None], out=out.reshape(groups))
        if self._factor is not None:
            out *= self._factor
        if self._is_turned:
            out[...] = hadamard.turn(out)

    def _of(self, table: RowsInFile | NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[Any]:
        """Rows [n, columns] of a table, of its layers those that are wanted."""
        rows: NDArray[Any] = table[ids]
        if self._layers is None or table.shape[1] == 1:  # one scale for all layers
            return rows
        return rows.reshape(len(ids), self._layer_count, -1)[:, self._layers].reshape(len(ids), -1)


def _only_graph(model: Table, section: FileRange) -> Table:
    codes = {builtin_code(code) for code in model.operator_codes}
    # A product is scales with their integers, or columns turned back; else what a look-up alone would leave out.
    allowed = set(_LOOKUP_OPS)
    if _has_name(model, _SCALES) or _has_name(model, FACTOR.encode()):
        allowed.add(Operator.MUL)
    if _has_name(model, RESTS.encode()):
        allowed |= _REST_OPS
    if _has_name(model, hadamard.SUFFIX.encode()):
        allowed.add(Operator.FULLY_CONNECTED)
    if not model.subgraphs or not codes <= allowed:
        raise BundleMismatchError(
            f"{section.path}: the embedder section computes more than a row look-up (operators {sorted(codes)}); "
            "convert the checkpoint with gemma-edge"
        )
    graph: Table = model.subgraphs[0]
    return graph


def _has_name(model: Table, ending: bytes) -> bool:
    return any(tensor.name.endswith(ending) for graph in model.subgraphs[:1] for tensor in graph.tensors)


def _table_tensor(graph: Table, section: FileRange) -> Table:
    tables: list[Table] = [
        tensor
        for tensor in graph.tensors
        if len(tensor.shape) == 2 and (tensor.type in _FLOATS or tensor.type in _INTEGERS) and tensor.buffer
    ]
    beside = (_SCALES, RESTS.encode())
    tables = [tensor for tensor in tables if tensor.shape[0] > 1 and not tensor.name.endswith(beside)]
    if len(tables) > 1:  # the small matrix that turns columns is one as well
        tables = [tensor for tensor in tables if tensor.name.endswith(hadamard.SUFFIX.encode())]
    if len(tables) != 1:
        raise BundleMismatchError(
            f"{section.path}: found {len(tables)} embedding tables of int4, int8, fp16 or fp32, expected 1; "
            "convert the checkpoint with gemma-edge"
        )
    return tables[0]


def _values(buffer: Table, view: memoryview) -> memoryview:
    """The bytes of a buffer, which lie behind the flatbuffer or inside it."""
    if buffer.offset > 1:
        return view[buffer.offset : buffer.offset + buffer.size]
    data: memoryview = buffer.data
    return data


def _columns(values: memoryview, rows: int, itemsize: int) -> int:
    """Raises ValueError: these bytes are not so many rows of anything."""
    columns, rest = divmod(values.nbytes, rows * itemsize)
    if rest or not columns:
        raise ValueError(f"{values.nbytes} bytes of scales for {rows} rows")
    return columns


def _in_file(
    values: memoryview, view: memoryview, section: FileRange, shape: tuple[int, int], dtype: "np.dtype[Any]"
) -> RowsInFile:
    """Where a buffer lies in the file whose section `view` is; nothing of the view is kept."""
    begin = np.frombuffer(values, np.uint8).ctypes.data - np.frombuffer(view, np.uint8).ctypes.data
    return RowsInFile(section.path, section.offset + begin, shape, dtype)


def _named(graph: Table, name: bytes) -> Table | None:
    return next((tensor for tensor in graph.tensors if tensor.name == name), None)


def _row_scales(tensor: Table, rows: int, section: FileRange) -> NDArray[np.float32] | None:
    """One scale per row, [rows, 1], or None for a table of floats."""
    if tensor.type in _FLOATS:
        return None
    quantization = tensor.quantization
    scales = () if quantization is None else quantization.scale
    if len(scales) != rows:
        raise BundleMismatchError(
            f"{section.path}: embedding table of {rows} rows has {len(scales)} scales, expected one per row; "
            "convert with a per-row encoding for embedding and ple"
        )
    return np.array(scales, np.float32)[:, None]  # a copy, which keeps no map open
