"""The ops that encoders of images (and the first layers of audio) need; conv.py appends them to a graph.

Images are [B, H, W, C], as TFLite's kernels want them. Kernels are too, see each op: the conversion brings the stored
[O, I, KH, KW] into that order. Axis 1 may be ANY.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

from gemma_edge.converter.graph.values import Value
from gemma_edge.converter.tensors import TensorSpec

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = tuple[Pair, Pair]
"""Zeros around an image: (above, below), (left, right)."""

UNPADDED: Final[Padding] = ((0, 0), (0, 0))


@dataclass(frozen=True, eq=False)
class Conv2d:
    """x [B, H, W, I] with kernel [O, KH, KW, I], plus bias [O]; `stride` down and to the right."""

    x: Value
    kernel: TensorSpec
    bias: TensorSpec | None
    stride: Pair
    padding: Padding
    out: Value


@dataclass(frozen=True, eq=False)
class DepthwiseConv2d:
    """x [B, H, W, C], each channel with its own kernel of [1, KH, KW, C]."""

    x: Value
    kernel: TensorSpec
    stride: Pair
    padding: Padding
    out: Value


@dataclass(frozen=True, eq=False)
class AveragePool:
    """Means of `size` x `size` squares of x [B, H, W, C] that do not overlap."""

    x: Value
    size: int
    out: Value


@dataclass(frozen=True, eq=False)
class MultiQueryAttention:
    """softmax(q k^T) v over all positions; q [B, M, E], scale already in q, k and v [B, N, E] shared by all heads."""

    q: Value
    k: Value
    v: Value
    out: Value


@dataclass(frozen=True, eq=False)
class ChannelsLast:
    """[B, C, H, W] -> [B, H, W, C]."""

    x: Value
    out: Value


Op = Conv2d | DepthwiseConv2d | AveragePool | MultiQueryAttention | ChannelsLast


def same(size: Pair, kernel: int, stride: int) -> Padding:
    """TensorFlow's 'same' for an image of `size`: ceil(size / stride) places, an odd zero below and to the right."""

    def pair(length: int) -> Pair:
        total = max(0, (-(-length // stride) - 1) * stride + kernel - length)
        return total // 2, total - total // 2

    return pair(size[0]), pair(size[1])
