"""Gemma 3n's vision encoder: an image through MobileNet-V5 to 256 embeddings.

Source: timm models/mobilenetv5.py (MobileNetV5Encoder), models/_efficientnet_blocks.py, layers/attention2d.py;
transformers models/gemma3n/modeling_gemma3n.py (Gemma3nModel.get_image_features).

Shapes: B images; H, W places down and across; C channels; M query rows (places x heads), N places of keys, E head size.
Convolutions are padded as TensorFlow's 'same' (timm's Conv2dSame).
"""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.graph.conv import average_pool, channels_last, conv2d, depthwise, multi_query_attention
from gemma_edge.converter.graph.conv_ops import same
from gemma_edge.converter.graph.ops import Graph, Value
from gemma_edge.converter.models.blocks import vector
from gemma_edge.converter.models.vision_config import (
    FEATURES,
    Attention,
    Block,
    Config,
    EdgeResidual,
    InvertedBottleneck,
)
from gemma_edge.converter.tensors import AS_STORED, Derivation, Fold, Role, SourceTensor, TensorSpec

__all__ = ["Config", "graphs", "tensors"]

PREFIX: Final = "vision_tower.timm_model."
STEM: Final = PREFIX + "conv_stem."
FUSION: Final = PREFIX + "msfa."
END_OF_IMAGE: Final = "end_of_image"
NORM_EPS: Final = 1e-6  # RmsNorm2d's default
STEM_KERNEL: Final = 3
FUSION_EXPANSION: Final = 2  # MobileNetV5MultiScaleFusionAdapter's default

Floats = NDArray[np.float32]


# ---------------------------------------------------------------- tensors


def tensors(config: Config) -> Iterator[TensorSpec]:
    """Every tensor of the encoder and its adapter, in the order of use."""
    c = config
    yield _kernel(STEM + "conv.weight", c.stem_channels, STEM_KERNEL, 3)
    yield vector(STEM + "conv.bias", c.stem_channels)
    yield vector(STEM + "bn.weight", c.stem_channels)
    for prefix, block in _blocks(c):
        yield from _block_tensors(prefix, block)
    fused, inner = _fused_channels(c), _fused_channels(c) * FUSION_EXPANSION
    yield from _bottleneck_tensors(FUSION + "ffn.", InvertedBottleneck(fused, inner, FEATURES, 0, 0, 1))
    yield vector(FUSION + "norm.weight", FEATURES)
    yield from c.embedder.tensors()
    yield c.embedder.hard_row(END_OF_IMAGE, c.end_row)


def _blocks(c: Config) -> Iterator[tuple[str, Block]]:
    """(prefix of its tensors, block), in order."""
    for i, stage in enumerate(c.stages):
        for j, block in enumerate(stage):
            yield f"{PREFIX}blocks.{i}.{j}.", block


def _fused_channels(c: Config) -> int:
    """Of the last two stages side by side."""
    return sum(_outputs(stage[-1]) for stage in c.stages[-2:])


def _outputs(block: Block) -> int:
    return block.channels if isinstance(block, Attention) else block.outputs


def _block_tensors(p: str, block: Block) -> Iterator[TensorSpec]:
    match block:
        case EdgeResidual():
            yield _kernel(p + "conv_exp.weight", block.inner, block.kernel, block.inputs)
            yield vector(p + "bn1.weight", block.inner)
            yield _pointwise(p + "conv_pwl.weight", block.outputs, block.inner)
            yield vector(p + "bn2.weight", block.outputs)
        case InvertedBottleneck():
            yield from _bottleneck_tensors(p, block)
            yield vector(p + "layer_scale.gamma", block.outputs)
        case Attention():
            yield from _attention_tensors(p, block)
            yield vector(p + "layer_scale.gamma", block.channels)


def _bottleneck_tensors(p: str, block: InvertedBottleneck) -> Iterator[TensorSpec]:
    if block.first_kernel:
        yield _depthwise_kernel(p + "dw_start.conv.weight", block.first_kernel, block.inputs)
        yield vector(p + "dw_start.bn.weight", block.inputs)
    yield _pointwise(p + "pw_exp.conv.weight", block.inner, block.inputs)
    yield vector(p + "pw_exp.bn.weight", block.inner)
    if block.middle_kernel:
        yield _depthwise_kernel(p + "dw_mid.conv.weight", block.middle_kernel, block.inner)
        yield vector(p + "dw_mid.bn.weight", block.inner)
    yield _pointwise(p + "pw_proj.conv.weight", block.outputs, block.inner)
    yield vector(p + "pw_proj.bn.weight", block.outputs)


def _attention_tensors(p: str, block: Attention) -> Iterator[TensorSpec]:
    yield vector(p + "norm.weight", block.channels)
    scale = Fold(mul=block.size**-0.5)
    yield _pointwise(p + "attn.query.proj.weight", block.heads * block.size, block.channels, scale)
    for name in ("attn.key.", "attn.value."):
        if block.stride > 1:
            yield _depthwise_kernel(f"{p}{name}down_conv.weight", block.kernel, block.channels)
            yield vector(f"{p}{name}norm.weight", block.channels)
        yield _pointwise(f"{p}{name}proj.weight", block.size, block.channels)
    yield _pointwise(p + "attn.output.proj.weight", block.channels, block.heads * block.size)


def _pointwise(name: str, rows: int, columns: int, fold: Fold = AS_STORED) -> TensorSpec:
    """A 1 x 1 convolution: stored [rows, columns, 1, 1], a matrix by nature."""
    return TensorSpec(name, name, (rows, columns), Role.VISION, fold, stored_shape=(rows, columns, 1, 1))


def _kernel(name: str, outputs: int, size: int, inputs: int) -> TensorSpec:
    """[O, I, KH, KW] -> [O, KH, KW, I]."""
    stored = SourceTensor(name, (outputs, inputs, size, size))
    return TensorSpec.derived(name, (outputs, size, size, inputs), Role.KERNEL, Derivation((stored,), _kernel_last))


def _depthwise_kernel(name: str, size: int, channels: int) -> TensorSpec:
    """[C, 1, KH, KW] -> [1, KH, KW, C]."""
    stored = SourceTensor(name, (channels, 1, size, size))
    return TensorSpec.derived(name, (1, size, size, channels), Role.KERNEL, Derivation((stored,), _depthwise_last))


def _kernel_last(kernel: Floats) -> Floats:
    return np.ascontiguousarray(kernel.transpose(0, 2, 3, 1))


def _depthwise_last(kernel: Floats) -> Floats:
    return np.ascontiguousarray(kernel.transpose(1, 2, 3, 0))


# ---------------------------------------------------------------- graphs


def graphs(config: Config, specs: Mapping[str, TensorSpec], in_one: bool) -> Iterator[Graph]:
    """An encoder and an adapter, as LiteRT-LM wants them; or both in one, as transformers.js does."""
    if in_one:
        yield _whole(config, specs)
    else:
        yield _encoder(config, specs)
        yield _adapter(config, specs)


def _encoder(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """images [1, H, W, 3] in [0, 1] -> features [1, side^2, 2048]."""
    g = Graph("vision_encoder", 1, specs)
    g.output("features", _encode(g, c, g.input("images", (1, c.image_size, c.image_size, 3))))
    return g


def _adapter(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """features [1, side^2, 2048] -> mm_embedding [1, side^2 + 1, D], end of image behind the others."""
    g = Graph("vision_adapter", 1, specs)
    rows = _embed(g, c, g.input("features", (1, c.side * c.side, FEATURES)))
    end = g.reshape(g.weight(c.embedder.prefix + END_OF_IMAGE), (1, 1, c.embedder.text_width))
    g.output("mm_embedding", g.concat([rows, end], 1))
    return g


def _whole(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """pixel_values [B, 3, H, W] in [0, 1] -> image_features [B, side^2, D]."""
    g = Graph("vision_encoder", 1, specs)
    pixels = g.input("pixel_values", (1, 3, c.image_size, c.image_size))
    g.output("image_features", _embed(g, c, _encode(g, c, channels_last(g, pixels))))
    return g


def _encode(g: Graph, c: Config, image: Value) -> Value:
    """[B, H, W, 3] -> [B, side^2, 2048]."""
    x = conv2d(g, image, STEM + "conv.weight", (2, 2), same(_size(image), STEM_KERNEL, 2), STEM + "conv.bias")
    x = g.gelu(g.rms_norm(x, STEM + "bn.weight", NORM_EPS))
    ends: list[Value] = []
    for i, stage in enumerate(c.stages):
        for j, block in enumerate(stage):
            x = _block(g, x, f"{PREFIX}blocks.{i}.{j}.", block)
        ends.append(x)
    high, low = ends[-2:]
    x = g.concat([high, _doubled(g, low)], 3)
    x = _bottleneck(
        g, x, FUSION + "ffn.", InvertedBottleneck(x.shape[3], FUSION_EXPANSION * x.shape[3], FEATURES, 0, 0, 1)
    )
    x = g.rms_norm(average_pool(g, x, x.shape[1] // c.side), FUSION + "norm.weight", NORM_EPS)
    return g.reshape(x, (1, c.side * c.side, FEATURES))


def _embed(g: Graph, c: Config, features: Value) -> Value:
    """[B, N, 2048] -> [B, N, D]."""
    return c.embedder.embed(g, g.mul(features, FEATURES**0.5))


def _block(g: Graph, x: Value, p: str, block: Block) -> Value:
    match block:
        case EdgeResidual():
            y = conv2d(g, x, p + "conv_exp.weight", (block.stride,) * 2, same(_size(x), block.kernel, block.stride))
            y = g.gelu(g.rms_norm(y, p + "bn1.weight", NORM_EPS))
            y = g.rms_norm(g.linear(y, p + "conv_pwl.weight"), p + "bn2.weight", NORM_EPS)
            return g.add(y, x) if block.is_residual else y
        case InvertedBottleneck():
            y = g.mul(_bottleneck(g, x, p, block), g.weight(p + "layer_scale.gamma"))
            return g.add(y, x) if block.is_residual else y
        case Attention():
            y = _attention(g, g.rms_norm(x, p + "norm.weight", NORM_EPS), p + "attn.", block)
            return g.add(g.mul(y, g.weight(p + "layer_scale.gamma")), x)


def _bottleneck(g: Graph, x: Value, p: str, block: InvertedBottleneck) -> Value:
    """[B, H, W, C] -> [B, H', W', C'], before layer scale and residual."""
    if block.first_kernel:
        stride = 1 if block.middle_kernel else block.stride
        x = _depthwise(g, x, p + "dw_start.conv.weight", p + "dw_start.bn.weight", block.first_kernel, stride)
    x = g.gelu(g.rms_norm(g.linear(x, p + "pw_exp.conv.weight"), p + "pw_exp.bn.weight", NORM_EPS))
    if block.middle_kernel:
        x = _depthwise(g, x, p + "dw_mid.conv.weight", p + "dw_mid.bn.weight", block.middle_kernel, block.stride)
        x = g.gelu(x)
    return g.rms_norm(g.linear(x, p + "pw_proj.conv.weight"), p + "pw_proj.bn.weight", NORM_EPS)


def _attention(g: Graph, x: Value, p: str, block: Attention) -> Value:
    """[B, H, W, C], same shape. The heads of a place lie side by side and read the same keys: they are rows, too."""
    height, width = _size(x)
    q = g.linear(x, p + "query.proj.weight")
    q = g.reshape(q, (1, height * width * block.heads, block.size))  # [B, H, W, heads * E] -> [B, M, E]
    k, v = (_keys_or_values(g, x, p + name, block) for name in ("key.", "value."))
    y = multi_query_attention(g, q, k, v)
    y = g.reshape(y, (1, height, width, block.heads * block.size))
    return g.linear(y, p + "output.proj.weight")


def _keys_or_values(g: Graph, x: Value, p: str, block: Attention) -> Value:
    """[B, H, W, C] -> [B, N, E]."""
    if block.stride > 1:
        x = _depthwise(g, x, p + "down_conv.weight", p + "norm.weight", block.kernel, block.stride)
    x = g.linear(x, p + "proj.weight")
    return g.reshape(x, (1, x.shape[1] * x.shape[2], block.size))


def _depthwise(g: Graph, x: Value, kernel: str, norm: str, size: int, stride: int) -> Value:
    """A depthwise convolution and its norm."""
    return g.rms_norm(depthwise(g, x, kernel, (stride, stride), same(_size(x), size, stride)), norm, NORM_EPS)


def _doubled(g: Graph, x: Value) -> Value:
    """[B, H, W, C] -> [B, 2H, 2W, C], each place four times (nearest). XNNPACK has no kernel that resizes so."""
    _, height, width, channels = x.shape
    x = g.reshape(x, (1, height, 1, width * channels))
    x = g.reshape(g.concat([x, x], 2), (1, 2 * height * width, 1, channels))
    return g.reshape(g.concat([x, x], 2), (1, 2 * height, 2 * width, channels))


def _size(x: Value) -> tuple[int, int]:
    return x.shape[1], x.shape[2]
