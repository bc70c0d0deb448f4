"""The formats that `convert` writes, as far as a request is checked by them. What writes one is a room of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from gemma_edge.converter.quantize.recipes import Recipe
from gemma_edge.converter.tensors import Role


class KVType(StrEnum):
    """How keys and values are kept at run time. fp32 with rings needs less memory than fp16: see the README."""

    FP32 = "fp32"
    FP16 = "fp16"


@dataclass(frozen=True)
class Format:
    """room: whose module `format` plans, writes and reads it, see plan/door.py and plan/output.py.

    kv_types: what it can keep keys and values as. any_prefill: a graph takes any number of tokens at a time. rings: it
    has a word for caches of sliding layers that are shorter than the context.
    int4_blocks, int8_blocks: columns of one scale that such a matrix gets, the first that divides it; none where one
    scale is for a whole row. packed: roles that may be integers, all others are bfloat16; none where all may.
    every_block: columns of one scale in all matrices of integers, tables included; 0 where that is not so.
    one_table: a head that is tied to the embedding is the same bytes. shares: an embedding may be read from the head's
    table, and have more bits than that. folds: tables hold what a token looks up; else whoever runs it multiplies.
    turns: whoever runs it turns inputs, see formats/hadamard.py. balances: norms of any values are stored without loss.
    encoders: it holds those of images and audio. runs: our runtime runs it.
    pairs: it holds two models of the same weights. verifies: it holds signatures that verify several tokens, and that
    take a step in several conversations.
    suffix: what names of files end with, by which `--out` is known; none of directories.
    """

    name: str
    room: str
    kv_types: tuple[KVType, ...]
    any_prefill: bool = False
    rings: bool = True
    int4_blocks: tuple[int, ...] = ()
    int8_blocks: tuple[int, ...] = ()
    packed: tuple[Role, ...] = ()
    every_block: int = 0
    one_table: bool = False
    folds: bool = True
    turns: bool = True
    balances: bool = True
    shares: bool = False
    encoders: bool = True
    runs: bool = True
    pairs: bool = False
    verifies: bool = False
    suffix: str = ""

    def recipe(self, recipe: Recipe, is_tied: bool, is_near: bool) -> Recipe:
        """`recipe` as far as this format has words for it.

        is_tied: whether the model's head is its embedding. is_near: whether both have the same values here.
        """
        if not (self.shares and is_tied and is_near):
            recipe = recipe.without_rests()
        if self.int4_blocks:
            recipe = recipe.with_blocks(*self.int4_blocks)
        if self.packed:
            recipe = recipe.packing(self.packed, self.int8_blocks)
        if self.every_block:
            recipe = recipe.in_blocks(self.every_block)
        if self.one_table and is_tied:
            recipe = recipe.with_one_table()
        return replace(
            recipe,
            unfolded=not self.folds,
            hadamard=recipe.hadamard if self.turns else frozenset(),
            balance=recipe.balance and self.balances,
        )


ONNX_INT4_BLOCKS: Final = (256, 128, 64, 32)
"""ONNX Runtime stores a scale per block anyway, so there each int4 block gets its own, the larger the better: E4B has
room in 3 GiB with blocks of 256, not with 128. Blocks of 32 would lose slightly less (KL 1.28e-3 instead of 1.39e-3 of
128 on tiny-gemma3n, see int4.toml), for two fifths more bytes to read per token."""

LITERTLM: Final = Format(
    "litertlm", "litert", tuple(KVType), shares=True, pairs=True, verifies=True, suffix=".litertlm"
)
FORMATS: Final[Mapping[str, Format]] = {
    known.name: known
    for known in (
        LITERTLM,
        Format("onnx", "onnx", (KVType.FP32,), any_prefill=True, rings=False, int4_blocks=ONNX_INT4_BLOCKS),
        Format(
            "gguf", "gguf", tuple(KVType), any_prefill=True, every_block=32, one_table=True, folds=False, turns=False,
            encoders=False, runs=False, suffix=".gguf",
        ),
        Format(
            "compressed-tensors", "compressed_tensors", tuple(KVType), any_prefill=True, int4_blocks=(32,),
            int8_blocks=(128, 64, 32), packed=(Role.ATTENTION, Role.FFN), one_table=True, folds=False, turns=False,
            balances=False, encoders=False, runs=False,
        ),
    )
}  # fmt: skip
