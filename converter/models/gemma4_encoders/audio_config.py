"""The numbers of config.json that decide what Gemma 4's audio encoder computes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gemma_edge.converter.models.fields import LARGEST_REPEAT, ConfigError, Fields
from gemma_edge.converter.models.gemma4_encoders.common import Clipped, Embedder
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.tensors import Role

MEL_BINS: Final = 128  # Gemma4AudioFeatureExtractor's feature_size
KERNEL: Final = 3  # of each of the two convolutions, down and across
STRIDE: Final = 2
EMBEDDINGS: Final = 750  # of 30 seconds


@dataclass(frozen=True)
class Config:
    """An audio encoder."""

    channels: tuple[int, int]  # of the two convolutions
    width: int  # D
    output_width: int
    heads: int  # H
    layers: int
    chunk: int  # steps: attention sees a step and chunk - 1 before it
    score_cap: float
    kernel: int  # steps of the light convolution
    residual: float  # weight of a feed-forward half step
    eps: float
    linears: Clipped
    embedder: Embedder
    embeddings: int = EMBEDDINGS  # N, at most

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ConfigError(
                f"config.json: audio hidden_size is {self.width}, expected a multiple of twice the {self.heads} heads; "
                "fix the checkpoint"
            )
        if self.channels[0] // STRIDE**2 != self.feature_bins:
            raise ConfigError(
                f"config.json: audio subsampling_conv_channels begins with {self.channels[0]}, expected {MEL_BINS}, "
                "as there are mel bins; this model needs new code"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any], settings: MediaSettings) -> "Config":
        """Read config.json of a Gemma 4 with an audio_config; raises ConfigError for what would give other numbers."""
        settings.check_sound()
        f = Fields(values["audio_config"])
        f.expect("hidden_act", ("silu",))
        f.expect("gradient_clipping", (1e10,))  # nothing that comes out of a norm and a trained matrix is beyond
        f.expect("attention_invalid_logits_value", (-1e9,))
        f.expect("attention_context_right", (0,))
        chunk = f.positive("attention_chunk_size", 12)
        f.expect("attention_context_left", (chunk + 1,))
        if chunk < 2:
            raise ConfigError(
                f"config.json: attention_chunk_size is {chunk}, expected at least 2; this model needs new code"
            )
        channels = values["audio_config"].get("subsampling_conv_channels", (128, 32))
        is_pair = isinstance(channels, list | tuple) and len(channels) == 2
        if not is_pair or not all(type(count) is int and count > 0 for count in channels):
            raise ConfigError(
                f"config.json: subsampling_conv_channels is {channels!r}, expected two positive integers; "
                "fix the checkpoint"
            )
        output_width, eps = f.positive("output_proj_dims", 1536), f.number("rms_norm_eps", 1e-6)
        return cls(
            channels=(channels[0], channels[1]),
            width=f.positive("hidden_size", 1024),
            output_width=output_width,
            heads=f.positive("num_attention_heads", 8),
            layers=f.positive("num_hidden_layers", 12, LARGEST_REPEAT),
            chunk=chunk,
            score_cap=f.number("attention_logit_cap", 50.0),
            kernel=f.positive("conv_kernel_size", 5),
            residual=f.number("residual_weight", 0.5),
            eps=eps,
            linears=Clipped(Role.AUDIO, f.flag("use_clipped_linears", True)),
            embedder=Embedder.of("audio", output_width, eps, values),
        )

    @property
    def mel_bins(self) -> int:
        """F."""
        return MEL_BINS

    @property
    def feature_bins(self) -> int:
        """Frequencies behind both convolutions, of which each halves them."""
        return MEL_BINS // STRIDE**2

    @property
    def head_size(self) -> int:
        """E."""
        return self.width // self.heads

    @property
    def past(self) -> int:
        """Steps that attention looks back: it sees `chunk` with its own (sliding_window_mask_function)."""
        return self.chunk - 1

    @property
    def frames(self) -> int:
        """Mel frames of the longest clip."""
        return self.embeddings * STRIDE**2

    @property
    def inputs(self) -> int:
        """Frames."""
        return self.frames

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a clip."""
        return self.frames, self.mel_bins
