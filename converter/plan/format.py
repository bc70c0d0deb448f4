"""The formats that `convert` writes, as far as a request is checked by them. What writes one is a room of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class KVType(StrEnum):
    """How keys and values are kept at run time. fp32 with rings needs less memory than fp16: see the README."""

    FP32 = "fp32"
    FP16 = "fp16"


@dataclass(frozen=True)
class Format:
    """room: whose module `format` plans, writes and reads it, see plan/door.py and plan/output.py.

    kv_types: what it can keep keys and values as. any_prefill: a graph takes any number of tokens at a time. rings: it
    has a word for caches of sliding layers that are shorter than the context. int4_blocks: columns of one scale that an
    int4 matrix gets, the first that divides it; none where one scale is for a whole row.
    """

    name: str
    room: str
    kv_types: tuple[KVType, ...]
    any_prefill: bool = False
    rings: bool = True
    int4_blocks: tuple[int, ...] = ()


ONNX_INT4_BLOCKS: Final = (256, 128, 64, 32)
"""ONNX Runtime stores a scale per block anyway, so there each int4 block gets its own, the larger the better: E4B has
room in 3 GiB with blocks of 256, not with 128. Blocks of 32 would lose slightly less (KL 1.28e-3 instead of 1.39e-3 of
128 on tiny-gemma3n, see int4.toml), for two fifths more bytes to read per token."""

LITERTLM: Final = Format("litertlm", "litert", tuple(KVType))
FORMATS: Final[Mapping[str, Format]] = {
    known.name: known
    for known in (
        LITERTLM,
        Format("onnx", "onnx", (KVType.FP32,), any_prefill=True, rings=False, int4_blocks=ONNX_INT4_BLOCKS),
    )
}
