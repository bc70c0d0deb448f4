"""Matrices that a checkpoint stores as integers with scales: compressed-tensors' pack-quantized, W4A16 and W8A16.

`X.weight_packed` int32 [N, K * bits / 32]: unsigned codes, code + 2^(bits - 1), the first column in the lowest bits.
`X.weight_scale` [N, K / group] or [N, 1] in a float type, `X.weight_shape` int64 [2]. (compressed-tensors 0.20,
compressors/pack_quantized; vLLM and SGLang read the same.) Behind this they are one matrix X.weight, whose values are
code * scale, and whose dtype is the encoding's name: "int4-b32".
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError, TensorInfo
from gemma_edge.runtime.formats.direct import DirectReader
from gemma_edge.runtime.formats.encoding import BLOCKS, Encoding

METHOD: Final = "compressed-tensors"
LAYOUT: Final = "pack-quantized"
_PACKED, _SCALE, _SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
_ADVICE: Final = "convert the checkpoint that it was made from"


def with_packed(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors, each packed matrix and its scales as one; as they are where config.json tells of none.

    Raises CheckpointError naming what is not read: zero points, another order of columns, groups that no bundle has.
    """
    settings = _settings(config)
    if settings.get("quant_method") != METHOD or settings.get("format") != LAYOUT:
        return dict(tensors)
    _check(settings)
    found = dict(tensors)
    for name in [name for name in tensors if name.endswith(_PACKED)]:
        stem = name.removesuffix(_PACKED)
        for unread in (".weight_zero_point", ".weight_g_idx"):
            if stem + unread in tensors:
                raise CheckpointError(f"{stem + unread}: is not read, expected symmetric groups in order; {_ADVICE}")
        missing = next((stem + ending for ending in (_SCALE, _SHAPE) if stem + ending not in tensors), None)
        if missing is not None:
            raise CheckpointError(f"{missing} is missing; incomplete checkpoint, download it again")
        found[stem + ".weight"] = _matrix(found.pop(name), found.pop(stem + _SCALE), found.pop(stem + _SHAPE), stem)
    return found


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the same model with its values as plain numbers."""
    return {key: value for key, value in config.items() if key != "quantization_config"}


def read_integers(
    file: DirectReader, tensor: TensorInfo, first: int, last: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rows [first, last): codes [n, K], scales [n, groups]. file: the tensor's. Raises CheckpointError, OSError."""
    assert tensor.scales is not None
    rows, columns = tensor.shape
    bits = Encoding.parse(tensor.dtype).bits
    row_bytes = tensor.nbytes // rows
    packed = np.frombuffer(_bytes(file, tensor, first * row_bytes, (last - first) * row_bytes), np.uint8)
    codes = np.empty((packed.size, 8 // bits), np.uint8)  # [bytes, values per byte]
    for place in range(8 // bits):
        codes[:, place] = (packed >> (place * bits)) & ((1 << bits) - 1)
    signed = (codes.reshape(last - first, -1)[:, :columns] - np.uint8(1 << (bits - 1))).view(np.int8)
    scales = np.empty((last - first, tensor.scales.nbytes // rows // _ITEM_BYTES[tensor.scales.dtype]), np.float32)
    _read_scales(tensor.scales, first * scales.shape[1], scales.reshape(-1))
    return signed, scales


def read_packed(file: DirectReader, tensor: TensorInfo, first: int, values: NDArray[np.float32]) -> None:
    """Fill `values` (flat, whole rows) from value number `first` on with code * scale. Raises as read_integers."""
    columns = tensor.shape[1]
    codes, scales = read_integers(file, tensor, first // columns, (first + values.size) // columns)
    groups = (*scales.shape, -1)  # [n, groups, columns of one]
    np.multiply(codes.reshape(groups), scales[..., np.newaxis], out=values.reshape(groups))


_ITEM_BYTES: Final = {"BF16": 2, "F16": 2, "F32": 4}


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    for values in (config, nested if isinstance(nested, Mapping) else {}):
        if isinstance(found := values.get("quantization_config"), Mapping):
            return found
    return {}


def _check(settings: Mapping[str, Any]) -> None:
    """Refuses what would be read as other numbers than were meant."""
    for name, group in _groups(settings):
        weights = group.get("weights")
        if (
            not isinstance(weights, Mapping)
            or weights.get("type", "int") != "int"
            or not weights.get("symmetric", True)
        ):
            raise CheckpointError(
                f"config.json: quantization_config: {name}: weights are not symmetric integers, which is not read; "
                f"{_ADVICE}"
            )
        for key in ("input_activations", "output_activations"):
            if group.get(key) is not None:
                raise CheckpointError(
                    f"config.json: quantization_config: {name}: has {key}, which is not read; {_ADVICE}"
                )


def _groups(settings: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise CheckpointError("config.json: quantization_config: no config_groups; download the file again")
    yield from groups.items()


def _matrix(packed: TensorInfo, scales: TensorInfo, shape: TensorInfo, stem: str) -> TensorInfo:
    rows, columns = _shape(shape)
    groups = scales.shape[1] if len(scales.shape) == 2 else 0
    bits = 32 * packed.shape[1] // columns if len(packed.shape) == 2 and columns else 0
    fits = (packed.dtype, packed.shape) == ("I32", (rows, bits * columns // 32)) and bits * columns % 32 == 0
    if not fits or scales.dtype not in _ITEM_BYTES or not groups or scales.shape[0] != rows or columns % groups:
        raise CheckpointError(
            f"{packed.name}: {packed.dtype} {list(packed.shape)} with scales {scales.dtype} {list(scales.shape)}, "
            f"expected I32 and floats that make a matrix of {rows} x {columns}; {_ADVICE}"
        )
    group = columns // groups
    if bits not in (4, 8) or (groups > 1 and (bits, group) not in {(4, block) for block in BLOCKS}):
        raise CheckpointError(
            f"{packed.name}: {bits} bits in groups of {group}, expected 4 bits in groups of "
            f"{', '.join(map(str, BLOCKS))}, or 4 or 8 bits with a scale for each row; {_ADVICE}"
        )
    encoding = Encoding("int", bits, group if groups > 1 else 0)
    return replace(packed, name=stem + ".weight", dtype=encoding.name, shape=(rows, columns), scales=scales)


def _shape(tensor: TensorInfo) -> tuple[int, int]:
    with DirectReader(tensor.file) as file:
        kind = np.int64 if tensor.dtype == "I64" else np.int32
        numbers = np.frombuffer(_bytes(file, tensor, 0, min(tensor.nbytes, 16)), kind)
    if len(numbers) != 2 or (numbers < 1).any():
        raise CheckpointError(f"{tensor.name}: holds {numbers.tolist()}, expected rows and columns; {_ADVICE}")
    return int(numbers[0]), int(numbers[1])


def _read_scales(tensor: TensorInfo, first: int, scales: NDArray[np.float32]) -> None:
    size = _ITEM_BYTES[tensor.dtype]
    with DirectReader(tensor.file) as file:
        stored = _bytes(file, tensor, first * size, scales.size * size)
    if tensor.dtype == "BF16":
        np.left_shift(np.frombuffer(stored, "<u2"), 16, out=scales.view(np.uint32), dtype=np.uint32)
    else:
        scales[:] = np.frombuffer(stored, f"<f{size}")
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise CheckpointError(f"{tensor.name}: holds a scale that is no number from 0; the checkpoint is damaged")


def _bytes(file: DirectReader, tensor: TensorInfo, begin: int, nbytes: int) -> memoryview:
    stored = file.read(tensor.offset + begin, nbytes)
    if len(stored) < nbytes:
        raise CheckpointError(f"{tensor.file}: ends inside {tensor.name}; it was changed while being read")
    return stored
