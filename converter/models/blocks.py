"""What the families have in common. Shared by calling, not by inheriting.

Source: transformers models/gemma3/modeling_gemma3.py, models/gemma3n/modeling_gemma3n.py and
models/gemma4/modeling_gemma4.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from gemma_edge.converter.graph.ops import Graph, KVCache, Rope, Value
from gemma_edge.converter.models.fields import ConfigError
from gemma_edge.converter.tensors import AS_STORED, HEAD, Fold, Role, TensorSpec

PLE_TABLE, PLE_PROJECTION = "embed_tokens_per_layer.weight", "per_layer_model_projection.weight"


@dataclass(frozen=True)
class Heads:
    """The shape of an attention layer."""

    query: int  # H
    kv: int  # K
    size: int  # E

    def __post_init__(self) -> None:
        if self.query % self.kv:
            raise ConfigError(
                f"config.json: {self.query} attention heads do not share {self.kv} KV heads evenly; fix the checkpoint"
            )
        if self.size % 2:
            raise ConfigError(f"config.json: head_dim is {self.size}, expected an even number; fix the checkpoint")


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer: how it rotates, how far it looks back (None: all the way), and its heads."""

    rope: Rope
    window: int | None
    heads: Heads


@dataclass(frozen=True)
class Part:
    """One of the stretches that a matrix is stored in. number: which one. size: its rows, or its columns."""

    number: int
    size: int


def part_names(name: str, parts: Sequence[Part]) -> list[str]:
    """Of "x.weight" in two parts, "x.part0.weight" and "x.part1.weight"; the name itself where it is in one."""
    stem = name.removesuffix(".weight")
    return [f"{stem}.part{part.number}.weight" for part in parts] or [name]


def matrix(name: str, rows: int, columns: int, role: Role, fold: Fold = AS_STORED) -> TensorSpec:
    """A [rows, columns] matrix stored under the name the graph uses."""
    return TensorSpec(name, name, (rows, columns), role, fold)


def vector(name: str, size: int, fold: Fold = AS_STORED) -> TensorSpec:
    """A [size] vector stored under the name the graph uses."""
    return TensorSpec(name, name, (size,), Role.NORM, fold)


def attention_tensors(
    layer: str, width: int, heads: Heads, owns_kv: bool, q_norm: Fold, k_norm: Fold
) -> Iterator[TensorSpec]:
    """q, k, v, o and the norms of q and k. A layer that shares another's KV has neither k nor v."""
    p = layer + "self_attn."
    yield matrix(p + "q_proj.weight", heads.query * heads.size, width, Role.ATTENTION)
    yield vector(p + "q_norm.weight", heads.size, q_norm)
    if owns_kv:
        yield matrix(p + "k_proj.weight", heads.kv * heads.size, width, Role.ATTENTION)
        yield matrix(p + "v_proj.weight", heads.kv * heads.size, width, Role.ATTENTION)
        yield vector(p + "k_norm.weight", heads.size, k_norm)
    yield matrix(p + "o_proj.weight", width, heads.query * heads.size, Role.ATTENTION)


def mlp_tensors(
    layer: str, width: int, ffn_width: int, is_sparse: bool = False, parts: Sequence[Part] = ()
) -> Iterator[TensorSpec]:
    """gate, up, down. is_sparse: most of what the gates let through is zero. parts: what they are stored in."""
    sizes = [part.size for part in parts] or [ffn_width]
    for which in ("gate_proj", "up_proj"):
        for name, rows in zip(part_names(f"{layer}mlp.{which}.weight", parts), sizes, strict=True):
            yield matrix(name, rows, width, Role.FFN)
    for name, columns in zip(part_names(f"{layer}mlp.down_proj.weight", parts), sizes, strict=True):
        yield replace(matrix(name, width, columns, Role.FFN), sparse_inputs=is_sparse)


def mlp(g: Graph, x: Value, layer: str, parts: Sequence[Part], cut: Callable[[Value], Value] | None) -> Value:
    """down(gelu(gate) * up), [B, T, D] -> [B, T, D]. cut: of gate's values [B, T, F], before gelu."""
    gates = linears(g, x, f"{layer}mlp.gate_proj.weight", parts)
    if cut is not None:
        gates = _split(g, cut(g.concat(gates, -1)), [gate.shape[-1] for gate in gates])
    open_gates = [g.gelu(gate) for gate in gates]
    ups = linears(g, x, f"{layer}mlp.up_proj.weight", parts)
    inputs = [g.mul(gate, up) for gate, up in zip(open_gates, ups, strict=True)]
    downs = part_names(f"{layer}mlp.down_proj.weight", parts)
    return reduce(g.add, [g.linear(y, down) for y, down in zip(inputs, downs, strict=True)])


def linears(g: Graph, x: Value, weight: str, parts: Sequence[Part]) -> list[Value]:
    """x times each part of a matrix whose rows are stored in parts."""
    return [g.linear(x, name) for name in part_names(weight, parts)]


def _split(g: Graph, x: Value, sizes: Sequence[int]) -> list[Value]:
    """[..., N] -> [..., size] each; x itself where it is one."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [x] if len(sizes) == 1 else [g.slice(x, -1, a, n) for a, n in zip(starts, sizes, strict=True)]


def vocabulary_tensors(vocab_size: int, width: int, tied: bool) -> Iterator[TensorSpec]:
    """The token embedding, scaled by sqrt(D) as all families do, and the head, which may read the same table."""
    table = "embed_tokens.weight"
    yield TensorSpec(table, table, (vocab_size, width), Role.EMBEDDING, Fold(mul=width**0.5))
    yield TensorSpec(HEAD, table if tied else HEAD, (vocab_size, width), Role.HEAD)


def split_heads(g: Graph, x: Value, weight: str, heads: Heads) -> Value:
    """[B, T, D] -> [B, T, H or K, E]."""
    y = g.linear(x, weight)
    return g.reshape(y, (1, g.tokens, y.shape[-1] // heads.size, heads.size))


def keys_and_values(g: Graph, x: Value, index: int, layer: AttentionLayer, eps: float, norm_values: bool) -> KVCache:
    """This run's rows of one layer's cache, from the normed input x [B, T, D]. Gemma 3n norms v without a weight."""
    p, heads = f"layers.{index}.self_attn.", layer.heads
    k = g.rms_norm(split_heads(g, x, p + "k_proj.weight", heads), p + "k_norm.weight", eps)
    v = split_heads(g, x, p + "v_proj.weight", heads)
    if norm_values:
        v = g.rms_norm(v, None, eps)
    return g.kv_cache(index, g.rotate(k, layer.rope), v, layer.window)


def attend(g: Graph, x: Value, index: int, layer: AttentionLayer, eps: float, kv: KVCache) -> Value:
    """Attention output before the residual, [B, T, D], from the normed input x [B, T, D]."""
    p, heads = f"layers.{index}.self_attn.", layer.heads
    q = g.rms_norm(split_heads(g, x, p + "q_proj.weight", heads), p + "q_norm.weight", eps)
    y = g.attention(g.rotate(q, layer.rope), kv)  # [B, T, H, E]
    return g.linear(g.reshape(y, (1, g.tokens, heads.query * heads.size)), p + "o_proj.weight")


def check_owners(attention: tuple[AttentionLayer, ...], kv_layers: int) -> None:
    """Raises ConfigError where a layer would read keys and values of its own kind that no layer before has."""
    owned = {layer.window for layer in attention[:kv_layers]}
    if {layer.window for layer in attention} - owned:
        raise ConfigError(
            f"config.json: the first {kv_layers} layers own KV but not of every kind in layer_types; "
            "lower num_kv_shared_layers or fix layer_types"
        )


def owner_of(layer: int, attention: tuple[AttentionLayer, ...], kv_layers: int) -> int:
    """The layer whose keys and values `layer` reads: itself, or the last of the owners that is of its own kind."""
    if layer < kv_layers:
        return layer
    window = attention[layer].window
    return max(i for i in range(kv_layers) if attention[i].window == window)


def kv_names(layers: Iterable[int]) -> Iterator[str]:
    """Prefixes of what official checkpoints hold of layers that read another's keys and values."""
    for layer in layers:
        for name in ("k_proj.", "v_proj.", "k_norm.", "v_norm."):
            yield f"layers.{layer}.self_attn.{name}"


def per_layer_tensors(
    vocab_size: int, layers: int, ple_width: int, width: int, parts: Sequence[Part] = ()
) -> Iterator[TensorSpec]:
    """The table of per-layer embeddings, scaled by sqrt(P), and what projects a token's embedding to as many.

    parts: of the projection, counted in layers.
    """
    table = matrix(PLE_TABLE, vocab_size, layers * ple_width, Role.PLE, Fold(mul=ple_width**0.5))
    yield replace(table, parts=layers)
    sizes = [part.size for part in parts] or [layers]
    for name, count in zip(part_names(PLE_PROJECTION, parts), sizes, strict=True):
        yield matrix(name, count * ple_width, width, Role.ALTUP)
    yield vector("per_layer_projection_norm.weight", ple_width)


def per_layer_inputs(g: Graph, x: Value, ple: Value, eps: float, parts: Sequence[Part] = ()) -> Value:
    """[B, T, D], [B, T, L, P] -> [B, T, L, P], what each layer is told about each token."""
    y = g.reshape(g.concat(linears(g, x, PLE_PROJECTION, parts), -1), ple.shape)
    # The model scales y by D^-0.5 before this norm; a norm only sees that in its epsilon.
    y = g.rms_norm(y, "per_layer_projection_norm.weight", eps * x.shape[-1])
    return g.mul(g.add(y, ple), 0.5**0.5)


def logits(g: Graph, x: Value, softcap: float | None) -> Value:
    """[B, T, D] -> [B, T, V]; softcap bounds them to (-softcap, softcap) by tanh."""
    y = g.linear(x, HEAD)
    return y if softcap is None else g.mul(g.tanh(g.mul(y, 1.0 / softcap)), softcap)


def lookup(name: str, tensors: Mapping[str, TensorSpec], tokens: int, table: str, row_shape: tuple[int, ...]) -> Graph:
    """A graph that reads table rows: token_ids int32 [1, T] -> embeddings [1, T, *row_shape]."""
    g = Graph(name, tokens, tensors)
    ids = g.input("token_ids", (1, tokens), "int32")
    g.output("embeddings", g.reshape(g.embed(ids, table), (1, tokens, *row_shape)))
    return g
