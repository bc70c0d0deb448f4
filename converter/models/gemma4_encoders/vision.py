"""Gemma 4's vision encoder: patches of an image of any shape through a transformer to at most so many embeddings.

Source: transformers models/gemma4/modeling_gemma4.py, Gemma4VisionModel and Gemma4Model.get_image_features;
image_processing_gemma4.py for what a patch is.

Shapes: B images; N patches, a number of which an image has as many as its shape allows, the rest padding; M = N / P^2
embeddings, where P is pooling_kernel_size; D width, H heads, E head size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.graph.audio import as_bool, as_float
from gemma_edge.converter.graph.ops import ANY, Graph, Value
from gemma_edge.converter.graph.patch import axial_angles, full_attention, pooling_weights, position_rows, turn
from gemma_edge.converter.models.blocks import matrix, vector
from gemma_edge.converter.models.fields import LARGEST_REPEAT, ConfigError, Fields
from gemma_edge.converter.models.gemma4_encoders.common import Clipped, Embedder
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.tensors import Derivation, Role, SourceTensor, TensorSpec

Floats = NDArray[np.float32]

PREFIX: Final = "vision_tower."
INPUT: Final = PREFIX + "patch_embedder.input_proj.weight"
TABLE: Final = PREFIX + "patch_embedder.position_embedding_table"
STANDARD: Final = (PREFIX + "std_bias", PREFIX + "std_scale")
NORMS: Final = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
CHANNELS: Final = 3
HIDDEN: Final = 1e9  # taken from a score that must not count: exp of it is 0


@dataclass(frozen=True)
class Config:
    """The numbers that decide what is computed."""

    width: int  # D
    ffn_width: int
    layers: int
    heads: int  # H
    head_size: int  # E
    eps: float
    theta: float
    pool: int  # P
    patch: int  # pixels, down and across
    stored_positions: int  # columns, and rows, that a table has rows for
    linears: Clipped
    is_standardized: bool
    tokens: int  # M, at most
    embedder: Embedder

    def __post_init__(self) -> None:
        if self.head_size % 4:
            raise ConfigError(
                f"config.json: vision head_dim is {self.head_size}, expected a multiple of 4; fix the checkpoint"
            )
        if self.most_positions > self.stored_positions:
            raise ConfigError(
                f"config.json: vision position_embedding_size is {self.stored_positions}, an image of {self.tokens} "
                f"tokens has up to {self.most_positions} patches in a row; fix max_soft_tokens"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any], settings: MediaSettings) -> "Config":
        """Read config.json of a Gemma 4 with a vision_config; raises ConfigError for what would give other numbers."""
        f, text = Fields(values["vision_config"]), Fields(values["text_config"])
        f.expect("hidden_activation", ("gelu_pytorch_tanh",))
        f.expect("attention_bias", (False, None))
        text.expect("use_bidirectional_attention", (None,))  # "vision": patches would see those that follow
        heads = f.positive("num_attention_heads", 12)
        f.expect("num_key_value_heads", (heads,) if f.has("num_key_value_heads") else (12,))
        rope = Fields(f.nested("rope_parameters"), "config.json: vision rope_parameters")
        rope.expect("rope_type", ("axial", "default"))
        width, eps = f.positive("hidden_size", 768), f.number("rms_norm_eps", 1e-6)
        pool, patch = f.positive("pooling_kernel_size", 3), f.positive("patch_size", 16)
        return cls(
            width=width,
            ffn_width=f.positive("intermediate_size", 3072),
            layers=f.positive("num_hidden_layers", 16, LARGEST_REPEAT),
            heads=heads,
            head_size=f.positive("head_dim", 64),
            eps=eps,
            theta=rope.number("rope_theta", 100.0),
            pool=pool,
            patch=patch,
            stored_positions=f.positive("position_embedding_size", 10 * 1024),
            linears=Clipped(Role.VISION, f.flag("use_clipped_linears", False)),
            is_standardized=f.flag("standardize", False),
            tokens=settings.soft_tokens(patch, pool),
            embedder=Embedder.of("vision", width, eps, values),
        )

    @property
    def patches(self) -> int:
        """N, at most."""
        return self.tokens * self.pool**2

    @property
    def inputs(self) -> int:
        """Patches."""
        return self.patches

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of an image."""
        return self.patches, self.patch_values

    @property
    def patch_values(self) -> int:
        """Of a patch: its pixels' channels, row by row."""
        return self.patch**2 * CHANNELS

    @property
    def most_positions(self) -> int:
        """Patches of the longest row that an image can have: one embedding high."""
        return self.tokens * self.pool


# ---------------------------------------------------------------- tensors


def tensors(config: Config) -> Iterator[TensorSpec]:
    """Every tensor of the encoder and its adapter, in the order of use."""
    c = config
    yield matrix(INPUT, c.width, c.patch_values, Role.VISION)
    stored = SourceTensor(TABLE, (2, c.stored_positions, c.width))
    rows = Derivation((stored,), partial(_first_rows, count=c.most_positions))
    yield TensorSpec.derived(TABLE, (2 * c.most_positions, c.width), Role.KERNEL, rows)
    for index in range(c.layers):
        p = _layer(index)
        for norm in NORMS:
            yield vector(f"{p}{norm}.weight", c.width)
        for name in ("q_proj", "k_proj", "v_proj"):
            yield from c.linears.tensors(f"{p}self_attn.{name}", c.heads * c.head_size, c.width)
        yield from c.linears.tensors(p + "self_attn.o_proj", c.width, c.heads * c.head_size)
        yield vector(p + "self_attn.q_norm.weight", c.head_size)
        yield vector(p + "self_attn.k_norm.weight", c.head_size)
        yield from c.linears.tensors(p + "mlp.gate_proj", c.ffn_width, c.width)
        yield from c.linears.tensors(p + "mlp.up_proj", c.ffn_width, c.width)
        yield from c.linears.tensors(p + "mlp.down_proj", c.width, c.ffn_width)
    if c.is_standardized:
        for name in STANDARD:
            yield vector(name, c.width)
    yield from c.embedder.tensors()


def _layer(index: int) -> str:
    return f"{PREFIX}encoder.layers.{index}."


def _first_rows(table: Floats, count: int) -> Floats:
    """Of [2, P, D] those that an image reaches, [2 * count, D]: of 10240 official ones, 840."""
    return np.ascontiguousarray(table[:, :count]).reshape(2 * count, -1)


# ---------------------------------------------------------------- graphs


def graphs(config: Config, specs: Mapping[str, TensorSpec], in_one: bool) -> Iterator[Graph]:
    """An encoder, an adapter and a constant, as LiteRT-LM wants them; or both in one, as transformers.js does."""
    if in_one:
        yield _whole(config, specs)
    else:
        yield _encoder(config, specs)
        yield _adapter(config, specs)
        yield _end_of_image(config, specs)


def _encoder(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """images [1, N, 3 * patch^2] in [0, 1], positions_xy int32 [1, N, 2] -> features [1, M, D], mask bool [1, M].

    A patch that only pads has the position (-1, -1); true are the embeddings of the others, which come first.
    """
    g = Graph("vision_encoder", c.patches, specs)
    patches = g.input("images", (1, c.patches, c.patch_values))
    features, valid = _encode(g, c, patches, g.input("positions_xy", (1, c.patches, 2), "int32"))
    g.output("features", features)
    g.output("mask", as_bool(g, valid))
    return g


def _adapter(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """features [1, M, D] -> mm_embedding [1, M, text width]."""
    g = Graph("vision_adapter", c.tokens, specs)
    g.output("mm_embedding", c.embedder.embed(g, g.input("features", (1, c.tokens, c.width))))
    return g


def _end_of_image(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """Nothing -> eoi_embedding [1, 1, text width]."""
    g = Graph("end_of_vision", 1, specs)
    g.output("eoi_embedding", c.embedder.end(g))
    return g


def _whole(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """pixel_values [B, N, 3 * patch^2] in [0, 1], pixel_position_ids [B, N, 2] -> image_features [B, M, text width].

    mask: bool [B, M], which of them are there.
    """
    g = Graph("vision_encoder", ANY, specs)
    patches = g.input("pixel_values", (1, ANY, c.patch_values))
    features, valid = _encode(g, c, patches, g.input("pixel_position_ids", (1, ANY, 2), "int32"))
    g.output("image_features", c.embedder.embed(g, features))
    g.output("mask", as_bool(g, valid))
    return g


def _encode(g: Graph, c: Config, patches: Value, positions: Value) -> tuple[Value, Value]:
    """[B, N, 3 * patch^2], int32 [B, N, 2] -> [B, M, D], 1.0 or 0.0 [B, M]."""
    valid = g.minimum(g.maximum(g.add(g.slice(as_float(g, positions), 2, 0, 1), 1.0), 0.0), 1.0)  # [B, N, 1]
    bias = g.reshape(g.mul(g.sub(valid, 1.0), HIDDEN), positions.shape[:2])
    angles = axial_angles(g, positions, c.theta, c.head_size)
    cos, sin = g.unary("cos", angles), g.unary("sin", angles)
    x = g.linear(g.sub(g.mul(patches, 2.0), 1.0), INPUT)
    x = g.add(x, position_rows(g, positions, TABLE))
    for index in range(c.layers):
        p = _layer(index)
        y = _attention(g, c, _norm(g, c, x, p + NORMS[0]), p + "self_attn.", (cos, sin, bias))
        x = g.add(x, _norm(g, c, y, p + NORMS[1]))
        y = _feed_forward(g, c, _norm(g, c, x, p + NORMS[2]), p + "mlp.")
        x = g.add(x, _norm(g, c, y, p + NORMS[3]))
    weights = pooling_weights(g, positions, c.pool)
    pooled = g.mul(g.matmul(weights, g.mul(x, valid)), c.width**0.5)
    if c.is_standardized:
        pooled = g.mul(g.sub(pooled, g.weight(STANDARD[0])), g.weight(STANDARD[1]))
    present = g.matmul(weights, valid)  # [B, M, 1]
    return pooled, g.reshape(present, present.shape[:2])


def _attention(g: Graph, c: Config, x: Value, p: str, places: tuple[Value, Value, Value]) -> Value:
    """[B, N, D], same shape: every patch sees every other. places: cos and sin of its angles, bias of its score."""
    cos, sin, bias = places
    split = (*x.shape[:2], c.heads, c.head_size)
    q, k, v = (g.reshape(c.linears.linear(g, x, p + name), split) for name in ("q_proj", "k_proj", "v_proj"))
    q, k = (turn(g, _norm(g, c, y, p + name), cos, sin) for y, name in ((q, "q_norm"), (k, "k_norm")))
    y = full_attention(g, q, k, g.rms_norm(v, None, c.eps), bias)
    return c.linears.linear(g, g.reshape(y, (*x.shape[:2], c.heads * c.head_size)), p + "o_proj")


def _feed_forward(g: Graph, c: Config, x: Value, p: str) -> Value:
    """[B, N, D], same shape."""
    gate = g.gelu(c.linears.linear(g, x, p + "gate_proj"))
    return c.linears.linear(g, g.mul(gate, c.linears.linear(g, x, p + "up_proj")), p + "down_proj")


def _norm(g: Graph, c: Config, x: Value, name: str) -> Value:
    return g.rms_norm(x, f"{name}.weight", c.eps)
