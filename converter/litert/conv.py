"""The ops of graph/conv_ops.py as TFLite has them: images [B, H, W, C], padding SAME or VALID.

XNNPACK takes all of them. A kernel stored as float16 is widened by DEQUANTIZE, which XNNPACK does once, at load.
"""

from collections.abc import Callable, Mapping
from typing import Any

from gemma_edge.converter.graph import conv_ops as ir
from gemma_edge.converter.litert.file import Tensor
from gemma_edge.converter.litert.ops import Subgraph
from gemma_edge.converter.litert.signature import Signature


def _conv2d(s: Signature, op: ir.Conv2d) -> Tensor:
    x, same = _padded(s.sub, s[op.x], op)
    channels = op.kernel.shape[0]
    bias = s.sub.constant([0.0] * channels) if op.bias is None else s[op.bias]
    return s.sub.conv2d(x, s.sub.floats(s.stored(op.kernel)), bias, op.stride, same, op.out.shape)


def _depthwise_conv2d(s: Signature, op: ir.DepthwiseConv2d) -> Tensor:
    x, same = _padded(s.sub, s[op.x], op)
    bias = s.sub.constant([0.0] * op.kernel.shape[3])
    return s.sub.depthwise_conv2d(x, s.sub.floats(s.stored(op.kernel)), bias, op.stride, same, op.out.shape)


def _padded(sub: Subgraph, x: Tensor, op: ir.Conv2d | ir.DepthwiseConv2d) -> tuple[Tensor, bool]:
    """(x, whether the op's own SAME padding does): what SAME does not say are zeros put around x."""
    height, width = (
        ir.same((length, length), taps, step)[0]
        for length, taps, step in zip(x.shape[1:3], op.kernel.shape[1:3], op.stride, strict=True)
    )
    if op.padding == (height, width):
        return x, True
    for axis, (before, after) in enumerate(op.padding, start=1):
        x = sub.pad(x, axis, before, after)
    return x, False


def _average_pool(s: Signature, op: ir.AveragePool) -> Tensor:
    return s.sub.average_pool(s[op.x], op.size, op.out.shape)


def _multi_query_attention(s: Signature, op: ir.MultiQueryAttention) -> Tensor:
    scores = s.sub.batch_matmul(s[op.q], s[op.k], transpose_b=True)  # [B, M, N]
    return s.sub.batch_matmul(s.sub.softmax(scores), s[op.v])


def _channels_last(s: Signature, op: ir.ChannelsLast) -> Tensor:
    return s.sub.transpose(s[op.x], (0, 2, 3, 1))


LOWER: Mapping[type, Callable[[Any, Any], Tensor]] = {
    ir.Conv2d: _conv2d,
    ir.DepthwiseConv2d: _depthwise_conv2d,
    ir.AveragePool: _average_pool,
    ir.MultiQueryAttention: _multi_query_attention,
    ir.ChannelsLast: _channels_last,
}
