"""Columns of a matrix made larger where its inputs are large, and the inputs smaller by as much, where that is free.

It is free where what comes before takes the other half: the weights of a norm, or the rows of the matrix before, whose
own scales absorb it. Rounding errors then cost alike in every column, and inputs in int8 have fewer outliers (AWQ,
arXiv 2306.00978; SmoothQuant, arXiv 2211.10438).

With p_j the mean square of input j, w_j the root mean square of the matrix's column j, and a rounding error in
proportion to a row's size, the loss for column factors s is (sum p_j / s_j^2) * (sum w_j^2 s_j^2), which is least at
s_j^2 = sqrt(p_j) / w_j. Factors are powers of two: nothing but rounding changes, not one bit of the float32 model.

The p_j come from a short text that the checkpoint is run on.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import Hooks, operands
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.tensors import Factors, Role, TensorSpec

Float32 = NDArray[np.float32]

LARGEST_EXPONENT = 6


@dataclass(frozen=True, eq=False)
class Place:
    """Where the factors of an input go.

    source: the norm's vector or the matrix whose values or rows are divided by them.
    rows: [k], for each input the row of `source` that makes it. linears: all that reads the input.
    """

    source: str
    rows: NDArray[np.intp]
    linears: tuple[str, ...]


@dataclass
class _Seen:
    """Of a run, by the linear layer's name. power: weighted mean of x_j^2, [k]. squares: sum of w_ij^2, [k]."""

    power: dict[str, Float32] = field(default_factory=dict)
    squares: dict[str, Float32] = field(default_factory=dict)

    def note_inputs(self, name: str, x: Float32) -> None:
        """See evaluate.machine.OnLinear. Large inputs, such as the first token's, count little more than others."""
        squares = np.einsum("nk,nk->n", x, x)
        weights = 1 / (squares + max(squares.mean(), np.float32(1e-30)))
        self.power[name] = np.einsum("nk,nk,n->k", x, x, weights / weights.sum())

    def note_weights(self, name: str, _first: int, rows: Float32) -> Float32:
        """See evaluate.machine.Substitute."""
        if rows.ndim == 2:
            self.squares[name] = self.squares.get(name, np.float32(0)) + np.einsum("nk,nk->k", rows, rows)
        return rows


def balanced(
    checkpoint: Checkpoint,
    model: Model,
    integers: Mapping[str, bool],
    windows: NDArray[np.integer[Any]],
    on_bytes: OnBytes,
) -> Model:
    """`model` with factors in the folds of its weights.

    integers: by tensor, whether it is stored as integers that are chosen here; others stay as they are.
    windows: token ids [B, T]. on_bytes: StreamingModel.body_bytes in total.
    """
    plain = replace(model, tensors={name: _plain(spec) for name, spec in model.tensors.items()})
    streaming = StreamingModel(checkpoint, plain)
    seen = _Seen()
    streaming.hidden(windows, Hooks(seen.note_inputs, seen.note_weights, on_bytes))
    found = []
    for place in places(streaming.graph):
        if _is_free(place, model, integers):
            power = seen.power[place.linears[0]]
            squares = [seen.squares[name] / np.float32(model.tensors[name].shape[0]) for name in place.linears]
            found.append((place, exponents(power, squares, place.rows)))
    return with_factors(model, found)


def with_factors(model: Model, found: Iterable[tuple[Place, NDArray[np.int8]]]) -> Model:
    """`model` with 2^exponents on the columns of each place's linear layers, and 2^-exponents on its source's rows."""
    specs = dict(model.tensors)
    for place, wanted in found:
        factors = np.exp2(wanted.astype(np.float32))
        for name in place.linears:
            specs[name] = replace(specs[name], fold=replace(specs[name].fold, columns=Factors(factors)))
        inverse = np.ones(specs[place.source].shape[0], np.float32)
        inverse[place.rows] = np.float32(1) / factors
        fold = replace(specs[place.source].fold, rows=Factors(inverse))
        specs[place.source] = replace(specs[place.source], fold=fold)
    return replace(model, tensors=specs)


def exponents(power: Float32, squares: Sequence[Float32], rows: NDArray[np.intp]) -> NDArray[np.int8]:
    """Of powers of two, [k], for mean square inputs [k] and mean square columns [k] of each matrix that reads them.

    Equal for equal `rows`.
    """
    square = np.mean(squares, axis=0)
    wanted = np.log2(np.maximum(power, _floor(power))) - np.log2(np.maximum(square, _floor(square)))
    wanted = (np.bincount(rows, 0.25 * wanted) / np.maximum(np.bincount(rows), 1))[rows]
    found: NDArray[np.int8] = np.clip(np.rint(wanted - np.median(wanted)), -LARGEST_EXPONENT, LARGEST_EXPONENT).astype(
        np.int8
    )
    return found


def places(graph: ir.Graph) -> list[Place]:
    """In the order of the graph, whose weights are not turned.

    The head is left out: it loses little, and would have to be read once more.
    """
    readers: dict[ir.Value, list[ir.Op]] = {}
    for op in graph.ops:
        for value in operands(op):
            readers.setdefault(value, []).append(op)
    producer = {op.out: op for op in graph.ops}
    uses = Counter(op.weight for op in graph.ops if isinstance(op, ir.Linear | ir.RmsNorm))
    found = []
    for value, ops in readers.items():
        linears = tuple(op.weight.name for op in ops if isinstance(op, ir.Linear))
        if len(linears) < len(ops) or any(graph.tensors[name].role is Role.HEAD for name in linears):
            continue
        source = _source(value, producer, readers)
        if source is not None and all(uses[graph.tensors[name]] == 1 for name in (source[0], *linears)):
            found.append(Place(*source, linears))
    return found


def _source(
    value: ir.Value, producer: Mapping[ir.Value, ir.Op], readers: Mapping[ir.Value, Sequence[ir.Op]]
) -> tuple[str, NDArray[np.intp]] | None:
    """What can be divided, and which row of it makes each input."""
    each = np.arange(value.shape[-1])
    match producer.get(value):
        case ir.RmsNorm(weight=TensorSpec(name=name)) | ir.Linear(weight=TensorSpec(name=name)):
            return name, each
        case ir.Binary(name="mul", b=ir.Value() as factor) if len(readers[factor]) == 1:  # gelu(gate) * up
            match producer.get(factor):
                case ir.Linear(weight=up):
                    return up.name, each
        case ir.Reshape(x=ir.Value() as attended):  # attention mixes tokens, not columns of v, and heads share v
            match producer.get(attended):
                case ir.Attention(cache=ir.KVCache(v=v), q=q) if len(readers[v]) == 1:
                    return _values_source(v, q.shape[2], producer)
    return None


def _values_source(v: ir.Value, heads: int, producer: Mapping[ir.Value, ir.Op]) -> tuple[str, NDArray[np.intp]] | None:
    """v [B, T, K, E] as its matrix gives it; Gemma 3n norms it first, which undoes any scale."""
    match producer.get(v):
        case ir.Reshape(x=ir.Value() as projected):
            match producer.get(projected):
                case ir.Linear(weight=weight):
                    kv_heads, size = v.shape[2:]
                    shared = np.arange(heads)[:, np.newaxis] // (heads // kv_heads)
                    return weight.name, (shared * size + np.arange(size)).reshape(-1)
    return None


def _plain(spec: TensorSpec) -> TensorSpec:
    return replace(spec, fold=replace(spec.fold, hadamard=False))


def _is_free(place: Place, model: Model, integers: Mapping[str, bool]) -> bool:
    if not all(integers[name] for name in place.linears):
        return False
    return len(model.tensors[place.source].shape) == 1 or integers[place.source]


def _floor(values: NDArray[np.floating]) -> float:
    """What counts as zero beside the others."""
    return 1e-8 * max(float(values.max()), 1e-30)
