"""Gemma 4's assistant (google/gemma-4-E2B-it-assistant): all of its layers read keys and values of the model it is for.

Source: transformers models/gemma4_assistant, and SinglePositionMultiTokenCandidateGenerator in
generation/candidate_generator.py: every guess of a row is made at the position of the last token that is known.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.graph import draft
from gemma_edge.converter.graph.draft_ops import Past
from gemma_edge.converter.graph.ops import Graph, Value
from gemma_edge.converter.models import blocks, gemma4
from gemma_edge.converter.models.blocks import AttentionLayer
from gemma_edge.converter.models.fields import LARGEST_REPEAT, ConfigError, Fields
from gemma_edge.converter.models.gemma4 import FULL, NORMS
from gemma_edge.converter.tensors import AS_STORED, Role, TensorSpec

MODEL_TYPE: Final = "gemma4_assistant"
FILE: Final = "the drafter's config.json"
PREFIX: Final = "drafter."
"""Before the names of its tensors, in the graph and as sources: those of the model are called alike."""

SECTION: Final = "mtp_drafter"


@dataclass(frozen=True)
class Config:
    """The numbers of its config.json that decide the computation. model_width: D of the model it is for."""

    model_width: int
    vocab_size: int
    width: int
    ffn_width: int
    eps: float
    tied_head: bool
    attention: tuple[AttentionLayer, ...]  # one per layer
    clusters: int = 0  # of tokens; 0: all tokens are weighed
    chosen: int = 0  # clusters whose tokens are weighed

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Config":
        """Read the whole config.json; raises ConfigError for another model, and for what would give other numbers."""
        whole = Fields(values, FILE)
        if values.get("model_type") != MODEL_TYPE:
            raise ConfigError(
                f"{FILE}: model_type is {values.get('model_type')!r}, expected {MODEL_TYPE}; give the checkpoint whose "
                "name ends in -assistant"
            )
        f = Fields(whole.nested("text_config"), FILE)
        f.expect("model_type", gemma4.MODEL_TYPES)
        f.expect("hidden_activation", ("gelu_pytorch_tanh",))
        f.expect("use_bidirectional_attention", (None, "vision"))
        for key in ("attention_bias", "use_double_wide_mlp", *gemma4.OTHER_SIZES):
            f.expect(key, (False,))
        for key in ("hidden_size_per_layer_input", "vocab_size_per_layer_input"):
            f.expect(key, (0,))
        layers = f.positive("num_hidden_layers", 30, LARGEST_REPEAT)
        f.expect("num_kv_shared_layers", (layers, 0))  # which transformers reads alike
        types = (*f.layer_types(layers, 6)[:-1], FULL)
        kinds = gemma4.kinds_of(f, types)
        return cls(
            model_width=whole.positive("backbone_hidden_size", 1536),
            vocab_size=f.positive("vocab_size", 262_144),
            width=f.positive("hidden_size", 2304),
            ffn_width=f.positive("intermediate_size", 9216),
            eps=f.number("rms_norm_eps", 1e-6),
            tied_head=whole.flag("tie_word_embeddings", True),
            attention=tuple(kinds[kind] for kind in types),
            **_clusters(whole, f.positive("vocab_size", 262_144)),
        )


def _clusters(f: Fields, vocab_size: int) -> dict[str, int]:
    if not f.flag("use_ordered_embeddings", False):
        return {}
    clusters = f.positive("num_centroids", 2048)
    chosen = f.positive("centroid_intermediate_top_k", 32)
    if vocab_size % clusters or chosen > clusters:
        raise ConfigError(
            f"{FILE}: {chosen} of {clusters} clusters of {vocab_size} tokens, expected equal ones, and no more than "
            "there are; fix the checkpoint"
        )
    return {"clusters": clusters, "chosen": chosen}


def tensors(config: Config) -> Iterator[TensorSpec]:
    """Every tensor, in the order of use, without PREFIX."""
    c = config
    yield blocks.matrix("pre_projection.weight", c.width, 2 * c.model_width, Role.SMALL)
    for i, attention in enumerate(c.attention):
        layer = f"layers.{i}."
        for norm in NORMS:
            yield blocks.vector(f"{layer}{norm}.weight", c.width)
        yield from blocks.attention_tensors(layer, c.width, attention.heads, False, AS_STORED, AS_STORED)
        yield from blocks.mlp_tensors(layer, c.width, c.ffn_width)
        yield blocks.vector(layer + "layer_scalar", 1)
    yield blocks.vector("norm.weight", c.width)
    head = "lm_head.weight"
    role = Role.EMBEDDING if c.clusters else Role.HEAD  # of clusters, some rows are read
    yield TensorSpec(head, "embed_tokens.weight" if c.tied_head else head, (c.vocab_size, c.width), role)
    if c.clusters:
        yield blocks.matrix("masked_embedding.centroids.weight", c.clusters, c.width, Role.SMALL)
    yield blocks.matrix("post_projection.weight", c.model_width, c.width, Role.SMALL)


@dataclass(frozen=True)
class Drafter:
    """One that fits a model. tensors: by the graph's name, with PREFIX. pasts: what each layer reads.

    order: ids of all tokens, int32 [V], one cluster after the other; a checkpoint's, so None until that is opened.
    """

    config: Config
    tensors: Mapping[str, TensorSpec]
    pasts: tuple[Past, ...]
    order: NDArray[np.int32] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, config: Config, model: gemma4.Config) -> "Drafter":
        """Of a model of these numbers. Raises ConfigError where it is made for another one."""
        for what, found, expected in (
            ("hidden states of", config.model_width, model.width),
            ("a vocabulary of", config.vocab_size, model.vocab_size),
        ):
            if found != expected:
                raise ConfigError(
                    f"{FILE}: made for a model with {what} {found}, expected {expected}; give the assistant of the "
                    "model that is converted"
                )
        specs = (replace(spec, name=PREFIX + spec.name, source=PREFIX + spec.source) for spec in tensors(config))
        return cls(config, {spec.name: spec for spec in specs}, tuple(_pasts(config, model)))

    def graph(self) -> Graph:
        """activations [1, 1, 2 D] -> logits [1, 1, V] and projected_activations [1, 1, D].

        activations: the embedding of the last token that is known or guessed, then the model's hidden state behind its
        last norm, or projected_activations of the guess before. Names are those of LiteRT-LM
        (runtime/executor/llm_litert_mtp_drafter.cc).
        """
        c = self.config
        g = Graph(SECTION, 1, {name.removeprefix(PREFIX): spec for name, spec in self.tensors.items()})
        x = g.linear(g.input("activations", (1, 1, 2 * c.model_width)), "pre_projection.weight")
        for i, (layer, past) in enumerate(zip(c.attention, self.pasts, strict=True)):
            p, heads = f"layers.{i}.", layer.heads
            h = g.rms_norm(x, p + "input_layernorm.weight", c.eps)
            q = blocks.split_heads(g, h, p + "self_attn.q_proj.weight", heads)
            q = g.rotate(g.rms_norm(q, p + "self_attn.q_norm.weight", c.eps), layer.rope)
            y = g.reshape(draft.past_attention(g, q, past), (1, 1, heads.query * heads.size))
            x = gemma4.feed_forward(g, c.eps, i, x, g.linear(y, p + "self_attn.o_proj.weight"))
            x = g.layers[i] = g.mul(x, g.weight(p + "layer_scalar"))
        x = g.rms_norm(x, "norm.weight", c.eps)
        g.output("logits", self._logits(g, x))
        g.output("projected_activations", g.linear(x, "post_projection.weight"))
        return g

    def _logits(self, g: Graph, x: Value) -> Value:
        c = self.config
        if not c.clusters:
            return g.linear(x, "lm_head.weight")
        assert self.order is not None
        clusters = g.linear(x, "masked_embedding.centroids.weight")
        return draft.cluster_logits(g, x, clusters, "lm_head.weight", self.order.reshape(c.clusters, -1), c.chosen)


def _pasts(config: Config, model: gemma4.Config) -> Iterator[Past]:
    """What each layer reads: the last layer of its kind that owns keys and values. Raises ConfigError: none fits."""
    owners = {layer.window: i for i, layer in enumerate(model.attention[: model.kv_layers])}
    for i, layer in enumerate(config.attention):
        owner = owners.get(layer.window)
        if owner is None:
            windows = ", ".join(str(window) for window in owners)
            raise ConfigError(
                f"{FILE}: layer {i} reads keys and values of a window of {layer.window}, expected one of the model's, "
                f"{windows}; give the assistant of the model that is converted"
            )
        found, expected = _told(layer), _told(model.attention[owner])
        if found != expected:
            raise ConfigError(
                f"{FILE}: layer {i} reads {found}, expected those of the model's layer {owner}, {expected}; "
                "give the assistant of the model that is converted"
            )
        yield Past(owner, layer.heads.kv, layer.heads.size, layer.window)


def _told(layer: AttentionLayer) -> str:
    """What decides whether its queries can read keys and values."""
    return f"{layer.heads.kv} KV heads of {layer.heads.size} with {layer.rope}"
