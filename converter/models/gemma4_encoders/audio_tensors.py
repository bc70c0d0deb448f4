"""Every tensor of Gemma 4's audio encoder: what it is called, and what becomes of it before a graph sees it."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.models.audio_tensors import moved, over_time, projected_distances
from gemma_edge.converter.models.blocks import matrix, vector
from gemma_edge.converter.models.gemma4_encoders.audio_config import KERNEL, Config
from gemma_edge.converter.tensors import Derivation, Fold, Role, SourceTensor, TensorSpec

Floats = NDArray[np.float32]

FRONT: Final = "audio_tower.subsample_conv_projection."
OUTPUT: Final = "audio_tower.output_proj."
_KEY_SCALE: Final = math.log(1 + math.e) / math.log(2)  # Gemma4AudioAttention.k_scale


def layer_prefix(index: int) -> str:
    """What the names of one conformer layer begin with."""
    return f"audio_tower.layers.{index}."


def tensors(config: Config) -> Iterator[TensorSpec]:
    """In the order of use."""
    c = config
    inputs = 1
    for i, outputs in enumerate(c.channels):
        name = f"{FRONT}layer{i}.conv.weight"
        yield moved(name, (outputs, inputs, KERNEL, KERNEL), (0, 2, 3, 1))  # [O, I, T, F] -> [O, T, F, I]
        yield vector(f"{FRONT}layer{i}.norm.weight", outputs)
        inputs = outputs
    yield matrix(FRONT + "input_proj_linear.weight", c.width, c.feature_bins * inputs, Role.AUDIO)
    for index in range(c.layers):
        layer = layer_prefix(index)
        yield from _feed_forward(c, layer + "feed_forward1.")
        yield vector(layer + "norm_pre_attn.weight", c.width)
        yield from _attention(c, layer + "self_attn.")
        yield vector(layer + "norm_post_attn.weight", c.width)
        yield from _light_convolution(c, layer + "lconv1d.")
        yield from _feed_forward(c, layer + "feed_forward2.")
        yield vector(layer + "norm_out.weight", c.width)
    yield matrix(OUTPUT + "weight", c.output_width, c.width, Role.AUDIO)
    yield vector(OUTPUT + "bias", c.output_width)
    yield from c.embedder.tensors()


def _feed_forward(c: Config, p: str) -> Iterator[TensorSpec]:
    yield vector(p + "pre_layer_norm.weight", c.width)
    yield from c.linears.tensors(p + "ffw_layer_1", 4 * c.width, c.width)
    yield from c.linears.tensors(p + "ffw_layer_2", c.width, 4 * c.width)
    yield vector(p + "post_layer_norm.weight", c.width, Fold(mul=c.residual))  # post_layer_scale


def _attention(c: Config, p: str) -> Iterator[TensorSpec]:
    for name in ("q_proj", "k_proj", "v_proj"):
        yield from c.linears.tensors(p + name, c.width, c.width)
    scale = Derivation((SourceTensor(p + "per_dim_scale", (c.head_size,)),), _query_scale)
    yield TensorSpec.derived(p + "per_dim_scale", (c.head_size,), Role.NORM, scale)
    distances = p + "relative_k_proj.weight"
    projected = Derivation((SourceTensor(distances, (c.width, c.width)),), partial(_distances, past=c.past))
    shape = (1, c.heads, c.head_size, c.past + 1)
    yield TensorSpec.derived(distances, shape, Role.NORM, projected)
    yield from c.linears.tensors(p + "post", c.width, c.width)


def _light_convolution(c: Config, p: str) -> Iterator[TensorSpec]:
    yield vector(p + "pre_layer_norm.weight", c.width)
    yield from c.linears.tensors(p + "linear_start", 2 * c.width, c.width)
    name = p + "depthwise_conv1d.weight"
    kernel = Derivation((SourceTensor(name, (c.width, 1, c.kernel)),), over_time)
    yield TensorSpec.derived(name, (1, c.kernel, 1, c.width), Role.KERNEL, kernel)
    yield vector(p + "conv_norm.weight", c.width)
    yield from c.linears.tensors(p + "linear_end", c.width, c.width)


def _query_scale(stored: Floats) -> Floats:
    """softplus(w) / softplus(0) / sqrt(E), [E], times what keys are multiplied by (Gemma4AudioAttention)."""
    softplus = np.logaddexp(0.0, stored.astype(np.float64))
    scale: Floats = (softplus / math.log(2) / math.sqrt(stored.size) * _KEY_SCALE).astype(np.float32)
    return scale


def _distances(projection: Floats, past: int) -> Floats:
    """As Gemma 3n's; queries carry the keys' factor, which these do not have."""
    return projected_distances(projection, past) / np.float32(_KEY_SCALE)
