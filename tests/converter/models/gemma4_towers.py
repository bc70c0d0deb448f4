"""Tiny encoders of Gemma 4 with random weights that all matter: as transformers has them, and what graphs are given."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.models.encoders import Encoder, encoders_of
from gemma_edge.converter.models.gemma4_encoders import audio
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.quantize.recipes import Recipe
from tools.gemma4_towers_oracle import Tower
from tools.tiny_gemma4_towers import random_tower_values

Floats = NDArray[np.float32]

TEXT_WIDTH, TEXT_VOCAB, END_ID = 48, 20, 7
TABLE = "embed_tokens.weight"
EMBEDDINGS = 30  # of a clip: as many as three blocks of attention


def _vision(**changes: Any) -> dict[str, Any]:
    """2 layers of width 64 over patches of 4 x 4 pixels."""
    return {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 16, "patch_size": 4, "position_embedding_size": 256,
        "use_clipped_linears": True,
    } | changes  # fmt: skip


def _audio(**changes: Any) -> dict[str, Any]:
    """2 layers of width 64; windows as the official encoder has them."""
    return {
        "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "subsampling_conv_channels": [128, 8],
        "output_proj_dims": 80,
    } | changes  # fmt: skip


VISION: Mapping[str, dict[str, Any]] = {
    "official kind": _vision(),
    "standardized, without bounds": _vision(use_clipped_linears=False, standardize=True),
    "other numbers": _vision(
        rms_norm_eps=0.05,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=12,
        num_hidden_layers=1,
        pooling_kernel_size=2,
        rope_parameters={"rope_type": "axial", "rope_theta": 7.0},
    ),
}
AUDIO: Mapping[str, dict[str, Any]] = {
    "official kind": _audio(),
    "without bounds": _audio(use_clipped_linears=False),
    "other numbers": _audio(
        attention_chunk_size=5,
        attention_context_left=6,
        attention_logit_cap=2.0,
        residual_weight=0.25,
        rms_norm_eps=0.05,
        num_attention_heads=2,
        num_hidden_layers=1,
        conv_kernel_size=3,
        subsampling_conv_channels=[128, 12],
    ),
}


@dataclass(frozen=True)
class Tiny:
    """One encoder: transformers' and ours."""

    oracle: Tower
    encoder: Encoder

    @classmethod
    def of(cls, modality: str, values: Mapping[str, Any], seed: int = 0) -> "Tiny":
        text = {"hidden_size": TEXT_WIDTH, "vocab_size": TEXT_VOCAB}
        ends = {"eoi_token_id": END_ID, "eoa_token_index": END_ID, "image_token_id": 5, "audio_token_id": 6}
        whole = {"model_type": "gemma4", f"{modality}_config": values, "text_config": text, **ends}
        generator = torch.Generator().manual_seed(seed)
        oracle = Tower.of(modality, whole, lambda name, shape: random_tower_values(name, shape, generator))
        images = {key: values[key] for key in ("patch_size", "pooling_kernel_size") if key in values}
        [encoder] = encoders_of(
            whole, MediaSettings(images | {"max_soft_tokens": 70}, "processor_config.json"), "gemma4"
        )
        if isinstance(encoder.config, audio.Config):
            encoder = Encoder.of(replace(encoder.config, embeddings=EMBEDDINGS))
        return cls(oracle, encoder)

    @cached_property
    def stored(self) -> dict[str, Floats]:
        """The checkpoint, by Hugging Face name."""
        table = np.random.default_rng(0).standard_normal((TEXT_VOCAB, TEXT_WIDTH), np.float32)
        return {TABLE: table} | {name: tensor.detach().numpy() for name, tensor in self.oracle.tensors().items()}

    @cached_property
    def weights(self) -> dict[str, Floats]:
        """By the graph's names, folded and derived."""
        found = {}
        for name, spec in self.encoder.tensors.items():
            sources = [self.stored[part.source] for part in spec.stored]
            assert [source.shape for source in sources] == [part.shape for part in spec.stored]
            sources = [x if part.row is None else x[part.row] for x, part in zip(sources, spec.stored, strict=True)]
            derived = None if spec.derivation is None else spec.derivation.compute(*sources)
            found[name] = spec.fold(sources[0].copy()) if derived is None else derived.reshape(spec.shape)
        return found

    def graphs(
        self, in_one: bool, precision: str = "fp32"
    ) -> Iterator[tuple[Graph, dict[str, Floats], dict[str, str]]]:
        """Each with the weights it uses and how a recipe stores them."""
        recipe = Recipe.named(precision)
        for graph in self.encoder.graphs(in_one):
            encodings = {name: recipe.encoding(spec).name for name, spec in graph.used.items()}
            yield graph, {name: self.weights[name] for name in graph.used}, encodings
