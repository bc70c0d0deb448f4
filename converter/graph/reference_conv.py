"""The ops of conv_ops.py as their definitions read, for reference.py."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.graph import conv_ops as ir
from gemma_edge.converter.graph.reference_audio import Machine

Array = NDArray[np.floating[Any]]


def _taps(x: Array, op: ir.Conv2d | ir.DepthwiseConv2d) -> Iterator[tuple[int, int, Array]]:
    """For each place (row, column) of the kernel what it sees, [B, H', W', C]."""
    kernel = op.kernel.shape[1:3]
    padded = np.pad(x, ((0, 0), *op.padding, (0, 0)))
    height, width = (
        (size - taps) // step + 1 for size, taps, step in zip(padded.shape[1:3], kernel, op.stride, strict=True)
    )
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            rows = slice(row, row + (height - 1) * op.stride[0] + 1, op.stride[0])
            columns = slice(column, column + (width - 1) * op.stride[1] + 1, op.stride[1])
            yield row, column, padded[:, rows, columns]


def _conv2d(m: Machine, op: ir.Conv2d) -> Array:
    kernel: Array = m[op.kernel]  # [O, KH, KW, I]
    y: Array = np.zeros(op.out.shape, kernel.dtype)
    for row, column, seen in _taps(m[op.x], op):
        y += seen @ kernel[:, row, column].T
    return y if op.bias is None else y + m[op.bias]


def _depthwise_conv2d(m: Machine, op: ir.DepthwiseConv2d) -> Array:
    kernel: Array = m[op.kernel]  # [1, KH, KW, C]
    y: Array = np.zeros(op.out.shape, kernel.dtype)
    for row, column, seen in _taps(m[op.x], op):
        y += seen * kernel[0, row, column]
    return y


def _average_pool(m: Machine, op: ir.AveragePool) -> Array:
    batch, height, width, channels = op.out.shape
    squares: Array = m[op.x].reshape(batch, height, op.size, width, op.size, channels)
    mean: Array = squares.mean(axis=(2, 4))
    return mean


def _multi_query_attention(m: Machine, op: ir.MultiQueryAttention) -> Array:
    scores: Array = m[op.q] @ m[op.k].swapaxes(1, 2)  # [B, M, N]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    y: Array = weights @ m[op.v] / weights.sum(axis=-1, keepdims=True)
    return y


RUN: dict[type, Callable[[Any, Any], NDArray[Any]]] = {
    ir.Conv2d: _conv2d,
    ir.DepthwiseConv2d: _depthwise_conv2d,
    ir.AveragePool: _average_pool,
    ir.MultiQueryAttention: _multi_query_attention,
    ir.ChannelsLast: lambda m, op: m[op.x].transpose(0, 2, 3, 1),
}
