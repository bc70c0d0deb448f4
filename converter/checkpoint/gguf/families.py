"""What llama.cpp has fixed for each family in its code, and a GGUF does not say. Reading and writing ask here.

Sources: conversion/gemma.py; load_arch_hparams of src/models/gemma3.cpp and gemma3n.cpp; src/llama-hparams.h.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from gemma_edge.converter.models import gemma3, gemma3n
from gemma_edge.converter.models.questions import Config

LAYERS_OF_27B: Final = 62
"""Of the Gemma 3 whose queries are scaled by (width / heads)^-0.5; those of all others by head_dim^-0.5."""

LOCAL_ROPE_BASE: Final = 10_000.0  # of sliding layers, where rope.freq_base_swa is absent
COEFFICIENT_CLIP: Final = 120.0  # transformers' Gemma3nTextConfig; llama.cpp has no key and does not clip


@dataclass(frozen=True)
class Family:
    """period: every such layer attends to all tokens, where no pattern is given. norm_offset: what norms hold there and
    not in Hugging Face's layout. logit_cap: where none is given. first_shared_layer: from which on layers read another
    one's keys, where no number is given; None where none does.
    """

    architecture: str
    hugging_face: str
    period: int
    norm_offset: float
    logit_cap: float | None = None
    first_shared_layer: int | None = None


FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        gemma3.FAMILY: Family("gemma3", "Gemma3ForCausalLM", period=6, norm_offset=1.0),
        gemma3n.FAMILY: Family(
            "gemma3n", "Gemma3nForCausalLM", period=5, norm_offset=0.0, logit_cap=30.0, first_shared_layer=20
        ),
    }
)
"""By our name of the family, which is llama.cpp's name of the architecture."""


def query_scale(config: Config) -> float:
    """What llama.cpp multiplies queries by: a norm of another scale has to make up for it."""
    if isinstance(config, gemma3n.Config):
        return 1.0
    heads = config.attention[0].heads
    divisor = config.width // heads.query if len(config.attention) == LAYERS_OF_27B else heads.size
    return float(divisor**-0.5)


def fixed_elsewhere(config: Config) -> dict[str, tuple[Any, Any]]:
    """What llama.cpp computes whatever a file says, where this model has it otherwise: name -> (here, there)."""
    if not isinstance(config, gemma3n.Config):
        return {}
    layers = len(config.attention)
    sparse = tuple(0.95 if layer < 10 else 0.0 for layer in range(layers))
    fixed = {
        "altup_num_inputs": (config.altup_inputs, 4),
        "altup_active_idx": (config.altup_active, 0),
        "altup_correct_scale": (config.altup_scale_output, True),
        "laurel_rank": (config.laurel_rank, 64),
        "hidden_size_per_layer_input": (config.ple_width, 256),
        "layers with keys of their own": (config.kv_layers, min(layers, 20)),
        "activation_sparsity_pattern": (config.sparsity, sparse),
        "widths of feed-forward layers": (len(set(config.ffn_widths)), 1),
    }
    return {name: pair for name, pair in fixed.items() if pair[0] != pair[1]}
