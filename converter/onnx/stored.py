"""The weights beside a directory's graphs, by the graph's names, as `data.py` has placed them. Mapped, not read."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from gemma_edge.converter.onnx.data import SIGN_BITS
from gemma_edge.converter.quantize.packed_rows import PackedRows
from gemma_edge.converter.tensors import TensorSpec
from gemma_edge.runtime.formats.encoding import Encoding
from gemma_edge.runtime.formats.onnx_dir import GRAPHS, OnnxDirectory

_NAME = re.compile(r"(?P<weight>.+?)(?P<turned>\.hadamard)?(?P<scale>\.scale)?(?:\.rows_(?P<row>\d+))?")


def stored_rows(path: Path, specs: Mapping[str, TensorSpec]) -> dict[str, list[PackedRows]]:
    """Those of `specs`. Raises OnnxDirectoryError."""
    parts: dict[tuple[str, int], dict[bool, NDArray[Any]]] = {}  # by (weight, first row): data and scales
    turned: set[str] = set()
    for model in OnnxDirectory.open(path).graphs.values():
        for name, tensor in _external(model):
            matched = _NAME.fullmatch(name)
            assert matched is not None
            content = np.memmap(
                path / GRAPHS / str(tensor.location), np.uint8, "r", tensor.offset or 0, (tensor.length or 0,)
            )
            key = matched["weight"], int(matched["row"] or 0)
            if matched["turned"]:
                turned.add(matched["weight"])
            if matched["weight"] in specs:
                rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
                parts.setdefault(key, {})[bool(matched["scale"])] = content.reshape(rows, -1)
    found: dict[str, list[PackedRows]] = {}
    for (name, _), part in sorted(parts.items()):
        columns, data, scales = specs[name].shape[-1], part[False], part.get(True)
        bits = 8 * data.shape[1] // columns
        kind = f"fp{bits}" if scales is None else f"int{bits}"
        scales = None if scales is None else np.ascontiguousarray(scales).view("<f4")
        flip = 0 if scales is None else SIGN_BITS[bits]
        found.setdefault(name, []).append(PackedRows(Encoding.parse(kind), columns, data, scales, flip, name in turned))
    return found


def _external(model: onnx_ir.Model) -> Iterator[tuple[str, Any]]:
    for name, value in model.graph.initializers.items():
        if isinstance(value.const_value, onnx_ir.ExternalTensor):
            yield str(name), value.const_value
