"""Matrices that are stored as symmetric integers, as tensors like others: of 4 or 8 bits by compressed-tensors.

The quantizer "gemma" stores others, see gemma_quant.py; of both the values are read here.

Of a matrix X [N, K] such a checkpoint holds X_packed int32 [N, K * bits / 32], X_scale [N, K / group] and X_shape: see
compressed_tensors/packing.py. What has zero points, another order of columns or another format stays as it is, and is
refused by name. Where a bundle has words for the integers and scales, it gets them as they are (see quantize/qat.py).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.integers import gemma_quant
from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError, TensorInfo, read_range
from gemma_edge.runtime.formats.direct import DirectReader
from gemma_edge.runtime.formats.encoding import BLOCKS, Encoding

Float32 = NDArray[np.float32]


_FORMAT: Final = "pack-quantized"
_PACKED, _SCALE, _SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
_OTHERWISE: Final = (".weight_zero_point", ".weight_g_idx")
_BITS: Final = (4, 8)
_SIGN_BITS: Final = {"W4A16": 0x88, "W8A16": 0x80, "W2A8": 0xAA, "W4A8": 0x88, "W8A8": 0}
_SCALES: Final = {"BF16": Encoding("float", 16, brain=True), "F16": Encoding("float", 16), "F32": Encoding("float", 32)}


DTYPES: Final = tuple(_SIGN_BITS)
"""Our names of them, as people call the schemes."""


def unpacked(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """`tensors` with one for each packed matrix, by its name in the model; all as they are where that cannot be.

    Reads the shapes, which are stored. Raises CheckpointError: parts that do not belong to each other.
    """
    settings = config.get("quantization_config")
    if isinstance(settings, Mapping) and settings.get("quant_method") == gemma_quant.METHOD:
        return gemma_quant.unpacked(config, tensors)
    is_known = isinstance(settings, Mapping) and settings.get("format") == _FORMAT
    if not is_known or any(name.endswith(_OTHERWISE) for name in tensors):
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():
        base = name.removesuffix(_PACKED)
        if base != name and base + _SCALE in tensors and base + _SHAPE in tensors:
            found[f"{base}.weight"] = _matrix(f"{base}.weight", tensor, tensors[base + _SCALE], tensors[base + _SHAPE])
        elif not name.endswith((_SCALE, _SHAPE)):
            found[name] = tensor
    return found


def _matrix(name: str, packed: TensorInfo, scale: TensorInfo, shape: TensorInfo) -> TensorInfo:
    rows, columns = _stored_shape(shape)
    words = packed.shape[1] if len(packed.shape) == 2 else 0
    bits = words * 32 // columns if columns else 0
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
    is_whole = bits in _BITS and packed.shape == (rows, columns * bits // 32) and columns * bits % 32 == 0
    if not is_whole or scale.dtype not in _SCALES or scale.shape[0] != rows or not groups or columns % groups:
        raise CheckpointError(
            f"{packed.file}: {name} is packed in {list(packed.shape)} words with {list(scale.shape)} scales of "
            f"{scale.dtype}, expected integers of 4 or 8 bits of [{rows}, {columns}]; download the checkpoint again"
        )
    return replace(packed, name=name, dtype=f"W{bits}A16", shape=(rows, columns), scales=scale)


def _stored_shape(shape: TensorInfo) -> tuple[int, int]:
    if shape.dtype != "I64" or shape.shape != (2,):
        raise CheckpointError(
            f"{shape.file}: {shape.name} is {shape.dtype} of shape {list(shape.shape)}, expected two of I64; "
            "download the checkpoint again"
        )
    rows, columns = np.frombuffer(read_range(shape.file, shape.offset, 16), "<i8").tolist()
    if not (0 < rows < 1 << 40 and 0 < columns < 1 << 40):
        raise CheckpointError(
            f"{shape.file}: {shape.name} is [{rows}, {columns}], expected a matrix; download the checkpoint again"
        )
    return rows, columns


def encoding_of(tensor: TensorInfo) -> Encoding | None:
    """In which its integers and scales can be kept; None where no bundle has such groups."""
    if tensor.scales is None:
        return None
    bits, groups = int(tensor.dtype[1]), tensor.scales.shape[1]
    block = tensor.shape[1] // groups if groups > 1 else 0
    return Encoding("int", bits, block) if not block or (bits == 4 and block in BLOCKS) else None


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the same model with its values as plain numbers."""
    return {key: value for key, value in config.items() if key != "quantization_config"}


def read_packed(file: DirectReader, tensor: TensorInfo, first: int, values: Float32) -> bool:
    """Fill `values` (flat, whole rows) from value number `first` on, which begins a row.

    Returns whether all scales are numbers. Raises CheckpointError where the file has become shorter.
    """
    columns = tensor.shape[1]
    codes, factors = read_integers(file, tensor, first // columns, values.size // columns)
    values[:] = codes.reshape(-1)
    values.reshape(*factors.shape, -1)[...] *= factors[..., np.newaxis]
    return bool(np.isfinite(factors).all())


def read_integers(file: DirectReader, tensor: TensorInfo, first: int, rows: int) -> tuple[NDArray[np.int8], Float32]:
    """Of so many rows from `first` on the codes [rows, columns] and the scales [rows, groups], which may be no numbers.

    Raises CheckpointError where the file has become shorter.
    """
    assert tensor.scales is not None
    bits, columns, scale = int(tensor.dtype[1]), tensor.shape[1], tensor.scales
    groups = scale.shape[1]
    encoding = _SCALES[scale.dtype]
    row_bytes = groups * encoding.bits // 8
    stored = file.read(tensor.offset + first * columns * bits // 8, rows * columns * bits // 8)
    scales = read_range(scale.file, scale.offset + first * row_bytes, rows * row_bytes)
    if len(stored) < rows * columns * bits // 8 or len(scales) < rows * row_bytes:
        raise CheckpointError(f"{tensor.file}: ends inside {tensor.name}; it was changed while being read")
    signed = np.frombuffer(stored, np.uint8) ^ np.uint8(_SIGN_BITS[tensor.dtype])
    factors = encoding.unpack(scales, (rows, groups)).astype(np.float32, copy=False)
    codes: NDArray[Any] = Encoding("int", bits).unpack(signed, (rows, columns))
    return codes.astype(np.int8, copy=False), factors
