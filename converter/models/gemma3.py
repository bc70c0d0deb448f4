"""Gemma 3 text models (1B, 270M and the text part of larger ones).

Source: transformers models/gemma3/modeling_gemma3.py; paper arXiv 2503.19786.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from gemma_edge.converter.graph.ops import Graph, Rope, Value
from gemma_edge.converter.models import blocks
from gemma_edge.converter.models.blocks import AttentionLayer, Heads
from gemma_edge.converter.models.fields import LARGEST_REPEAT, Fields
from gemma_edge.converter.models.questions import Names, Wrong, wrong_attention
from gemma_edge.converter.tensors import Fold, TensorSpec

FAMILY: Final = "gemma3"
MODEL_TYPES = ("gemma3_text", "gemma3")
MULTIMODAL_TYPES: tuple[str, ...] = ()  # whose encoders can be converted
ENCODERS: Final = ""  # which they are, see encoders.py
NAMES: Final = Names(
    litert="gemma3", onnx_architecture="Gemma3ForCausalLM", onnx_model_type="gemma3_text", genai="gemma3_text"
)

PLUS_ONE = Fold(add=1.0)  # Gemma 3 stores w - 1 in every norm; Gemma 3n stores w

NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class Config:
    """The numbers of config.json that decide the computation."""

    vocab_size: int
    width: int  # D
    ffn_width: int
    eps: float
    query_scale: float
    softcap: float | None
    tied_head: bool
    max_context_tokens: int
    attention: tuple[AttentionLayer, ...]  # one per layer

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Config":
        """Read the text config; raises ConfigError for anything that would give other numbers."""
        f = Fields(values)
        f.expect("hidden_activation", ("gelu_pytorch_tanh",))
        f.expect("attention_bias", (False,))
        f.expect("attn_logit_softcapping", (None,))
        f.expect("use_bidirectional_attention", (False, None))
        layers = f.positive("num_hidden_layers", 26, LARGEST_REPEAT)
        window = f.positive("sliding_window", 4096)
        heads = Heads(
            f.positive("num_attention_heads", 8), f.positive("num_key_value_heads", 4), f.positive("head_dim", 256)
        )
        kinds = {
            "sliding_attention": AttentionLayer(Rope(*f.rope("sliding_attention", 10_000.0)), window, heads),
            "full_attention": AttentionLayer(Rope(*f.rope("full_attention", 1_000_000.0)), None, heads),
        }
        types = f.layer_types(layers, f.positive("sliding_window_pattern", 6))
        return cls(
            vocab_size=f.positive("vocab_size", 262_208),
            width=f.positive("hidden_size", 2304),
            ffn_width=f.positive("intermediate_size", 9216),
            eps=f.number("rms_norm_eps", 1e-6),
            query_scale=f.number("query_pre_attn_scalar", 256) ** -0.5,
            softcap=f.optional_number("final_logit_softcapping"),
            tied_head=f.flag("tie_word_embeddings", True),
            max_context_tokens=f.positive("max_position_embeddings", 131_072),
            attention=tuple(kinds[kind] for kind in types),
        )

    @property
    def kv_layers(self) -> int:
        """Every layer has its own."""
        return len(self.attention)

    @property
    def residual_streams(self) -> int:
        """One."""
        return 1

    @property
    def ple_values(self) -> int:
        """None."""
        return 0

    def kv_source(self, layer: int) -> int:
        """The layer itself."""
        return layer

    def unused_tensors(self) -> Iterator[str]:
        """None."""
        return iter(())

    def wrong(self) -> Iterator[tuple[Wrong, "Config"]]:
        """See questions.py."""
        if self.softcap:
            yield Wrong.SOFTCAP, replace(self, softcap=None)
        for mistake, attention in wrong_attention(self.attention):
            yield mistake, replace(self, attention=attention)


def tensors(config: Config) -> Iterator[TensorSpec]:
    """Every tensor of the model, in the order of use."""
    c = config
    yield from blocks.vocabulary_tensors(c.vocab_size, c.width, c.tied_head)
    for i, attention in enumerate(c.attention):
        layer = f"layers.{i}."
        for norm in NORMS:
            yield blocks.vector(f"{layer}{norm}.weight", c.width, PLUS_ONE)
        # The attention scale rides on q's norm: RoPE is linear, so it commutes.
        q_norm = Fold(add=1.0, mul=c.query_scale)
        yield from blocks.attention_tensors(layer, c.width, attention.heads, True, q_norm, PLUS_ONE)
        yield from blocks.mlp_tensors(layer, c.width, c.ffn_width)
    yield blocks.vector("norm.weight", c.width, PLUS_ONE)


def decoder(
    config: Config,
    specs: Mapping[str, TensorSpec],
    name: str,
    tokens: int,
    with_logits: bool,
    every_row: bool = False,
) -> Graph:
    """embeddings [1, T, D] -> logits [1, 1, V] of the last token, or only the KV cache.

    every_row: logits [1, T, V]. Without logits the graph stops at the last layer's keys.
    """
    c = config
    g = Graph(name, tokens, specs)
    x = g.input("embeddings", (1, tokens, c.width))
    for i, attention in enumerate(c.attention):
        layer = f"layers.{i}."

        def norm(y: Value, which: str, layer: str = layer) -> Value:
            return g.rms_norm(y, f"{layer}{which}.weight", c.eps)

        h = norm(x, "input_layernorm")
        kv = blocks.keys_and_values(g, h, i, attention, c.eps, norm_values=False)
        if not with_logits and i == len(c.attention) - 1:
            return g
        y = blocks.attend(g, h, i, attention, c.eps, kv)
        x = g.add(x, norm(y, "post_attention_layernorm"))
        h = norm(x, "pre_feedforward_layernorm")
        gate, up = g.linear(h, layer + "mlp.gate_proj.weight"), g.linear(h, layer + "mlp.up_proj.weight")
        y = g.linear(g.mul(g.gelu(gate), up), layer + "mlp.down_proj.weight")
        x = g.layers[i] = g.add(x, norm(y, "post_feedforward_layernorm"))
    x = x if every_row else g.last_token(x)
    g.output("logits", blocks.logits(g, g.rms_norm(x, "norm.weight", c.eps), c.softcap))
    return g


def lookups(config: Config, specs: Mapping[str, TensorSpec], tokens: int) -> Iterator[Graph]:
    """The tables that are read by row, outside the decoder."""
    yield blocks.lookup("embedder", specs, tokens, "embed_tokens.weight", (config.width,))
