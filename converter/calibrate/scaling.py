"""Columns of a matrix made larger where its inputs are large, and the inputs smaller by as much, where that is free.

It is free where what comes before can take the other half: the weights of a norm, or the rows of the matrix before,
whose own rounding scales per row absorb it. A matrix rounded with one scale per row then loses less, as its errors are
spread over columns in proportion to what they cost (AWQ, arXiv 2306.00978; SmoothQuant, arXiv 2211.10438).

With p_j the mean square of input j, w_j the root mean square of the matrix's column j and a rounding error in
proportion to a row's size, the loss for column scales s is (sum p_j / s_j^2) * (sum w_j^2 s_j^2), which is least at
s_j^2 = sqrt(p_j) / w_j. Scales are powers of two: nothing but rounding changes, not one bit of the float32 model.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter import graph as ir
from gemma_edge.converter.calibrate.moments import divide_both_ways
from gemma_edge.converter.calibrate.rounding import Rounder
from gemma_edge.converter.evaluate_machine import operands
from gemma_edge.converter.tensors import TensorSpec
from gemma_edge.runtime.formats.encoding import Encoding

Float32 = NDArray[np.float32]

_LARGEST_EXPONENT = 6
_STRENGTHS = (0.5, 1.0)
_SAMPLED_ROWS, _SAMPLED_COLUMNS = 64, 2048
"""Of each matrix, for a trial; about as many, if it has more."""
_WORTHWHILE = 0.95
"""Of the loss without scales: a trial that comes out higher is not followed."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where the scales of an input go.

    source: the norm's vector or the matrix whose values or rows are divided by them.
    rows: [k], for each input the row of `source` that makes it. linears: all that reads the input.
    """

    source: str
    rows: NDArray[np.intp]
    linears: tuple[str, ...]


def places(graph: ir.Graph) -> dict[ir.Value, Place]:
    """By the input of linear layers; inputs without such a place are absent."""
    readers: dict[ir.Value, list[ir.Op]] = {}
    for op in graph.ops:
        for value in operands(op):
            readers.setdefault(value, []).append(op)
    producer = {op.out: op for op in graph.ops}
    uses = Counter(op.weight for op in graph.ops if isinstance(op, ir.Linear | ir.RmsNorm))
    found = {}
    for value, ops in readers.items():
        linears = tuple(op.weight.name for op in ops if isinstance(op, ir.Linear))
        source = _source(value, producer, readers) if len(linears) == len(ops) else None
        if source is not None and all(uses[graph.tensors[name]] == 1 for name in (source[0], *linears)):
            found[value] = Place(*source, linears)
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


def chosen_scales(
    gram: Float32, matrices: Sequence[Float32], encoding: Encoding, rows: NDArray[np.intp]
) -> Float32 | None:
    """The scales under which a sample of the matrices' rows loses least, or None where scaling hardly helps.

    Rounding with feedback makes up for much of what scaling does, so a guess alone would often do harm. Of wide
    matrices the trial takes a part of the columns: it is a comparison, and its cost grows with the cube of them.
    """
    columns = np.arange(0, len(gram), -(-len(gram) // _SAMPLED_COLUMNS))
    columns = columns[: len(columns) // 4 * 4]  # whole bytes, as a stored row has
    part = gram[np.ix_(columns, columns)]
    sample = np.concatenate([matrix[:: -(-len(matrix) // _SAMPLED_ROWS), columns] for matrix in matrices])
    best, least = None, _WORTHWHILE * Rounder.of(part, encoding).cost(sample)
    for strength in _STRENGTHS:
        scales = column_scales(gram.diagonal(), matrices, rows, strength)
        tried = scales[columns]
        cost = Rounder.of(divide_both_ways(part.copy(), tried), encoding).cost(sample * tried)
        if cost < least:
            best, least = scales, cost
    return best


def column_scales(
    power: Float32, matrices: Sequence[Float32], rows: NDArray[np.intp], strength: float = 1.0
) -> Float32:
    """Powers of two [k], for mean square inputs [k] and the matrices [n, k] that read them; equal for equal `rows`.

    strength: an exponent; 0 scales nothing.
    """
    squares = np.mean([np.square(matrix).mean(axis=0) for matrix in matrices], axis=0)
    wanted = np.log2(np.maximum(power, _floor(power))) - np.log2(np.maximum(squares, _floor(squares)))
    wanted = (np.bincount(rows, 0.25 * strength * wanted) / np.maximum(np.bincount(rows), 1))[rows]
    exponents = np.clip(np.rint(wanted - wanted.mean()), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    scales: Float32 = np.exp2(exponents).astype(np.float32)
    return scales


def _floor(values: NDArray[np.floating]) -> float:
    """What counts as zero beside the others."""
    return 1e-8 * max(float(values.max()), 1e-30)
