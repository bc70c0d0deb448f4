"""The number formats of a GGUF file, and from a tensor's bytes to float32.

F32, F16 and BF16 are those of safetensors. The others hold blocks of 32 or 256 values of a row; the package `gguf` says
what they are worth (gguf/quants.py), which a test holds to llama.cpp's own sizes.
"""

import importlib.util
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError

Float32 = NDArray[np.float32]

_BATCH_VALUES: Final = 1 << 17  # worked on at a time: the formulas need a dozen such arrays


@dataclass(frozen=True)
class GgufType:
    """number: ggml_type; block: values that are stored together, in `nbytes`."""

    number: int
    block: int
    nbytes: int


TYPES: Final = MappingProxyType(
    {
        "F32": GgufType(0, 1, 4),
        "F16": GgufType(1, 1, 2),
        "BF16": GgufType(30, 1, 2),
        "Q4_0": GgufType(2, 32, 18),
        "Q4_1": GgufType(3, 32, 20),
        "Q5_0": GgufType(6, 32, 22),
        "Q5_1": GgufType(7, 32, 24),
        "Q8_0": GgufType(8, 32, 34),
        "Q2_K": GgufType(10, 256, 84),
        "Q3_K": GgufType(11, 256, 110),
        "Q4_K": GgufType(12, 256, 144),
        "Q5_K": GgufType(13, 256, 176),
        "Q6_K": GgufType(14, 256, 210),
    }
)
"""By llama.cpp's names: what can be read."""

BLOCK_TYPES: Final = frozenset(name for name, kind in TYPES.items() if kind.block > 1)


def require_gguf(what: str) -> None:
    """Raises CheckpointError where the package that blocks are read with is absent. what: what needs it."""
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(f"{what}: reading it needs the package gguf; pip install 'gemma-edge[gguf]'")


def dequantize(data: bytes | memoryview, kind: str, values: Float32) -> None:
    """Fill `values` (flat, whole blocks) from the bytes of so many blocks of a type in BLOCK_TYPES."""
    import gguf

    blocks: NDArray[Any] = np.frombuffer(data, np.uint8).reshape(-1, TYPES[kind].nbytes)
    number, block = gguf.GGMLQuantizationType(TYPES[kind].number), TYPES[kind].block
    step = _BATCH_VALUES // block
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged block; who reads the values looks at them
        for first in range(0, len(blocks), step):
            part = blocks[first : first + step]
            # As one row: gguf takes 16 rows at a time in Python, and a block knows nothing of its row.
            found = gguf.quants.dequantize(part.reshape(1, -1), number)
            values[first * block : (first + len(part)) * block] = found.reshape(-1)
