"""Appending the ops of images to a graph. Resizing to the double is Reshape and Concat: it needs no op."""

from gemma_edge.converter.graph.conv_ops import (
    UNPADDED,
    AveragePool,
    ChannelsLast,
    Conv2d,
    DepthwiseConv2d,
    MultiQueryAttention,
    Op,
    Padding,
    Pair,
)
from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.graph.values import ANY, Value


def conv2d(
    g: Graph,
    x: Value,
    kernel: str,
    stride: Pair = (1, 1),
    padding: Padding = UNPADDED,
    bias: str | None = None,
) -> Value:
    """[B, H, W, I] -> [B, H', W', O]."""
    spec = g.weight(kernel)
    channels, *size, depth = spec.shape
    assert x.shape[3] == depth, (kernel, x.shape, spec.shape)
    bias_spec = None if bias is None else g.weight(bias)
    assert bias_spec is None or bias_spec.shape == (channels,), (bias, spec.shape)
    shape = (x.shape[0], *_sizes(x, (size[0], size[1]), stride, padding), channels)
    return _append(g, Conv2d(x, spec, bias_spec, stride, padding, Value(shape)))


def depthwise(g: Graph, x: Value, kernel: str, stride: Pair = (1, 1), padding: Padding = UNPADDED) -> Value:
    """[B, H, W, C] -> [B, H', W', C]."""
    spec = g.weight(kernel)
    _, height, width, channels = spec.shape
    assert x.shape[3] == channels, (kernel, x.shape, spec.shape)
    shape = (x.shape[0], *_sizes(x, (height, width), stride, padding), channels)
    return _append(g, DepthwiseConv2d(x, spec, stride, padding, Value(shape)))


def average_pool(g: Graph, x: Value, size: int) -> Value:
    """[B, H, W, C] -> [B, H/size, W/size, C]."""
    batch, height, width, channels = x.shape
    assert height % size == width % size == 0, (x.shape, size)
    if size == 1:
        return x
    return _append(g, AveragePool(x, size, Value((batch, height // size, width // size, channels))))


def multi_query_attention(g: Graph, q: Value, k: Value, v: Value) -> Value:
    """[B, M, E], [B, N, E], [B, N, E] -> [B, M, E]."""
    assert k.shape == v.shape, (k.shape, v.shape)
    assert (q.shape[0], q.shape[2]) == (k.shape[0], k.shape[2]), (q.shape, k.shape)
    return _append(g, MultiQueryAttention(q, k, v, Value(q.shape)))


def channels_last(g: Graph, x: Value) -> Value:
    """[B, C, H, W] -> [B, H, W, C]."""
    batch, channels, height, width = x.shape
    return _append(g, ChannelsLast(x, Value((batch, height, width, channels))))


def _sizes(x: Value, kernel: Pair, stride: Pair, padding: Padding) -> Pair:
    height, width = (
        ANY if length == ANY else (length + sum(zeros) - taps) // step + 1
        for length, taps, step, zeros in zip(x.shape[1:3], kernel, stride, padding, strict=True)
    )
    return height, width


def _append(g: Graph, op: Op) -> Value:
    g.ops.append(op)
    return op.out
