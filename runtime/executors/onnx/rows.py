"""Embedding rows straight from the data file of an ONNX embedder, without running it.

As litert/tables.py does for TFLite: only the rows that are used are read. The result is bit-equal to running the graph.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.rows import RowsInFile
from gemma_edge.runtime.formats import hadamard
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.onnx_tables import scales_of, table_bits, table_look_ups

_VIEWS = ("Reshape", "Cast", "MatMul", "Mul", "Sub")  # between a look-up and its output, first input to output
# Both values of an int4 byte, low nibble first, less the zero point 8, as two int8 in one uint16.
_NIBBLES = np.array([[(byte & 15) - 8, (byte >> 4) - 8] for byte in range(256)], np.int8)
_INT4_PAIRS = np.ascontiguousarray(_NIBBLES).view(np.uint16).reshape(256)


class OnnxTable:
    """The table behind one output of an embedder graph: `rows` x `width`, each row int4, int8, fp16 or fp32.

    Raises:
        BundleMismatchError: the output is not a plain look-up in such a table.
    """

    def __init__(self, graph_path: Path, model: ir.Model, output: str) -> None:
        self._origin = f"{graph_path}, {output}"
        node = self._look_up(model, output)
        self._bits = table_bits(node)
        table = self._external(node.inputs[0])
        scales = [self._external(scales_of(node, model.graph))] if self._bits else []
        self.stored = _stored(graph_path.parent, [table, *scales])
        self._table = _in_file(graph_path.parent, table)
        self._is_turned = str(table.name).endswith(hadamard.SUFFIX)
        self.rows = self._table.shape[0]
        self._scales = _in_file(graph_path.parent, scales[0]) if scales else None  # [rows, width / block]
        if self._bits not in (0, 4, 8):
            raise BundleMismatchError(
                f"{self._origin}: a table of {self._bits} bits, expected 4 or 8; convert with another encoding"
            )
        self.width = self._table.shape[1] * (2 if self._bits == 4 else 1)

    def lookup(self, token_ids: Sequence[int], out: NDArray[np.float32]) -> None:
        """Write the rows of `token_ids` to `out`, float32 [len(token_ids), width]. An id outside gives row 0."""
        ids = np.asarray(token_ids, np.int64)
        ids = np.where((ids >= 0) & (ids < self.rows), ids, 0)
        stored: NDArray[Any] = self._table[ids]
        if self._scales is None:
            out[...] = stored
        else:
            values = _INT4_PAIRS[stored].view(np.int8) if self._bits == 4 else (stored ^ np.uint8(0x80)).view(np.int8)
            scales = self._scales[ids]
            groups = (*scales.shape, -1)  # [n, blocks, block]
            np.multiply(values.reshape(groups), scales[..., None], out=out.reshape(groups))
        if self._is_turned:
            out[...] = hadamard.turn(out)

    def _look_up(self, model: ir.Model, output: str) -> ir.Node:
        found = next((value for value in model.graph.outputs if value.name == output), None)
        node = None if found is None else found.producer()
        look_ups = list(table_look_ups(model.graph))
        while node is not None and node not in look_ups:
            is_of_bytes = node.op_type == "Gather"  # what bytes stand for; they come as its indices
            value = node.inputs[1 if is_of_bytes else 0] if is_of_bytes or node.op_type in _VIEWS else None
            node = None if value is None else value.producer()
        if node is None:
            raise BundleMismatchError(
                f"{self._origin}: not an output that looks rows up; convert the checkpoint with gemma-edge"
            )
        return node

    def _external(self, value: ir.Value | None) -> ir.ExternalTensor:
        tensor = None if value is None else value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            raise BundleMismatchError(
                f"{self._origin}: its table is no external tensor; convert the checkpoint with gemma-edge"
            )
        return tensor


def tables_within(model: ir.Model, folder: Path) -> tuple[FileRange, ...]:
    """Where the tables lie that a graph looks rows up in by itself. folder: where its data files are."""
    values = [value.const_value for node in table_look_ups(model.graph) for value in node.inputs if value is not None]
    return _stored(folder, [tensor for tensor in values if isinstance(tensor, ir.ExternalTensor)])


def _stored(folder: Path, tensors: Sequence[ir.ExternalTensor]) -> tuple[FileRange, ...]:
    return tuple(FileRange(folder / tensor.location, tensor.offset or 0, tensor.nbytes) for tensor in tensors)


def _in_file(folder: Path, tensor: ir.ExternalTensor) -> RowsInFile:
    shape = [int(size) for size in tensor.shape.numpy()]
    return RowsInFile(folder / tensor.location, tensor.offset or 0, shape, tensor.dtype.numpy())
