"""The ops of graph/conv_ops.py as ONNX has them: images [B, C, H, W] inside, kernels [O, I, KH, KW].

Kernels are transposed, and widened from float16, by nodes that ONNX Runtime computes once, at load. Images are
transposed around each convolution: everything else of an encoder (1 x 1 convolutions, norms) works along channels,
and as matrix products those run seven times faster than ConvInteger does.
"""

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir

from gemma_edge.converter.graph import conv_ops as ir
from gemma_edge.converter.onnx.file import MICROSOFT
from gemma_edge.converter.onnx.lowering import Lowering

_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


def _conv2d(s: Lowering, op: ir.Conv2d) -> onnx_ir.Value:
    kernel = s.file.op("Transpose", s[op.kernel], perm=_TO_NCHW)  # [O, KH, KW, I] -> [O, I, KH, KW]
    return _convolve(s, op, kernel, *([] if op.bias is None else [s[op.bias]]), group=1)


def _depthwise_conv2d(s: Lowering, op: ir.DepthwiseConv2d) -> onnx_ir.Value:
    kernel = s.file.op("Transpose", s[op.kernel], perm=(3, 0, 1, 2))  # [1, KH, KW, C] -> [C, 1, KH, KW]
    return _convolve(s, op, kernel, group=op.kernel.shape[3])


def _convolve(s: Lowering, op: ir.Conv2d | ir.DepthwiseConv2d, *weights: onnx_ir.Value, group: int) -> onnx_ir.Value:
    (top, bottom), (left, right) = op.padding
    x = s.file.op("Transpose", s[op.x], perm=_TO_NCHW)
    y = s.file.op("Conv", x, *weights, strides=op.stride, pads=(top, left, bottom, right), group=group)
    return s.file.op("Transpose", y, perm=_TO_NHWC)


def _average_pool(s: Lowering, op: ir.AveragePool) -> onnx_ir.Value:
    x = s.file.op("Transpose", s[op.x], perm=_TO_NCHW)
    y = s.file.op("AveragePool", x, kernel_shape=(op.size, op.size), strides=(op.size, op.size))
    return s.file.op("Transpose", y, perm=_TO_NHWC)


def _multi_query_attention(s: Lowering, op: ir.MultiQueryAttention) -> onnx_ir.Value:
    scores = s.file.op("FusedMatMul", s[op.q], s[op.k], domain=MICROSOFT, transB=1)  # [B, M, N]
    return s.file.op("MatMul", s.file.op("Softmax", scores, axis=-1), s[op.v])


def _channels_last(s: Lowering, op: ir.ChannelsLast) -> onnx_ir.Value:
    return s.file.op("Transpose", s[op.x], perm=_TO_NHWC)


LOWER: Mapping[type, Callable[[Any, Any], onnx_ir.Value]] = {
    ir.Conv2d: _conv2d,
    ir.DepthwiseConv2d: _depthwise_conv2d,
    ir.AveragePool: _average_pool,
    ir.MultiQueryAttention: _multi_query_attention,
    ir.ChannelsLast: _channels_last,
}
