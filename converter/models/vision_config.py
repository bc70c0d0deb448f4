"""The numbers of config.json that decide what a vision encoder computes.

They are few: `architecture` names a network that timm knows, and only `model_args` changes it. Here that network,
MobileNet-V5-300M, is spelled as timm's own block arguments, so that both are read in one way.
Source: timm models/mobilenetv5.py and models/_efficientnet_builder.py; transformers models/timm_wrapper.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from gemma_edge.converter.models.embedder import Embedder
from gemma_edge.converter.models.fields import ConfigError, Fields
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.tensors import Role

ARCHITECTURE: Final = "mobilenetv5_300m_enc"
FEATURES: Final = 2048  # channels of MobileNetV5Encoder's output, whatever its arguments
CHANNEL_MULTIPLE: Final = 8  # timm rounds channels to it; what is rounded here already is not another network there

_Arguments: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class EdgeResidual:
    """A full convolution to `inner` channels, then 1 x 1 to `outputs` (arXiv 2003.02838)."""

    inputs: int
    inner: int
    outputs: int
    kernel: int
    stride: int

    @property
    def is_residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.inputs == self.outputs


@dataclass(frozen=True)
class InvertedBottleneck:
    """1 x 1 to `inner` channels and back, a depthwise convolution before and between (arXiv 2404.10518).

    A kernel of 0 stands for no convolution. The stride is that of the one between, or, without, of the one before.
    """

    inputs: int
    inner: int
    outputs: int
    first_kernel: int
    middle_kernel: int
    stride: int

    @property
    def is_residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.inputs == self.outputs


@dataclass(frozen=True)
class Attention:
    """Attention between all places of an image: many query heads, one of keys and values (arXiv 2404.10518).

    Keys and values are taken from an image made smaller by `stride` with a depthwise convolution, or, at 1, as it is.
    """

    channels: int
    heads: int
    size: int  # E
    kernel: int
    stride: int


Block = EdgeResidual | InvertedBottleneck | Attention


@dataclass(frozen=True)
class Config:
    """A vision encoder. Numbers that timm fixes stand in models/vision.py."""

    image_size: int  # pixels, both ways
    stem_channels: int
    stages: tuple[tuple[Block, ...], ...]
    side: int  # places of the result, both ways: side^2 is what the decoder is given for each image
    end_row: int  # the embedder's, of the token that ends an image
    embedder: Embedder

    def __post_init__(self) -> None:
        strides = [_stride(stage) for stage in self.stages]
        if len(strides) < 2 or set(strides) != {2}:
            raise ConfigError(
                f"config.json: the stages of vision block_args have strides {strides}, expected at least two, all 2; "
                "this model needs new code"
            )
        step = 2 ** len(strides)  # pixels for a place of the last stage but one; the stem halves too
        if self.image_size % (2 * step) or self.image_size // step % self.side:
            raise ConfigError(
                f"preprocessor_config.json: images are {self.image_size} pixels wide, expected a multiple of "
                f"{math.lcm(2 * step, step * self.side)} for {self.side} x {self.side} embeddings; fix the checkpoint"
            )

    @property
    def inputs(self) -> int:
        """Pixels of an image."""
        return self.image_size * self.image_size

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of an image."""
        return 1, self.image_size, self.image_size, 3

    @classmethod
    def from_json(cls, values: Mapping[str, Any], settings: MediaSettings) -> "Config":
        """Read config.json of a Gemma 3n with a vision_config; raises ConfigError for what would give other numbers."""
        f, text = Fields(values["vision_config"]), Fields(values["text_config"])
        f.expect("architecture", (ARCHITECTURE,))
        f.expect("hidden_size", (FEATURES,))
        arguments = f.nested("model_args")
        for name in arguments.keys() - {"block_args", "stem_size", "msfa_output_resolution"}:
            Fields(arguments).expect(name, (None,))
        a = Fields(arguments)
        side = a.positive("msfa_output_resolution", 16)
        Fields(values).expect("vision_soft_tokens_per_image", (side * side,))
        stem_channels = _channels(a.positive("stem_size", 64))
        vocab_size, vocab_offset = f.positive("vocab_size", 128), f.positive("vocab_offset", 262_144)
        end = Fields(values).positive("eoi_token_id", 262_144)
        if not vocab_offset <= end < vocab_offset + vocab_size:
            raise ConfigError(
                f"config.json: eoi_token_id is {end}, expected one of the {vocab_size} ids from {vocab_offset} that "
                "embed_vision holds; fix the checkpoint"
            )
        return cls(
            image_size=settings.pixels,
            stem_channels=stem_channels,
            stages=tuple(_stages(arguments.get("block_args", _MOBILENET_V5_300M), stem_channels)),
            side=side,
            end_row=end - vocab_offset,
            embedder=Embedder(
                prefix="embed_vision.",
                role=Role.VISION,
                vocab_size=vocab_size,
                vocab_offset=vocab_offset,
                width=FEATURES,
                text_vocab_size=text.positive("vocab_size", 262_400),
                text_width=text.positive("hidden_size", 2048),
                eps=f.number("rms_norm_eps", 1e-6),
            ),
        )


def _stride(stage: Sequence[Block]) -> int:
    """Of a whole stage. Attention leaves the size as it is."""
    return math.prod(block.stride for block in stage if not isinstance(block, Attention))


def _stages(stages: Any, channels: int) -> Iterator[tuple[Block, ...]]:
    are_lists = isinstance(stages, list | tuple) and all(isinstance(stage, list) for stage in stages)
    if not are_lists or not all(isinstance(arguments, dict) for stage in stages for arguments in stage):
        raise ConfigError(
            f"config.json: block_args is {str(stages)[:60]!r}, expected stages of blocks, which are objects; "
            "this model needs new code"
        )
    for stage in stages:
        blocks = []
        for arguments in stage:
            blocks.append(_block(arguments, channels))
            channels = _channels(Fields(arguments).positive("out_chs"))
        yield tuple(blocks)


def _block(arguments: Mapping[str, Any], inputs: int) -> Block:
    f = Fields(arguments)
    outputs, stride = f.positive("out_chs"), f.positive("stride", 1)
    f.expect("act_layer", (None,))
    f.expect("se_ratio", (0.0,))
    f.expect("noskip", (False,))
    match arguments.get("block_type"):
        case "er":
            f.expect("pw_kernel_size", (1,))
            f.expect("force_in_chs", (0,))
            inner = _channels(inputs * f.number("exp_ratio", 1.0))
            return EdgeResidual(inputs, inner, outputs, f.positive("exp_kernel_size", 3), stride)
        case "uir":
            f.expect("dw_kernel_size_end", (0,))
            inner = _channels(inputs * f.number("exp_ratio", 1.0))
            first, middle = f.count("dw_kernel_size_start", 0), f.count("dw_kernel_size_mid", 3)
            if stride > 1 and not (first or middle):
                raise ConfigError(
                    f"config.json: a vision block has stride {stride} and no convolution to make it; "
                    "this model needs new code"
                )
            return InvertedBottleneck(inputs, inner, outputs, first, middle, stride)
        case "mqa":
            f.expect("stride", (1,))
            f.expect("out_chs", (inputs,))
            size = f.positive("key_dim")
            f.expect("value_dim", (size,))
            heads, kernel = f.positive("num_heads"), f.positive("dw_kernel_size", 3)
            return Attention(inputs, heads, size, kernel, f.positive("kv_stride", 1))
        case kind:
            raise ConfigError(
                f"config.json: block_type is {kind!r}, only 'er', 'uir' or 'mqa' is supported; "
                "this model needs new code"
            )


def _channels(count: float) -> int:
    if count % CHANNEL_MULTIPLE:
        raise ConfigError(
            f"config.json: a vision block has {count:g} channels, expected a multiple of {CHANNEL_MULTIPLE}; "
            "this model needs new code"
        )
    return int(count)


def _edge(channels: int, stride: int) -> _Arguments:
    return {"block_type": "er", "exp_kernel_size": 3, "exp_ratio": 4.0, "out_chs": channels, "stride": stride}


def _bottleneck(channels: int, expansion: float, first: int = 0, middle: int = 0) -> _Arguments:
    """Those with a convolution in the middle are the ones that halve the image."""
    return {
        "block_type": "uir", "dw_kernel_size_start": first, "dw_kernel_size_mid": middle, "exp_ratio": expansion,
        "out_chs": channels, "stride": 2 if middle else 1,
    }  # fmt: skip


def _attention(channels: int, heads: int, size: int, stride: int) -> _Arguments:
    return {
        "block_type": "mqa", "dw_kernel_size": 3, "num_heads": heads, "key_dim": size, "value_dim": size,
        "kv_stride": stride, "out_chs": channels, "stride": 1,
    }  # fmt: skip


_MOBILENET_V5_300M: Final[Sequence[Sequence[_Arguments]]] = (
    [_edge(128, 2), _edge(128, 1), _edge(128, 1)],
    [_bottleneck(256, 6.0, 3, 5), *[_bottleneck(256, 4.0, 5), _bottleneck(256, 4.0, 3)] * 2],
    [
        _bottleneck(640, 6.0, 5, 5), *[_bottleneck(640, 4.0, 5)] * 7, _bottleneck(640, 1.0),
        *[_attention(640, 12, 64, 2), _bottleneck(640, 2.0)] * 14,
    ],
    [_bottleneck(1280, 6.0, 5, 5), *[_attention(1280, 16, 96, 1), _bottleneck(1280, 2.0)] * 19],
)  # fmt: skip
