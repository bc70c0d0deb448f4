"""Tiny audio encoders with random weights that all matter: as transformers has them, and what graphs are given."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gemma_edge.converter.models import audio
from gemma_edge.converter.tensors import TensorSpec
from tools.audio_oracle import AudioOracle

Floats = NDArray[np.float32]

EMBEDDINGS = 6  # N
TEXT_WIDTH, TEXT_VOCAB = 48, 116


def _config(**changes: Any) -> dict[str, Any]:
    """2 layers of width 64, windows of 5 steps, 32 mel bins; everything else as the official encoder."""
    return {
        "hidden_size": 64, "conf_num_attention_heads": 4, "conf_num_hidden_layers": 2, "input_feat_size": 32,
        "conf_attention_chunk_size": 4, "conf_attention_context_left": 5, "sscp_conv_channel_size": [16, 8],
        "vocab_size": 16, "vocab_offset": 100,
    } | changes  # fmt: skip


CONFIGS: Mapping[str, dict[str, Any]] = {
    "plain": _config(),
    "official window": _config(conf_attention_chunk_size=12, conf_attention_context_left=13),
    "chunks longer than the window": _config(conf_attention_chunk_size=7, conf_attention_context_left=3),
    "other convolutions": _config(
        sscp_conv_kernel_size=[[5, 3], [2, 5]],
        sscp_conv_stride_size=[[2, 2], [3, 1]],
        sscp_conv_channel_size=[8, 12],
        sscp_conv_group_norm_eps=0.1,
        conf_conv_kernel_size=3,
        conf_reduction_factor=2,
    ),
    "other numbers": _config(
        conf_attention_logit_cap=2.0,
        conf_residual_weight=0.25,
        rms_norm_eps=0.01,
        conf_num_attention_heads=2,
        conf_num_hidden_layers=1,
        vocab_size=12,
        vocab_offset=104,
    ),
}


@dataclass(frozen=True)
class Encoder:
    """One encoder: transformers' and ours."""

    oracle: AudioOracle
    config: audio.Config

    @classmethod
    def of(cls, values: Mapping[str, Any], seed: int = 0) -> "Encoder":
        whole = {
            "audio_config": values,
            "text_config": {"hidden_size": TEXT_WIDTH, "vocab_size": TEXT_VOCAB},
            "audio_soft_tokens_per_image": EMBEDDINGS,
            "eoa_token_id": values["vocab_offset"] + 3,
        }
        generator = torch.Generator().manual_seed(seed)
        oracle = AudioOracle.of(whole, lambda name, shape: random_weight(name, shape, generator))
        return cls(oracle, audio.Config.from_json(whole))

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in audio.tensors(self.config)}

    @cached_property
    def stored(self) -> dict[str, Floats]:
        """The checkpoint, by Hugging Face name."""
        return {name: parameter.detach().numpy() for name, parameter in self.oracle.parameters().items()}

    @cached_property
    def weights(self) -> dict[str, Floats]:
        """By the graph's names, folded and derived."""
        return {spec.name: self._value(spec) for spec in self.specs.values()}

    def _value(self, spec: TensorSpec) -> Floats:
        sources = [self.stored[stored.source] for stored in spec.stored]
        if spec.derivation is None:
            return spec.fold(sources[0].copy())
        return spec.derivation.compute(*sources).reshape(spec.shape)


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Keeps the size of a unit input; norms and scales differ from their neutral value."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1.0 + 0.3 * noise
    if name.endswith(("per_dim_scale", "embedding.weight")):
        return noise
    return noise / noise[0].numel() ** 0.5
