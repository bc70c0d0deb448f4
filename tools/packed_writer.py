"""Write a checkpoint again with its decoder's matrices as compressed-tensors packs them, from numpy alone.

The layout is compressed-tensors' own (compressors/pack_quantized); with that package transformers loads a directory.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.slices.shards import Header, write_shards
from tools.tiny import write_json

Packed = tuple[NDArray[np.int8], NDArray[np.float32]]
"""Codes [N, K], scales [N, groups]."""


def random_packed(shape: tuple[int, int], bits: int, group: int, rng: np.random.Generator) -> Packed:
    """Codes over the whole range, and scales that bfloat16 holds, of a matrix that keeps the size of its inputs."""
    rows, columns = shape
    groups = columns // (group or columns)
    codes = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape).astype(np.int8)
    scales = (rng.uniform(0.5, 1.5, (rows, groups)) / (1 << (bits - 2)) / columns**0.5).astype(np.float32)
    return codes, (scales.view(np.uint32) & 0xFFFF0000).view(np.float32)


def values_of(packed: Packed) -> NDArray[np.float32]:
    """What the matrix is worth, float32 [N, K]."""
    codes, scales = packed
    return (codes.reshape(*scales.shape, -1) * scales[..., np.newaxis]).reshape(codes.shape).astype(np.float32)


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """[N, K] -> int32 [N, K * bits / 32], the first column in the lowest bits."""
    per_word = 32 // bits
    words = (codes.astype(np.int64) + (1 << (bits - 1))).reshape(len(codes), -1, per_word)
    shifted = words << (np.arange(per_word) * bits)
    packed: NDArray[np.int32] = shifted.sum(axis=2).astype(np.uint32).view(np.int32)
    return packed


def write_packed(
    directory: Path, tensors: Mapping[str, NDArray[np.float32]], packed: Mapping[str, Packed], bits: int, group: int
) -> None:
    """Into `directory`, which has config.json: `packed` by the names of their weights, and `tensors` as they are."""
    stored: dict[str, tuple[str, NDArray[Any]]] = {name: ("F32", values) for name, values in tensors.items()}
    for name, (codes, scales) in packed.items():
        stored[f"{name}_packed"] = "I32", pack(codes, bits)
        stored[f"{name}_scale"] = "BF16", (scales.view(np.uint32) >> 16).astype(np.uint16)
        stored[f"{name}_shape"] = "I64", np.array(codes.shape, np.int64)

    def values(name: str) -> Iterator[bytes]:
        yield np.ascontiguousarray(stored[name][1]).tobytes()

    headers = {name: Header(dtype, tuple(array.shape)) for name, (dtype, array) in stored.items()}
    write_shards(directory, headers, values, 1)
    config = json.loads((directory / "config.json").read_text())
    weights = {
        "num_bits": bits, "type": "int", "symmetric": True, "strategy": "group" if group else "channel",
        "group_size": group or None,
    }  # fmt: skip
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    others = [name.removesuffix(".weight") for name, values in tensors.items() if values.ndim == 2]
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": groups, "ignore": ["lm_head", *others],
    }  # fmt: skip
    write_json(directory / "config.json", config)
