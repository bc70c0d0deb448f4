"""The numbers of config.json that decide what an audio encoder computes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma_edge.converter.models.embedder import Embedder
from gemma_edge.converter.models.fields import LARGEST_REPEAT, ConfigError, Fields
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.tensors import Role


@dataclass(frozen=True)
class Subsampling:
    """One of the two convolutions in front, over (time, frequency)."""

    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]

    def bins(self, bins: int) -> int:
        """Frequencies left of `bins`, padded by one on each side (Gemma3nAudioSubSampleConvProjection)."""
        return (bins + 2 - self.kernel[1]) // self.stride[1] + 1


@dataclass(frozen=True)
class Config:
    """An audio encoder. Numbers that transformers fixes stand in models/audio.py."""

    mel_bins: int
    convolutions: tuple[Subsampling, Subsampling]
    convolution_eps: float
    width: int  # D
    heads: int  # H
    layers: int
    past: int  # steps that attention looks back
    score_cap: float
    kernel: int  # steps of the light convolution
    reduction: int  # of the conformer's steps, the share that is kept: one in so many
    residual: float  # weight of a feed-forward half step
    eps: float
    embeddings: int  # N, what the decoder is given for each clip
    embedder: Embedder
    end_row: int  # of the embedder's table: what stands behind a clip
    padding_row: int  # and what stands for the rest of a clip that is too short for N

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ConfigError(
                f"config.json: audio hidden_size is {self.width}, expected a multiple of twice the {self.heads} heads; "
                "fix the checkpoint"
            )
        for name, row in (("eoa_token_id", self.end_row), ("the last id of the vocabulary", self.padding_row)):
            if not 0 <= row < self.embedder.vocab_size:
                raise ConfigError(
                    f"config.json: {name} is row {row} of embed_audio, expected one of its {self.embedder.vocab_size}; "
                    "fix vocab_offset"
                )

    @classmethod
    def from_json(
        cls,
        values: Mapping[str, Any],
        settings: MediaSettings = MediaSettings(),  # noqa: ARG003, B008  read where metadata is written
    ) -> "Config":
        """Read config.json of a Gemma 3n with an audio_config; raises ConfigError for what would give other numbers."""
        whole, f, text = Fields(values), Fields(values["audio_config"]), Fields(values["text_config"])
        # Only what is beyond +-1e10 would be clipped: nothing that comes out of a norm and a trained matrix.
        f.expect("gradient_clipping", (1e10,))
        f.expect("conf_attention_context_right", (0,))
        left = f.positive("conf_attention_context_left", 13)
        if left < 2:
            raise ConfigError(
                f"config.json: conf_attention_context_left is {left}, expected at least 2; this model needs new code"
            )
        channels = _pair(values["audio_config"], "sscp_conv_channel_size", (128, 32))
        kernels = _pairs(values["audio_config"], "sscp_conv_kernel_size", (3, 3))
        strides = _pairs(values["audio_config"], "sscp_conv_stride_size", (2, 2))
        first, second = (Subsampling(*numbers) for numbers in zip(channels, kernels, strides, strict=True))
        width, eps = f.positive("hidden_size", 1536), f.number("rms_norm_eps", 1e-6)
        embedder = Embedder(
            prefix="embed_audio.",
            role=Role.AUDIO,
            vocab_size=f.positive("vocab_size", 128),
            vocab_offset=f.positive("vocab_offset", 262_272),
            width=width,
            text_vocab_size=text.positive("vocab_size", 262_400),
            text_width=text.positive("hidden_size", 2048),
            eps=eps,
        )
        return cls(
            mel_bins=f.positive("input_feat_size", 128),
            convolutions=(first, second),
            convolution_eps=f.number("sscp_conv_group_norm_eps", 1e-3),
            width=width,
            heads=f.positive("conf_num_attention_heads", 8),
            layers=f.positive("conf_num_hidden_layers", 12, LARGEST_REPEAT),
            past=left - 1,
            score_cap=f.number("conf_attention_logit_cap", 50.0),
            kernel=f.positive("conf_conv_kernel_size", 5),
            reduction=f.positive("conf_reduction_factor", 4),
            residual=f.number("conf_residual_weight", 0.5),
            eps=eps,
            embeddings=whole.positive("audio_soft_tokens_per_image", 188),
            embedder=embedder,
            end_row=whole.positive("eoa_token_id", 262_272) - embedder.vocab_offset,
            padding_row=embedder.text_vocab_size - 1 - embedder.vocab_offset,  # Gemma3nModel.forward
        )

    @property
    def head_size(self) -> int:
        """E."""
        return self.width // self.heads

    @property
    def feature_bins(self) -> int:
        """Frequencies behind both convolutions."""
        first, second = self.convolutions
        return second.bins(first.bins(self.mel_bins))

    @property
    def frames(self) -> int:
        """Mel frames of the longest clip: N embeddings, or a few frames more than 30 s."""
        first, second = self.convolutions
        return self.embeddings * self.reduction * first.stride[0] * second.stride[0]

    @property
    def inputs(self) -> int:
        """Frames."""
        return self.frames

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a clip."""
        return self.frames, self.mel_bins


def _pair(values: Mapping[str, Any], key: str, default: tuple[int, int]) -> tuple[int, int]:
    """Two positive integers."""
    found = values.get(key, default)
    if not isinstance(found, list | tuple) or len(found) != 2 or not all(type(n) is int and n > 0 for n in found):
        raise ConfigError(f"config.json: {key} is {found!r}, expected two positive integers; fix the checkpoint")
    return found[0], found[1]


def _pairs(values: Mapping[str, Any], key: str, default: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two pairs of positive integers, (time, frequency) for each convolution."""
    found = values.get(key, (default, default))
    if not isinstance(found, list | tuple) or len(found) != 2:
        raise ConfigError(
            f"config.json: {key} is {found!r}, expected a pair for each of two layers; fix the checkpoint"
        )
    first, second = (_pair({key: item}, key, default) for item in found)
    return first, second
