"""Gemma 3n's audio encoder: mel frames through two convolutions and a conformer to one embedding for every 16 frames.

Source: transformers models/gemma3n/modeling_gemma3n.py, Gemma3nAudioEncoder and Gemma3nModel.forward. It is the encoder
of the Universal Speech Model (arXiv 2303.01037): a conformer (arXiv 2005.08100) that looks back only.

Shapes: B clips; T steps: mel frames, a quarter of them behind the convolutions, a sixteenth at the end; D width,
H heads, E head size, F frequency bins, C channels, N embeddings for the decoder.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from gemma_edge.converter.graph.audio import as_bool, as_float, cumulative_norm, every_nth, pad_rows, sliding_attention
from gemma_edge.converter.graph.conv import conv2d, depthwise
from gemma_edge.converter.graph.ops import ANY, Graph, Value
from gemma_edge.converter.models.audio_config import Config
from gemma_edge.converter.models.audio_tensors import FRONT, layer_prefix, tensors
from gemma_edge.converter.tensors import TensorSpec

__all__ = ["Config", "graphs", "tensors"]

NORM_EPS: Final = (
    1e-6  # Gemma3nRMSNorm's default: outside the light convolution, the conformer does not read rms_norm_eps
)


def graphs(config: Config, specs: Mapping[str, TensorSpec], in_one: bool) -> Iterator[Graph]:
    """An encoder, an adapter and a constant, as LiteRT-LM wants them; or all in one, as transformers.js does."""
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
    valid = as_float(g, g.input("mask", (1, c.frames), "bool"))
    features, valid = _encode(g, c, mel, valid)
    g.output("features", features)
    g.output("mask", as_bool(g, valid))
    return g


def _adapter(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """mask bool [1, N], features [1, N, D] -> mm_embedding [1, N, text width]. LiteRT-LM goes by this order."""
    g = Graph("audio_adapter", c.embeddings, specs)
    valid = as_float(g, g.input("mask", (1, c.embeddings), "bool"))
    features = g.input("features", (1, c.embeddings, c.width))
    g.output("mm_embedding", _embed(g, c, features, valid))
    return g


def _end_of_audio(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """Nothing -> eoa_embedding [1, 1, text width]."""
    g = Graph("end_of_audio", 1, specs)
    g.output("eoa_embedding", g.reshape(g.weight("embed_audio.end_of_audio"), (1, 1, c.embedder.text_width)))
    return g


def _whole(c: Config, specs: Mapping[str, TensorSpec]) -> Graph:
    """input_features [B, T, F], input_features_mask bool [B, T] -> audio_features [B, N, text width].

    transformers' function for any B and T: in a batch of clips, the convolutions see what pads the shorter ones.
    """
    g = Graph("audio_encoder", ANY, specs)
    mel = g.input("input_features", (1, ANY, c.mel_bins))
    valid = as_float(g, g.input("input_features_mask", (1, ANY), "bool"))
    features, valid = _encode(g, c, mel, valid)
    features, valid = pad_rows(g, features, c.embeddings), pad_rows(g, valid, c.embeddings)
    g.output("audio_features", _embed(g, c, features, valid))
    return g


def _embed(g: Graph, c: Config, features: Value, valid: Value) -> Value:
    """[B, N, D], [B, N] -> [B, N, text width]; where there is no sound, the embedding that pads."""
    present = _per_step(g, valid)
    sound = g.mul(c.embedder.embed(g, features), present)
    return g.add(sound, g.mul(g.sub(1.0, present), g.weight("embed_audio.padding")))


def _encode(g: Graph, c: Config, mel: Value, valid: Value) -> tuple[Value, Value]:
    """[B, T, F], 1.0 or 0.0 [B, T] -> [B, T / 16, D], [B, T / 16]."""
    x, valid = _subsample(g, c, mel, valid)  # [B, T / 4, D]
    for index in range(c.layers):
        p = layer_prefix(index)
        x = _feed_forward(g, x, p + "ffw_layer_start.")
        x = _attention(g, c, x, valid, p + "attention.")
        x = _light_convolution(g, c, g.mul(x, _per_step(g, valid)), p + "lconv1d.")
        x = _feed_forward(g, x, p + "ffw_layer_end.")
        x = g.rms_norm(x, p + "norm.weight", NORM_EPS)
    x, valid = every_nth(g, x, c.reduction), every_nth(g, valid, c.reduction)
    return g.mul(x, _per_step(g, valid)), valid


def _subsample(g: Graph, c: Config, mel: Value, valid: Value) -> tuple[Value, Value]:
    """[B, T, F], [B, T] -> [B, T / 4, D], [B, T / 4]: two convolutions, each step of which sees frames that follow."""
    x = g.reshape(mel, (1, mel.shape[1], c.mel_bins, 1))  # [B, T, F, C]
    for i, convolution in enumerate(c.convolutions):
        if g.tokens != ANY:
            x = g.mul(x, g.reshape(valid, (1, x.shape[1], 1, 1)))  # as the zeros that pad a clip which is alone
        padding = ((0, convolution.kernel[0] - 1), (1, 1))
        x = conv2d(g, x, f"{FRONT}conv_{i}.conv.weight", convolution.stride, padding)
        x = g.relu(cumulative_norm(g, x, f"{FRONT}conv_{i}.norm.weight", c.convolution_eps))
        valid = every_nth(g, valid, convolution.stride[0])
    x = g.reshape(x, (1, x.shape[1], x.shape[2] * x.shape[3]))
    return g.linear(x, FRONT + "input_proj_linear.weight"), valid


def _feed_forward(g: Graph, x: Value, p: str) -> Value:
    """[B, T, D], same shape; the weight of the half step is in the last norm."""
    y = g.rms_norm(x, p + "pre_layer_norm.weight", NORM_EPS)
    y = _silu(g, g.linear(y, p + "ffw_layer_1.weight"))  # [B, T, 4 * D]
    return g.add(x, g.rms_norm(g.linear(y, p + "ffw_layer_2.weight"), p + "post_layer_norm.weight", NORM_EPS))


def _attention(g: Graph, c: Config, x: Value, valid: Value, p: str) -> Value:
    """[B, T, D], [B, T] -> [B, T, D].

    conf_attention_chunk_size is how transformers cuts time for speed; each step sees itself and `past` before it.
    """
    y = g.rms_norm(x, p + "pre_attn_norm.weight", NORM_EPS)
    split = (1, x.shape[1], c.heads, c.head_size)  # [B, T, D] -> [B, T, H, E]
    q, k, v = (g.reshape(g.linear(y, f"{p}attn.{name}.weight"), split) for name in ("q_proj", "k_proj", "v_proj"))
    q = g.mul(q, g.weight(p + "attn.per_dim_scale"))
    distances = p + "attn.relative_position_embedding.pos_proj.weight"
    y = g.reshape(sliding_attention(g, q, k, v, distances, valid, c.score_cap), x.shape)
    return g.add(x, g.rms_norm(g.linear(y, p + "post.weight"), p + "post_norm.weight", NORM_EPS))


def _light_convolution(g: Graph, c: Config, x: Value, p: str) -> Value:
    """[B, T, D], same shape: a gate, a causal convolution of each channel over time."""
    y = g.linear(g.rms_norm(x, p + "pre_layer_norm.weight", c.eps), p + "linear_start.weight")  # [B, T, 2 * D]
    y = g.mul(g.slice(y, 2, 0, c.width), g.sigmoid(g.slice(y, 2, c.width, c.width)))
    y = g.reshape(y, (1, x.shape[1], 1, c.width))
    y = depthwise(g, y, p + "depthwise_conv1d.weight", (1, 1), ((c.kernel - 1, 0), (0, 0)))
    y = g.rms_norm(g.reshape(y, x.shape), p + "conv_norm.weight", c.eps)
    return g.add(x, g.linear(_silu(g, y), p + "linear_end.weight"))


def _silu(g: Graph, x: Value) -> Value:
    return g.mul(x, g.sigmoid(x))


def _per_step(g: Graph, valid: Value) -> Value:
    """[B, T] -> [B, T, 1]."""
    return g.reshape(valid, (1, valid.shape[1], 1))
