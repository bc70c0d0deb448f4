"""Every tensor of an audio encoder: what it is called, and what becomes of it before a graph sees it."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.models.audio_config import Config
from gemma_edge.converter.models.blocks import matrix, vector
from gemma_edge.converter.tensors import Derivation, Fold, Role, SourceTensor, TensorSpec

Floats = NDArray[np.float32]

FRONT = "audio_tower.subsample_conv_projection."
LONGEST_WAVE = 1.0e4  # radians per step of the slowest sinusoid, inverted (Gemma3nAudioRelativePositionEmbedding)


def layer_prefix(index: int) -> str:
    """What the names of one conformer layer begin with."""
    return f"audio_tower.conformer.{index}."


def tensors(config: Config) -> Iterator[TensorSpec]:
    """In the order of use."""
    c = config
    inputs = 1
    for i, convolution in enumerate(c.convolutions):
        outputs = convolution.channels
        name = f"{FRONT}conv_{i}.conv.weight"
        yield moved(name, (outputs, inputs, *convolution.kernel), (0, 2, 3, 1))  # [O, I, T, F] -> [O, T, F, I]
        yield vector(f"{FRONT}conv_{i}.norm.weight", outputs)
        inputs = outputs
    yield matrix(FRONT + "input_proj_linear.weight", c.width, c.feature_bins * inputs, Role.AUDIO)
    for index in range(c.layers):
        layer = layer_prefix(index)
        yield from _feed_forward(c, layer + "ffw_layer_start.")
        yield from _attention(c, layer + "attention.")
        yield from _light_convolution(c, layer + "lconv1d.")
        yield from _feed_forward(c, layer + "ffw_layer_end.")
        yield vector(layer + "norm.weight", c.width)
    yield from c.embedder.tensors()
    yield c.embedder.hard_row("end_of_audio", c.end_row)
    yield c.embedder.hard_row("padding", c.padding_row)


def _feed_forward(c: Config, p: str) -> Iterator[TensorSpec]:
    yield vector(p + "pre_layer_norm.weight", c.width)
    yield matrix(p + "ffw_layer_1.weight", 4 * c.width, c.width, Role.AUDIO)
    yield matrix(p + "ffw_layer_2.weight", c.width, 4 * c.width, Role.AUDIO)
    yield vector(p + "post_layer_norm.weight", c.width, Fold(mul=c.residual))  # post_layer_scale


def _attention(c: Config, p: str) -> Iterator[TensorSpec]:
    yield vector(p + "pre_attn_norm.weight", c.width)
    for name in ("q_proj", "k_proj", "v_proj"):
        yield matrix(f"{p}attn.{name}.weight", c.width, c.width, Role.AUDIO)
    scale = Derivation((SourceTensor(p + "attn.per_dim_scale", (c.head_size,)),), _query_scale)
    yield TensorSpec.derived(p + "attn.per_dim_scale", (c.head_size,), Role.NORM, scale)
    positions = p + "attn.relative_position_embedding.pos_proj.weight"
    projected = Derivation((SourceTensor(positions, (c.width, c.width)),), partial(projected_distances, past=c.past))
    shape = (1, c.heads, c.head_size, c.past + 1)
    yield TensorSpec.derived(positions, shape, Role.NORM, projected)
    yield matrix(p + "post.weight", c.width, c.width, Role.AUDIO)
    yield vector(p + "post_norm.weight", c.width)


def _light_convolution(c: Config, p: str) -> Iterator[TensorSpec]:
    yield vector(p + "pre_layer_norm.weight", c.width)
    yield matrix(p + "linear_start.weight", 2 * c.width, c.width, Role.AUDIO)
    name = p + "depthwise_conv1d.weight"
    stored = SourceTensor(name, (c.width, 1, c.kernel))
    kernel = Derivation((stored,), over_time)
    yield TensorSpec.derived(name, (1, c.kernel, 1, c.width), Role.KERNEL, kernel)
    yield vector(p + "conv_norm.weight", c.width)
    yield matrix(p + "linear_end.weight", c.width, c.width, Role.AUDIO)


def moved(name: str, shape: tuple[int, ...], order: tuple[int, ...]) -> TensorSpec:
    """A convolution's kernel with its axes in another order."""
    derivation = Derivation((SourceTensor(name, shape),), partial(np.transpose, axes=order))
    return TensorSpec.derived(name, tuple(shape[axis] for axis in order), Role.KERNEL, derivation)


def over_time(stored: Floats) -> Floats:
    """A kernel of each channel over time, as one over a picture of width 1: [D, 1, K] -> [1, K, 1, D]."""
    return stored.transpose(2, 1, 0)[None]


def _query_scale(stored: Floats) -> Floats:
    """softplus(w) / softplus(0) / sqrt(E), [E] (Gemma3nAudioAttention)."""
    softplus = np.logaddexp(0.0, stored.astype(np.float64))
    scale: Floats = (softplus / math.log(2) / math.sqrt(stored.size)).astype(np.float32)
    return scale


def projected_distances(projection: Floats, past: int) -> Floats:
    """Sinusoids of the distances P, P - 1, ..., 0, projected: [D, D] -> [D, P + 1], which is [H, E, P + 1].

    Constants, so 28 million parameters of the official encoder never reach a device. float32 where transformers rounds.
    """
    half = projection.shape[1] // 2
    step = math.log(LONGEST_WAVE) / max(half - 1, 1)
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-step))
    angles = np.arange(past, -1, -1, dtype=np.float32)[:, None] * frequencies  # [P + 1, D / 2]
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float64)
    return (projection.astype(np.float64) @ waves.T).astype(np.float32)
