"""Gemma 4 text decoder (E2B, E4B): per-layer embeddings, shared KV, wider heads where attention sees all of the past.

Source: transformers models/gemma4/modeling_gemma4.py and configuration_gemma4.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from gemma_edge.converter.graph.ops import Graph, KVCache, Rope, Value
from gemma_edge.converter.models import blocks
from gemma_edge.converter.models.blocks import AttentionLayer, Heads
from gemma_edge.converter.models.fields import LARGEST_REPEAT, ConfigError, Fields
from gemma_edge.converter.models.questions import Names, Wrong, wrong_attention
from gemma_edge.converter.tensors import AS_STORED, Role, TensorSpec

FAMILY: Final = "gemma4"
MODEL_TYPES = ("gemma4_text", "gemma4")
MULTIMODAL_TYPES = ("gemma4",)  # whose encoders can be converted
ENCODERS: Final = "gemma4"  # which they are, see encoders.py
NAMES: Final = Names(
    litert="gemma4",
    onnx_architecture="Gemma4ForConditionalGeneration",
    onnx_model_type="gemma4",
    onnx_text_type="gemma4_text",
    template="gemma4",
    processor="Gemma4Processor",
    audio_features="Gemma4AudioFeatureExtractor",
)

NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
FULL: Final = "full_attention"
OTHER_SIZES = ("attention_k_eq_v", "enable_moe_block")  # of 26B-A4B and 31B
PER_LAYER = frozenset(("head_dim", "num_key_value_heads"))


@dataclass(frozen=True)
class Config:
    """The numbers of config.json that decide the computation."""

    vocab_size: int
    ple_vocab_size: int
    ple_width: int  # P; 0 without per-layer embeddings
    width: int  # D
    ffn_widths: tuple[int, ...]  # per layer
    eps: float
    softcap: float | None
    tied_head: bool
    max_context_tokens: int
    attention: tuple[AttentionLayer, ...]  # one per layer
    kv_layers: int  # the first kv_layers own their KV; each later one shares with the last owner of its kind

    def __post_init__(self) -> None:
        blocks.check_owners(self.attention, self.kv_layers)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Config":
        """Read the text config; raises ConfigError for anything that would give other numbers."""
        f = Fields(values)
        f.expect("hidden_activation", ("gelu_pytorch_tanh",))
        f.expect("use_bidirectional_attention", (None, "vision"))  # text sees the past alone in both
        for key in ("attention_bias", *OTHER_SIZES):
            f.expect(key, (False,))
        layers = f.positive("num_hidden_layers", 30, LARGEST_REPEAT)
        shared = f.count("num_kv_shared_layers", 0)
        if shared >= layers:
            raise ConfigError(
                f"config.json: num_kv_shared_layers is {shared}, expected less than the {layers} layers; "
                "fix the checkpoint"
            )
        types = (*f.layer_types(layers, 6)[:-1], FULL)  # as Gemma4TextConfig has it, whatever config.json says
        ffn = f.positive("intermediate_size", 9216)
        wide = 2 if f.flag("use_double_wide_mlp", False) else 1
        kinds = kinds_of(f, types)
        return cls(
            vocab_size=f.positive("vocab_size", 262_144),
            ple_vocab_size=f.positive("vocab_size_per_layer_input", 262_144),
            ple_width=f.count("hidden_size_per_layer_input", 256),
            width=f.positive("hidden_size", 2304),
            ffn_widths=(ffn,) * (layers - shared) + (wide * ffn,) * shared,
            eps=f.number("rms_norm_eps", 1e-6),
            softcap=f.optional_number("final_logit_softcapping"),
            tied_head=f.flag("tie_word_embeddings", True),
            max_context_tokens=f.positive("max_position_embeddings", 131_072),
            attention=tuple(kinds[kind] for kind in types),
            kv_layers=layers - shared,
        )

    def kv_source(self, layer: int) -> int:
        """The layer whose keys and values `layer` reads: itself, or the last KV-owning layer of its own kind."""
        return blocks.owner_of(layer, self.attention, self.kv_layers)

    @property
    def ffn_width(self) -> int:
        """Of the widest layer."""
        return max(self.ffn_widths)

    @property
    def residual_streams(self) -> int:
        """One."""
        return 1

    @property
    def ple_values(self) -> int:
        """Of all layers."""
        return len(self.attention) * self.ple_width

    def unused_tensors(self) -> Iterator[str]:
        """Keys and values of layers that read another's, which transformers passes over as well."""
        yield from blocks.kv_names(range(self.kv_layers, len(self.attention)))

    def wrong(self) -> Iterator[tuple[Wrong, "Config"]]:
        """See questions.py."""
        if self.softcap:
            yield Wrong.SOFTCAP, replace(self, softcap=None)
        if self.kv_layers < len(self.attention):
            yield Wrong.UNSHARED, replace(self, kv_layers=len(self.attention))
            if len({layer.heads for layer in self.attention}) == 1:  # heads of another size cannot be read by mistake
                values = {field.name: getattr(self, field.name) for field in fields(self)}
                yield Wrong.OTHER_OWNER, _LastOwner(**values)
        for mistake, attention in wrong_attention(self.attention):
            yield mistake, replace(self, attention=attention)


class _LastOwner(Config):
    """A mistake: every sharing layer reads the last layer that owns keys and values, whatever its kind."""

    def kv_source(self, layer: int) -> int:
        return min(layer, self.kv_layers - 1)


def kinds_of(f: Fields, types: tuple[str, ...]) -> dict[str, AttentionLayer]:
    """By layer_types' names. Heads have one size for each, in either spelling of config.json."""
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        FULL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
    }
    default = {FULL: {"head_dim": f.positive("global_head_dim", 512)}}
    overrides = _overrides(f, types) if f.has("per_layer_config") else default
    query, kv, size = (
        f.positive(key, usual)
        for key, usual in (("num_attention_heads", 8), ("num_key_value_heads", 4), ("head_dim", 256))
    )
    kinds = {}
    for kind in dict.fromkeys(types):
        own = Fields(overrides.get(kind, {}), "config.json: per_layer_config")
        heads = Heads(query, own.positive("num_key_value_heads", kv), own.positive("head_dim", size))
        window = None if kind == FULL else f.positive("sliding_window", 512)
        kinds[kind] = AttentionLayer(Rope(*f.proportional_rope(kind, ropes[kind])), window, heads)
    return kinds


def _overrides(f: Fields, types: tuple[str, ...]) -> dict[str, Mapping[str, Any]]:
    """per_layer_config by kind of layer; transformers 5.23 writes it by the number of a layer, "05"."""
    given = {str(number).lstrip("0") or "0": own for number, own in f.nested("per_layer_config").items()}
    if strange := given.keys() - set(map(str, range(len(types)))):
        raise ConfigError(
            f"config.json: per_layer_config has {min(strange)[:60]!r}, expected numbers of the {len(types)} layers; "
            "fix the checkpoint"
        )
    found: dict[str, Mapping[str, Any]] = {}
    for number, kind in enumerate(types):
        own = given.get(str(number), {})
        if not isinstance(own, Mapping) or own.keys() - PER_LAYER or found.setdefault(kind, own) != own:
            raise ConfigError(
                f"config.json: per_layer_config is {str(own)[:60]} for layer {number}, expected "
                f"{' and '.join(sorted(PER_LAYER))}, the same in every layer of {kind}; this model needs new code"
            )
    return found


def tensors(config: Config) -> Iterator[TensorSpec]:
    """Every tensor of the model, in the order of use."""
    c = config
    width, ple = c.width, c.ple_width
    yield from blocks.vocabulary_tensors(c.vocab_size, width, c.tied_head)
    if ple:
        yield from blocks.per_layer_tensors(c.ple_vocab_size, len(c.attention), ple, width)
    for i, attention in enumerate(c.attention):
        layer = f"layers.{i}."
        for norm in NORMS:
            yield blocks.vector(f"{layer}{norm}.weight", width)
        yield from blocks.attention_tensors(layer, width, attention.heads, i < c.kv_layers, AS_STORED, AS_STORED)
        yield from blocks.mlp_tensors(layer, width, c.ffn_widths[i])
        if ple:
            yield blocks.matrix(layer + "per_layer_input_gate.weight", ple, width, Role.SMALL)
            yield blocks.matrix(layer + "per_layer_projection.weight", width, ple, Role.SMALL)
            yield blocks.vector(layer + "post_per_layer_input_norm.weight", width)
        yield blocks.vector(layer + "layer_scalar", 1)
    yield blocks.vector("norm.weight", width)


def decoder(
    config: Config,
    specs: Mapping[str, TensorSpec],
    name: str,
    tokens: int,
    with_logits: bool,
    every_row: bool = False,
) -> Graph:
    """embeddings [1, T, D], per_layer_embeddings [1, T, L, P] -> logits [1, 1, V] of the last token, or only the cache.

    every_row: logits [1, T, V]. Without logits the graph stops at the keys and values of the last layer that owns any:
    for E2B 15 of 35 layers.
    """
    c = config
    g = Graph(name, tokens, specs)
    x = g.input("embeddings", (1, tokens, c.width))
    per_layer = None
    if c.ple_width:
        ple = g.input("per_layer_embeddings", (1, tokens, len(c.attention), c.ple_width))
        per_layer = blocks.per_layer_inputs(g, x, ple, c.eps)  # [B, T, L, P]
    caches: dict[int, KVCache] = {}
    for i, attention in enumerate(c.attention):
        h = g.rms_norm(x, f"layers.{i}.input_layernorm.weight", c.eps)
        if i < c.kv_layers:
            caches[i] = blocks.keys_and_values(g, h, i, attention, c.eps, norm_values=True)
        if not with_logits and i == c.kv_layers - 1:
            return g
        y = blocks.attend(g, h, i, attention, c.eps, caches[c.kv_source(i)])
        x = feed_forward(g, c.eps, i, x, y)
        if per_layer is not None:
            x = _told(g, c, i, x, g.reshape(g.slice(per_layer, 2, i, 1), (1, tokens, c.ple_width)))
        x = g.layers[i] = g.mul(x, g.weight(f"layers.{i}.layer_scalar"))
    x = g.rms_norm(x if every_row else g.last_token(x), "norm.weight", c.eps)
    g.output("logits", blocks.logits(g, x, c.softcap))
    return g


def lookups(config: Config, specs: Mapping[str, TensorSpec], tokens: int) -> Iterator[Graph]:
    """The tables that are read by row, outside the decoder."""
    c = config
    yield blocks.lookup("embedder", specs, tokens, "embed_tokens.weight", (c.width,))
    if c.ple_width:
        shape = (len(c.attention), c.ple_width)
        yield blocks.lookup("per_layer_embedder", specs, tokens, "embed_tokens_per_layer.weight", shape)


def feed_forward(g: Graph, eps: float, layer: int, x: Value, attended: Value) -> Value:
    """The rest of attention's residual, then the MLP; all [B, T, D]."""
    p = f"layers.{layer}."

    def norm(y: Value, which: str) -> Value:
        return g.rms_norm(y, f"{p}{which}.weight", eps)

    x = g.add(x, norm(attended, "post_attention_layernorm"))
    h = norm(x, "pre_feedforward_layernorm")
    gate, up = g.linear(h, p + "mlp.gate_proj.weight"), g.linear(h, p + "mlp.up_proj.weight")
    y = g.linear(g.mul(g.gelu(gate), up), p + "mlp.down_proj.weight")
    return g.add(x, norm(y, "post_feedforward_layernorm"))


def _told(g: Graph, c: Config, layer: int, x: Value, per_layer: Value) -> Value:
    """[B, T, D] with what the layer is told about each token, per_layer [B, T, P]."""
    p = f"layers.{layer}."
    gate = g.gelu(g.linear(x, p + "per_layer_input_gate.weight"))  # [B, T, P]
    y = g.linear(g.mul(gate, per_layer), p + "per_layer_projection.weight")
    return g.add(x, g.rms_norm(y, p + "post_per_layer_input_norm.weight", c.eps))
