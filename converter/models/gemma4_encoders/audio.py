"""Gemma 4's audio encoder: mel frames through two convolutions and a conformer to one embedding for every 4 frames.

Source: transformers models/gemma4/modeling_gemma4.py, Gemma4AudioModel and Gemma4Model.get_audio_features. It is Gemma
3n's (models/audio.py) with a norm of each step alone in front, bounds of linear layers, and every step kept.

Shapes: B clips; T steps: mel frames, a quarter of them behind the convolutions, which are the N embeddings; D width,
H heads, E head size, F frequency bins, C channels.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from gemma_edge.converter.graph.audio import as_bool, as_float, every_nth, sliding_attention
from gemma_edge.converter.graph.conv import conv2d, depthwise
from gemma_edge.converter.graph.ops import ANY, Graph, Value
from gemma_edge.converter.models.gemma4_encoders.audio_config import STRIDE, Config
from gemma_edge.converter.models.gemma4_encoders.audio_tensors import FRONT, OUTPUT, layer_prefix, tensors
from gemma_edge.converter.tensors import TensorSpec

__all__ = ["Config", "graphs", "tensors"]

NORM_EPS: Final = 1e-6  # Gemma4RMSNorm's default: outside the light convolution, layers do not read rms_norm_eps


def graphs(config: Config, specs: Mapping[str, TensorSpec], in_one: bool) -> Iterator[Graph]:
    """An encoder, an adapter and a constant, as LiteRT-LM wants them; or both in one, as transformers.js does."""
    if in_one:
        yield _whole(config, specs)
    else:
        yield _encoder(config, specs)
        yield _adapter(config, specs)
        yield _end_of_audio(config, specs)


def _encoder(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """src_inputs [1, T, F], mask bool [1, T], true for frames of the clip -> features [1, N, D], mask bool [1, N].

    T is fixed. What lies behind the clip changes nothing: the result is that of the clip alone.
    """
    g = Graph("audio_encoder", c.frames, specs)
    mel = g.input("src_inputs", (1, c.frames, c.mel_bins))
    features, valid = _encode(g, c, mel, as_float(g, g.input("mask", (1, c.frames), "bool")))
    g.output("features", features)
    g.output("mask", as_bool(g, valid))
    return g


def _adapter(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """mask bool [1, N], features [1, N, D] -> mm_embedding [1, N, text width]. LiteRT-LM goes by this order.

    Where there is no sound, 0.
    """
    g = Graph("audio_adapter", c.embeddings, specs)
    valid = as_float(g, g.input("mask", (1, c.embeddings), "bool"))
    sound = c.embedder.embed(g, g.input("features", (1, c.embeddings, c.output_width)))
    g.output("mm_embedding", g.mul(sound, g.reshape(valid, (1, c.embeddings, 1))))
    return g


def _end_of_audio(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """Nothing -> eoa_embedding [1, 1, text width]."""
    g = Graph("end_of_audio", 1, specs)
    g.output("eoa_embedding", c.embedder.end(g))
    return g


def _whole(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """input_features [B, T, F], input_features_mask bool [B, T] -> audio_features [B, N, text width], mask bool [B, N].

    transformers' function for any B and T.
    """
    g = Graph("audio_encoder", ANY, specs)
    mel = g.input("input_features", (1, ANY, c.mel_bins))
    features, valid = _encode(g, c, mel, as_float(g, g.input("input_features_mask", (1, ANY), "bool")))
    g.output("audio_features", c.embedder.embed(g, features))
    g.output("mask", as_bool(g, valid))
    return g


def _encode(g: Graph, c: Config, mel: Value, valid: Value) -> tuple[Value, Value]:
    """[B, T, F], 1.0 or 0.0 [B, T] -> [B, T / 4, D], [B, T / 4]."""
    x, valid = _subsample(g, c, mel, valid)
    for index in range(c.layers):
        p = layer_prefix(index)
        x = _feed_forward(g, c, x, p + "feed_forward1.")
        y = _attention(g, c, g.rms_norm(x, p + "norm_pre_attn.weight", NORM_EPS), valid, p + "self_attn.")
        x = g.add(x, g.rms_norm(y, p + "norm_post_attn.weight", NORM_EPS))
        x = _light_convolution(g, c, x, p + "lconv1d.")
        x = _feed_forward(g, c, x, p + "feed_forward2.")
        x = g.rms_norm(x, p + "norm_out.weight", NORM_EPS)
    return g.add(g.linear(x, OUTPUT + "weight"), g.weight(OUTPUT + "bias")), valid


def _subsample(g: Graph, c: Config, mel: Value, valid: Value) -> tuple[Value, Value]:
    """[B, T, F], [B, T] -> [B, T / 4, D], [B, T / 4]."""
    x = g.reshape(mel, (1, mel.shape[1], c.mel_bins, 1))  # [B, T, F, C]
    for i in range(len(c.channels)):
        x = g.mul(x, g.reshape(valid, (1, x.shape[1], 1, 1)))
        x = conv2d(g, x, f"{FRONT}layer{i}.conv.weight", (STRIDE, STRIDE), ((1, 1), (1, 1)))
        difference = g.sub(x, g.mean(x))
        x = g.relu(g.rms_norm(difference, f"{FRONT}layer{i}.norm.weight", c.eps))  # which makes a layer norm of it
        valid = every_nth(g, valid, STRIDE)
    x = g.reshape(x, (1, x.shape[1], x.shape[2] * x.shape[3]))
    return g.linear(x, FRONT + "input_proj_linear.weight"), valid


def _feed_forward(g: Graph, c: Config, x: Value, p: str) -> Value:
    """[B, T, D], same shape; the weight of the half step is in the last norm."""
    y = g.rms_norm(x, p + "pre_layer_norm.weight", NORM_EPS)
    y = _silu(g, c.linears.linear(g, y, p + "ffw_layer_1"))  # [B, T, 4 * D]
    return g.add(x, g.rms_norm(c.linears.linear(g, y, p + "ffw_layer_2"), p + "post_layer_norm.weight", NORM_EPS))


def _attention(g: Graph, c: Config, x: Value, valid: Value, p: str) -> Value:
    """[B, T, D], [B, T] -> [B, T, D]. What keys are multiplied by is in the queries, and out of the distances."""
    split = (1, x.shape[1], c.heads, c.head_size)  # [B, T, D] -> [B, T, H, E]
    q, k, v = (g.reshape(c.linears.linear(g, x, p + name), split) for name in ("q_proj", "k_proj", "v_proj"))
    q = g.mul(q, g.weight(p + "per_dim_scale"))
    y = sliding_attention(g, q, k, v, p + "relative_k_proj.weight", valid, c.score_cap)
    return c.linears.linear(g, g.reshape(y, x.shape), p + "post")


def _light_convolution(g: Graph, c: Config, x: Value, p: str) -> Value:
    """[B, T, D], same shape: a gate, a causal convolution of each channel over time."""
    y = c.linears.linear(g, g.rms_norm(x, p + "pre_layer_norm.weight", c.eps), p + "linear_start")  # [B, T, 2 * D]
    y = g.mul(g.slice(y, 2, 0, c.width), g.sigmoid(g.slice(y, 2, c.width, c.width)))
    y = g.reshape(y, (1, x.shape[1], 1, c.width))
    y = depthwise(g, y, p + "depthwise_conv1d.weight", (1, 1), ((c.kernel - 1, 0), (0, 0)))
    y = g.rms_norm(g.reshape(y, x.shape), p + "conv_norm.weight", c.eps)
    return g.add(x, c.linears.linear(g, _silu(g, y), p + "linear_end"))


def _silu(g: Graph, x: Value) -> Value:
    return g.mul(x, g.sigmoid(x))
