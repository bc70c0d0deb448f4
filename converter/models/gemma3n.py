"""Gemma 3n text decoder (E2B, E4B): per-layer embeddings, AltUp, LAuReL, shared KV, activation sparsity.

Source: transformers models/gemma3n/modeling_gemma3n.py. AltUp: arXiv 2301.13310. LAuReL: arXiv 2411.07501.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from statistics import NormalDist
from typing import Any, Final

from gemma_edge.converter.graph.ops import Graph, KVCache, Rope, Value
from gemma_edge.converter.models import blocks
from gemma_edge.converter.models.blocks import AttentionLayer, Heads, Part
from gemma_edge.converter.models.fields import LARGEST_REPEAT, ConfigError, Fields
from gemma_edge.converter.models.questions import Names, Wrong, wrong_attention
from gemma_edge.converter.tensors import AS_STORED, Fold, Role, TensorSpec

FAMILY: Final = "gemma3n"
MODEL_TYPES = ("gemma3n_text", "gemma3n")
MULTIMODAL_TYPES = ("gemma3n",)  # whose encoders can be converted
ENCODERS: Final = "gemma3n"  # which they are, see encoders.py
NAMES: Final = Names(
    litert="gemma3n",
    onnx_architecture="Gemma3nForConditionalGeneration",
    onnx_model_type="gemma3n",
    onnx_text_type="gemma3n_text",
    processor="Gemma3nProcessor",
    audio_features="Gemma3nAudioFeatureExtractor",
)

SQRT_HALF = 0.5**0.5
NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
    "post_per_layer_input_norm", "laurel.post_laurel_norm",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a model's tensors lie, if it shares them with another one (matformer/pair.py).

    layers: the number of each layer in their names. all_layers: of the model that has most. ffn: what each layer's
    feed-forward matrices are stored in. projection: the same of per_layer_model_projection, counted in layers.
    """

    layers: tuple[int, ...]
    all_layers: int
    ffn: tuple[tuple[Part, ...], ...]
    projection: tuple[Part, ...]


@dataclass(frozen=True)
class Config:
    """The numbers of config.json that decide the computation."""

    vocab_size: int
    ple_vocab_size: int
    ple_width: int  # P
    width: int  # D
    ffn_widths: tuple[int, ...]  # per layer
    sparsity: tuple[float, ...]  # per layer, share of gate activations cut to zero
    eps: float
    softcap: float | None
    tied_head: bool
    max_context_tokens: int
    attention: tuple[AttentionLayer, ...]  # one per layer
    kv_layers: int  # the first kv_layers own their KV; each later one shares with the last owner of its kind
    altup_inputs: int  # N
    altup_active: int
    altup_clip: float | None
    altup_scale_output: bool
    laurel_rank: int
    place: Place | None = None  # None: tensors are called and stored as in a checkpoint

    def __post_init__(self) -> None:
        if any(not 0 <= share < 1 for share in self.sparsity):
            raise ConfigError(
                f"config.json: activation_sparsity_pattern is {self.sparsity}, expected shares in [0, 1); "
                "fix the checkpoint"
            )
        blocks.check_owners(self.attention, self.kv_layers)
        if self.altup_active >= self.altup_inputs:
            raise ConfigError(
                f"config.json: altup_active_idx is {self.altup_active}, expected less than altup_num_inputs "
                f"{self.altup_inputs}; fix the checkpoint"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Config":
        """Read the text config; raises ConfigError for anything that would give other numbers."""
        f = Fields(values)
        f.expect("hidden_activation", ("gelu_pytorch_tanh",))
        f.expect("attention_bias", (False,))
        layers = f.positive("num_hidden_layers", 35, LARGEST_REPEAT)
        shared = f.count("num_kv_shared_layers", 15)
        if shared >= layers:
            raise ConfigError(
                f"config.json: num_kv_shared_layers is {shared}, expected less than the {layers} layers; "
                "fix the checkpoint"
            )
        heads = Heads(
            f.positive("num_attention_heads", 8), f.positive("num_key_value_heads", 2), f.positive("head_dim", 256)
        )
        kinds = {
            "sliding_attention": AttentionLayer(
                Rope(*f.rope("sliding_attention", 10_000.0)), f.positive("sliding_window", 512), heads
            ),
            "full_attention": AttentionLayer(Rope(*f.rope("full_attention", 1_000_000.0)), None, heads),
        }
        sparse = 10 if layers > 10 else 0  # Gemma3nTextConfig's default pattern
        pattern = values.get("activation_sparsity_pattern")
        if pattern is None:
            pattern = [0.95] * sparse + [0.0] * (layers - sparse)
        return cls(
            vocab_size=f.positive("vocab_size", 262_400),
            ple_vocab_size=f.positive("vocab_size_per_layer_input", 262_144),
            ple_width=f.positive("hidden_size_per_layer_input", 256),
            width=f.positive("hidden_size", 2048),
            ffn_widths=tuple(int(n) for n in f.per_layer("intermediate_size", layers, 16_384)),
            sparsity=Fields({"activation_sparsity_pattern": pattern}).per_layer("activation_sparsity_pattern", layers),
            eps=f.number("rms_norm_eps", 1e-6),
            softcap=f.optional_number("final_logit_softcapping", 30.0),
            tied_head=f.flag("tie_word_embeddings", True),
            max_context_tokens=f.positive("max_position_embeddings", 32_768),
            attention=tuple(kinds[kind] for kind in f.layer_types(layers, 5)),
            kv_layers=layers - shared,
            altup_inputs=f.positive("altup_num_inputs", 4, LARGEST_REPEAT),
            altup_active=f.count("altup_active_idx", 0),
            altup_clip=f.optional_number("altup_coef_clip", 120.0),
            altup_scale_output=f.flag("altup_correct_scale", True),
            laurel_rank=f.positive("laurel_rank", 64),
        )

    def kv_source(self, layer: int) -> int:
        """The layer whose keys and values `layer` reads: itself, or the last KV-owning layer of its own kind."""
        return blocks.owner_of(layer, self.attention, self.kv_layers)

    def number(self, layer: int) -> int:
        """What a layer is called in the names of its tensors and of its keys and values."""
        return layer if self.place is None else self.place.layers[layer]

    def ffn_parts(self, layer: int) -> tuple[Part, ...]:
        """What its feed-forward matrices are stored in; nothing where they are in one."""
        return () if self.place is None else self.place.ffn[layer]

    @property
    def stored_layers(self) -> int:
        """Those in the table of per-layer embeddings."""
        return len(self.attention) if self.place is None else self.place.all_layers

    @property
    def projection_parts(self) -> tuple[Part, ...]:
        """Of per_layer_model_projection; sizes in layers."""
        return () if self.place is None else self.place.projection

    @property
    def ffn_width(self) -> int:
        """Of the widest layer."""
        return max(self.ffn_widths)

    @property
    def residual_streams(self) -> int:
        """AltUp's."""
        return self.altup_inputs

    @property
    def ple_values(self) -> int:
        """Of all layers."""
        return len(self.attention) * self.ple_width

    def unused_tensors(self) -> Iterator[str]:
        """Official checkpoints hold keys and values of layers that read another's."""
        shared = range(self.kv_layers, len(self.attention))
        yield from blocks.kv_names(self.number(layer) for layer in shared)

    def wrong(self) -> Iterator[tuple[Wrong, "Config"]]:
        """See questions.py."""
        if self.softcap:
            yield Wrong.SOFTCAP, replace(self, softcap=None)
        if any(self.sparsity):
            yield Wrong.SPARSITY, replace(self, sparsity=(0.0,) * len(self.sparsity))
        if self.kv_layers < len(self.attention):
            yield Wrong.UNSHARED, replace(self, kv_layers=len(self.attention))
            yield Wrong.OTHER_OWNER, _LastOwner(**{field.name: getattr(self, field.name) for field in fields(self)})
        for mistake, attention in wrong_attention(self.attention):
            yield mistake, replace(self, attention=attention)


class _LastOwner(Config):
    """A mistake: every sharing layer reads the last layer that owns keys and values, whatever its kind."""

    def kv_source(self, layer: int) -> int:
        return min(layer, self.kv_layers - 1)


def tensors(config: Config) -> Iterator[TensorSpec]:
    """Every tensor of the model, in the order of use."""
    c = config
    n, width, ple = c.altup_inputs, c.width, c.ple_width
    coefficient = Fold(clip=c.altup_clip)
    yield from blocks.vocabulary_tensors(c.vocab_size, width, c.tied_head)
    yield from blocks.per_layer_tensors(c.ple_vocab_size, c.stored_layers, ple, width, c.projection_parts)
    for k in range(n - 1):
        yield blocks.matrix(f"altup_projections.{k}.weight", width, width, Role.ALTUP)
    for i, attention in enumerate(c.attention):
        layer = f"layers.{c.number(i)}."
        for norm in NORMS:
            yield blocks.vector(f"{layer}{norm}.weight", width)
        yield from blocks.attention_tensors(layer, width, attention.heads, i < c.kv_layers, AS_STORED, AS_STORED)
        yield from blocks.mlp_tensors(layer, width, c.ffn_widths[i], c.sparsity[i] > 0.5, c.ffn_parts(i))
        yield blocks.matrix(layer + "laurel.linear_left.weight", c.laurel_rank, width, Role.SMALL)
        yield blocks.matrix(layer + "laurel.linear_right.weight", width, c.laurel_rank, Role.SMALL)
        yield blocks.matrix(layer + "per_layer_input_gate.weight", ple, width, Role.SMALL)
        yield blocks.matrix(layer + "per_layer_projection.weight", width, ple, Role.SMALL)
        altup = layer + "altup."
        yield blocks.vector(altup + "router_norm.weight", width, Fold(mul=1.0 / width))  # router_input_scale
        yield blocks.matrix(altup + "modality_router.weight", n, width, Role.ROUTER)
        yield blocks.matrix(altup + "prediction_coefs.weight", n * n, n, Role.ROUTER, coefficient)
        yield blocks.matrix(altup + "correction_coefs.weight", n, n, Role.ROUTER, coefficient)
        yield blocks.vector(altup + "correct_output_scale", width)
    for k in range(n - 1):
        yield blocks.matrix(f"altup_unembed_projections.{k}.weight", width, width, Role.ALTUP)
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
    for E2B 20 of 30 layers.
    """
    c = config
    g = Graph(name, tokens, specs)
    x = g.input("embeddings", (1, tokens, c.width))
    ple = g.input("per_layer_embeddings", (1, tokens, len(c.attention), c.ple_width))
    per_layer = blocks.per_layer_inputs(g, x, ple, c.eps, c.projection_parts)  # [B, T, L, P]
    state = _spread(g, c, x)  # [B, T, N, D]
    caches: dict[int, KVCache] = {}
    for i, attention in enumerate(c.attention):
        number = c.number(i)
        predicted = _altup_predict(g, c, number, state)  # [B, T, N, D]
        active = _stream(g, predicted, c.altup_active)  # [B, T, D]
        h = g.rms_norm(active, f"layers.{number}.input_layernorm.weight", c.eps)
        if i < c.kv_layers:
            caches[i] = blocks.keys_and_values(g, h, number, attention, c.eps, norm_values=True)
        if not with_logits and i == c.kv_layers - 1:
            return g
        y = blocks.attend(g, h, number, attention, c.eps, caches[c.kv_source(i)])
        y = _feed_forward(g, c, i, active, h, y)
        per_layer_i = g.reshape(g.slice(per_layer, 2, i, 1), (1, tokens, c.ple_width))
        state = g.layers[number] = _altup_correct(g, c, number, predicted, active, y, per_layer_i)
    x = g.rms_norm(_gather(g, c, state if every_row else g.last_token(state)), "norm.weight", c.eps)
    g.output("logits", blocks.logits(g, x, c.softcap))
    return g


def lookups(config: Config, specs: Mapping[str, TensorSpec], tokens: int) -> Iterator[Graph]:
    """The tables that are read by row, outside the decoder."""
    c = config
    yield blocks.lookup("embedder", specs, tokens, "embed_tokens.weight", (c.width,))
    yield _per_layer_lookup(c, specs, tokens)


def _per_layer_lookup(c: Config, specs: Mapping[str, TensorSpec], tokens: int) -> Graph:
    """Of a table that has more layers than this model, those of this model: [1, T, L, P]."""
    shape = (c.stored_layers, c.ple_width)
    if c.place is None or len(c.attention) == c.stored_layers:
        return blocks.lookup("per_layer_embedder", specs, tokens, blocks.PLE_TABLE, shape)
    g = Graph("per_layer_embedder", tokens, specs)
    rows = g.reshape(g.embed(g.input("token_ids", (1, tokens), "int32"), blocks.PLE_TABLE), (1, tokens, *shape))
    g.output("embeddings", g.concat([g.slice(rows, 2, layer, 1) for layer in c.place.layers], 2))
    return g


def _magnitude(g: Graph, x: Value) -> Value:
    """[..., D] -> [..., 1], root mean square."""
    return g.sqrt(g.mean(g.mul(x, x)))


def _rescaled(g: Graph, x: Value, magnitude: Value) -> Value:
    """x brought to the given root mean square."""
    own = g.sqrt(g.maximum(g.mean(g.mul(x, x)), 1e-5))
    return g.mul(x, g.div(magnitude, own))


def _spread(g: Graph, c: Config, x: Value) -> Value:
    """[B, T, D] -> [B, T, N, D]: stream 0 is x, the others projections of it, all of one magnitude."""
    magnitude = _magnitude(g, x)
    streams = [x]
    for k in range(c.altup_inputs - 1):
        streams.append(_rescaled(g, g.linear(x, f"altup_projections.{k}.weight"), magnitude))
    return g.concat([g.reshape(y, (1, g.tokens, 1, c.width)) for y in streams], 2)


def _gather(g: Graph, c: Config, state: Value) -> Value:
    """[B, T, N, D] -> [B, T, D]: the mean of stream 0 and the others projected back."""
    total = _stream(g, state, 0)
    magnitude = _magnitude(g, total)
    for k in range(c.altup_inputs - 1):
        y = g.linear(_stream(g, state, k + 1), f"altup_unembed_projections.{k}.weight")
        total = g.add(total, _rescaled(g, y, magnitude))
    return g.mul(total, 1.0 / c.altup_inputs)


def _stream(g: Graph, state: Value, k: int) -> Value:
    """[B, T, N, D] -> [B, T, D]."""
    return g.reshape(g.slice(state, 2, k, 1), (*state.shape[:2], state.shape[3]))


def _modalities(g: Graph, c: Config, layer: int, x: Value) -> Value:
    """[B, T, D] -> [B, T, N], how much of each stream to use."""
    altup = f"layers.{layer}.altup."
    return g.tanh(g.linear(g.rms_norm(x, altup + "router_norm.weight", c.eps), altup + "modality_router.weight"))


def _altup_predict(g: Graph, c: Config, layer: int, state: Value) -> Value:
    """[B, T, N, D] -> [B, T, N, D]: each stream plus a learned mix of all."""
    n = c.altup_inputs
    coefs = g.linear(
        _modalities(g, c, layer, _stream(g, state, c.altup_active)), f"layers.{layer}.altup.prediction_coefs.weight"
    )
    coefs = g.reshape(coefs, (1, g.tokens, n, n))  # row k mixes the streams into stream k
    return g.add(g.matmul(coefs, state), state)


def _altup_correct(
    g: Graph, c: Config, layer: int, predicted: Value, active: Value, y: Value, per_layer: Value
) -> Value:
    """Bring the layer's output y [B, T, D] into every stream, then the per-layer input into all but the first."""
    p, n = f"layers.{layer}.", c.altup_inputs
    coefs = g.linear(_modalities(g, c, layer, y), p + "altup.correction_coefs.weight")
    coefs = g.reshape(g.add(coefs, 1.0), (1, g.tokens, n, 1))
    innovation = g.reshape(g.sub(y, active), (1, g.tokens, 1, c.width))
    corrected = g.add(predicted, g.mul(innovation, coefs))  # [B, T, N, D]

    first = _stream(g, corrected, c.altup_active)
    if c.altup_scale_output:
        first = g.mul(first, g.weight(p + "altup.correct_output_scale"))
    gate = g.gelu(g.linear(first, p + "per_layer_input_gate.weight"))  # [B, T, P]
    update = g.linear(g.mul(gate, per_layer), p + "per_layer_projection.weight")
    update = g.rms_norm(update, p + "post_per_layer_input_norm.weight", c.eps)
    update = g.reshape(update, (1, g.tokens, 1, c.width))
    rest = g.add(g.slice(corrected, 2, 1, n - 1), update)
    return g.concat([g.slice(corrected, 2, 0, 1), rest], 2)


def _feed_forward(g: Graph, c: Config, layer: int, active: Value, h: Value, attended: Value) -> Value:
    """LAuReL beside attention, then the MLP; all [B, T, D]. h is `active` after input_layernorm."""
    p = f"layers.{c.number(layer)}."

    def norm(y: Value, which: str) -> Value:
        return g.rms_norm(y, f"{p}{which}.weight", c.eps)

    low_rank = g.linear(h, p + "laurel.linear_left.weight")  # [B, T, laurel_rank]
    laurel = g.add(h, norm(g.linear(low_rank, p + "laurel.linear_right.weight"), "laurel.post_laurel_norm"))
    x = g.add(active, norm(attended, "post_attention_layernorm"))
    x = g.mul(g.add(x, laurel), SQRT_HALF)

    h = norm(x, "pre_feedforward_layernorm")
    sparsity = c.sparsity[layer]
    cut = partial(_gaussian_topk, g, sparsity=sparsity) if sparsity > 0.0 else None
    y = blocks.mlp(g, h, p, c.ffn_parts(layer), cut)
    return g.add(x, norm(y, "post_feedforward_layernorm"))


def _gaussian_topk(g: Graph, x: Value, sparsity: float) -> Value:
    """Cut what lies below the `sparsity` quantile of a normal distribution with x's mean and deviation."""
    centred = g.sub(x, g.mean(x))
    deviation = g.sqrt(g.mean(g.mul(centred, centred)))
    return g.relu(g.sub(centred, g.mul(deviation, NormalDist().inv_cdf(sparsity))))
