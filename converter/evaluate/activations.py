"""What a linear layer multiplies when its kernel takes int8: inputs rounded token by token.

LiteRT's CPU kernels (XNNPACK's qd8-f32-qc8w, -qc4w and -qb4w) choose a scale and a zero point for each row of inputs,
such that zero, the least and the largest value are among the 256 levels. Source: XNNPACK,
`xnn_f32_qd8_asymmetric_quantization_params` in src/operator-utils.c.

ONNX Runtime's MatMulNBits with accuracy level 4 (MLAS) has a scale for each block of a row, as wide as the weight's
blocks, and no zero point: the largest absolute value becomes 127. Source: onnxruntime,
`QuantizeARow_CompInt8` in core/mlas/lib/sqnbitgemm_kernel_*.
"""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

_MATMUL_LARGEST = np.float32(127)
_LOWEST, _HIGHEST = np.float32(-128), np.float32(127)


def round_tokens(x: Float32) -> Float32:
    """`x` [N, K] as the kernel sees it, a new array: each row on 256 levels of its own."""
    low = np.minimum(x.min(axis=1, keepdims=True), np.float32(0))
    high = np.maximum(x.max(axis=1, keepdims=True), np.float32(0))
    steps = np.where(high > low, np.float32(255) / np.maximum(high - low, np.float32(1e-30)), np.float32(1))
    from_low, from_high = low * steps, high * steps
    # The zero point that the end with the larger error asks for.
    zero = np.where((_LOWEST + from_low) + (_HIGHEST + from_high) > 0, _LOWEST - from_low, _HIGHEST - from_high)
    zero = np.rint(np.clip(zero, _LOWEST, _HIGHEST))
    rounded: Float32 = x * steps
    np.rint(rounded, out=rounded)
    np.clip(rounded, _LOWEST - zero, _HIGHEST - zero, out=rounded)
    rounded /= steps
    return rounded


def round_blocks(x: Float32, block: int) -> Float32:
    """`x` [N, K] as MatMulNBits sees it, a new array: each `block` columns of a row on 255 levels of their own."""
    groups = x.reshape(-1, block)  # [N, K] -> [N * K / block, block]
    largest = np.abs(groups).max(axis=1, keepdims=True)
    steps = np.where(largest > 0, _MATMUL_LARGEST / np.maximum(largest, np.float32(1e-30)), np.float32(1))
    rounded: Float32 = groups * steps
    np.rint(rounded, out=rounded)
    rounded /= steps
    return rounded.reshape(x.shape)
