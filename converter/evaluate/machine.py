"""The values of one run of the decoder in numpy, and its ops; the run itself is streaming.py's.

A linear layer or a lookup runs over all tokens, as its weight is read for it. The other ops take some windows at a
time, so that what they need on the way is small: the values of all tokens are the largest thing in memory, and may lie
elsewhere (see Allocate).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.products import CORES, one_thread_each, product
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.graph import reference
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.tensors import TensorSpec

Float32 = NDArray[np.float32]

OnLinear = Callable[[str, Float32], None]
"""Called with a linear layer's weight name and its inputs, float32 [B * T, K], before it runs."""

Substitute = Callable[[str, int, Float32], Float32]
"""(name, first row, folded rows [n, K] or vector [n]) -> what to use in their place, of the same shape.

The memory of the rows is reused for the next block: copy what shall last."""

Read = Callable[[TensorSpec, int, int | None], Iterator[tuple[int, Float32]]]
"""(weight, first row, row after the last) -> as Machine.rows yields, or (0, vector [n]), in the checkpoint's stead."""

Inputs = Callable[[str, Float32], Float32]
"""(a linear layer's weight name, its inputs [N, K]) -> what it multiplies in their place, of the same shape."""

Allocate = Callable[[tuple[int, ...]], Float32]
"""Gives an array of that shape for the values of all tokens, whatever is in it."""

_BATCH_TOKENS: Final = 1024
_SPARSEST_READ: Final = 16  # rows of a table that are read for one that is wanted
_THREADS: Final = min(2, CORES)
"""Batches at a time, each with what it needs on the way."""
_WEIGHT_BLOCK_BYTES: Final = 8 << 20  # stored bytes, 16 MiB as float32


def in_memory(shape: tuple[int, ...]) -> Float32:
    """An Allocate."""
    return np.empty(shape, np.float32)


@dataclass(frozen=True)
class Hooks:
    """What to do on the way. The default reads the checkpoint and reports to nobody."""

    on_linear: OnLinear | None = None
    weights: Substitute | None = None
    on_bytes: OnBytes | None = None  # after every n bytes of weights, as in progress.Stage
    inputs: Inputs | None = None  # such as activations.round_tokens, where kernels take int8
    read: Read | None = None  # where the checkpoint's own values are not needed: it is not opened then


NO_HOOKS = Hooks()


class Machine:
    """What has been computed and is still read. tokens: of a window, T. allocate: for values of more than one batch."""

    def __init__(self, checkpoint: Checkpoint, hooks: Hooks, tokens: int, allocate: Allocate = in_memory) -> None:
        self.values: dict[ir.Value, NDArray[Any]] = {}
        self._checkpoint = checkpoint
        self._hooks = hooks
        self._tokens = tokens
        self._allocate = allocate

    def fork(self, hooks: Hooks) -> "Machine":
        """With the same values; no op changes one."""
        fork = Machine(self._checkpoint, hooks, self._tokens, self._allocate)
        fork.values = dict(self.values)
        return fork

    def step(self, op: ir.Op) -> Float32:
        """Run one op and keep its result."""
        match op:
            case ir.Linear():
                result = self._linear(op)
            case ir.Embed():
                result = self._embed(op)
            case ir.Reshape(x=ir.Value() as x):
                whole = self.values[x]
                result = whole.reshape(*whole.shape[:2], *op.out.shape[2:])
            case ir.LastToken():  # all of them pass
                result = self.values[op.x]
            case _:
                result = self._in_batches(op)
        self.values[op.out] = result
        return result

    def forget(self, values: Iterable[ir.Value]) -> None:
        """Nothing reads them any more."""
        for value in values:
            del self.values[value]

    def rows(self, spec: TensorSpec, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Float32]]:
        """Yield (first row, folded rows [n, K]) for rows [start, stop) of a weight, or what stands in its place."""
        if self._hooks.read is not None:
            yield from self._hooks.read(spec, start, stop)
            return
        last = spec.shape[0] if stop is None else stop
        is_large = (last - start) * spec.values > spec.shape[0] * (_WEIGHT_BLOCK_BYTES >> 1)
        for first, rows in _ahead(self._folded(spec, start, stop)) if is_large else self._folded(spec, start, stop):
            yield first, rows if self._hooks.weights is None else self._hooks.weights(spec.name, first, rows)

    def _folded(self, spec: TensorSpec, start: int, stop: int | None) -> Iterator[tuple[int, Float32]]:
        for first, stored in self._checkpoint.rows(spec.source, _WEIGHT_BLOCK_BYTES, start, stop):
            yield first, spec.fold(stored, first)

    def _linear(self, op: ir.Linear) -> Float32:
        x: Float32 = self.values[op.x]
        flat = np.ascontiguousarray(x).reshape(-1, x.shape[-1])  # [B * T, K]
        if self._hooks.on_linear is not None:
            self._hooks.on_linear(op.weight.name, flat)
        if self._hooks.inputs is not None:
            flat = self._hooks.inputs(op.weight.name, flat)
        out = self._allocate((len(flat), op.weight.shape[0]))
        for first, rows in self.rows(op.weight):
            product(flat, rows.T, out[:, first : first + len(rows)])
            self._report(rows)
        return out.reshape(*x.shape[:-1], -1)

    def _embed(self, op: ir.Embed) -> Float32:
        ids: NDArray[Any] = self.values[op.ids]
        ids = np.where((ids >= 0) & (ids < op.table.shape[0]), ids, 0)
        out = self._allocate((*ids.shape, op.table.shape[1]))
        for first, stop in _runs(np.unique(ids).tolist()):
            for row, rows in self.rows(op.table, first, stop):
                here = (ids >= row) & (ids < row + len(rows))
                out[here] = rows[ids[here] - row]
        if op.table.factor != 1.0:
            out *= np.float32(op.table.factor)
        return out

    def _in_batches(self, op: ir.Op) -> Float32:
        """Any op that treats every window alone."""
        run = _RUN.get(type(op)) or reference.RUN[type(op)]
        vectors = {spec: self._vector(spec) for spec in tensors(op)}
        windows, size = len(self.values[next(operands(op))]), max(1, _BATCH_TOKENS // self._tokens)

        def batch(first: int) -> Float32:
            values = {value: self.values[value][first : first + size] for value in operands(op)}
            result: Float32 = run(_Batch(values, vectors, self._tokens), op)  # type: ignore[arg-type]  # reads by []
            return result

        begin = batch(0)
        if size >= windows:
            return begin
        result = self._allocate((windows, *begin.shape[1:]))
        result[:size] = begin

        def put(first: int) -> None:
            result[first : first + size] = batch(first)

        with one_thread_each(), ThreadPoolExecutor(_THREADS, thread_name_prefix="evaluate") as pool:
            list(pool.map(put, range(size, windows, size)))
        return result

    def _vector(self, spec: TensorSpec) -> Float32:
        if self._hooks.read is not None:
            [(_, values)] = self._hooks.read(spec, 0, None)
            self._report(values)
            return values
        values = spec.fold(self._checkpoint.read(spec.source))
        self._report(values)
        return values if self._hooks.weights is None else self._hooks.weights(spec.name, 0, values)

    def _report(self, values: Float32) -> None:
        if self._hooks.on_bytes is not None:
            self._hooks.on_bytes(2 * values.size)


def _ahead(blocks: Iterator[tuple[int, Float32]]) -> Iterator[tuple[int, Float32]]:
    """Copies of the same, each made by another thread while the one before is used."""

    def following() -> tuple[int, Float32] | None:
        return next(((first, rows.copy()) for first, rows in blocks), None)

    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(following)
        while (block := coming.result()) is not None:
            coming = pool.submit(following)
            yield block


def _runs(rows: list[int]) -> Iterator[tuple[int, int]]:
    """[first, stop) ranges that hold all of these, which rise: few reads, of not much more than is asked for."""
    first, count = rows[0], 0
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        count += 1
        if following is None or following - first > _SPARSEST_READ * count:
            yield first, row + 1
            if following is not None:
                first, count = following, 0


def operands(op: ir.Op) -> Iterator[ir.Value]:
    """The values that an op reads, keys and values of its cache included."""
    for field in fields(op):
        operand = getattr(op, field.name)
        if isinstance(operand, ir.KVCache):
            yield from (operand.k, operand.v)
        elif isinstance(operand, tuple):
            yield from (part for part in operand if isinstance(part, ir.Value))  # a convolution's stride is no value
        elif isinstance(operand, ir.Value) and field.name != "out":
            yield operand


def tensors(op: ir.Op) -> Iterator[TensorSpec]:
    """The weights that an op reads."""
    return (value for field in fields(op) if isinstance(value := getattr(op, field.name), TensorSpec))


@dataclass(frozen=True)
class _Batch:
    """What one op reads, of some windows. tokens: of a window."""

    values: Mapping[ir.Value, NDArray[Any]]
    vectors: Mapping[TensorSpec, Float32]
    tokens: int

    def __getitem__(self, operand: ir.Operand) -> Any:
        if isinstance(operand, ir.Value):
            return self.values[operand]
        return operand if isinstance(operand, float) else self.vectors[operand]


def _rotate(batch: _Batch, op: ir.RopeRotate) -> Float32:
    x: Float32 = batch[op.x]  # [B, T, H, E]
    half = x.shape[-1] // 2
    positions = np.arange(batch.tokens, dtype=np.float32)
    angle = positions[:, None, None] * op.rope.inverse_frequencies(x.shape[-1])  # [T, 1, E/2]
    cos, sin = np.cos(angle), np.sin(angle)
    left, right = x[..., :half], x[..., half:]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def _attention(batch: _Batch, op: ir.Attention) -> Float32:
    q, k, v = batch[op.q], batch[op.cache.k], batch[op.cache.v]
    positions = np.arange(batch.tokens)
    behind = positions[:, None] - positions[None, :]  # how far key j lies behind query i
    hidden = (behind < 0) | (behind >= (op.cache.window or len(behind)))
    return np.stack([_attend(*window, hidden) for window in zip(q, k, v, strict=True)])


def _attend(q: Float32, k: Float32, v: Float32, hidden: NDArray[np.bool_]) -> Float32:
    """One window: q [T, H, E], k and v [T, K, E], hidden [T, T] -> [T, H, E]."""
    tokens, heads, size = q.shape
    kv_heads = k.shape[1]
    grouped = q.reshape(tokens, kv_heads, heads // kv_heads, size).transpose(1, 2, 0, 3)  # [K, G, T, E]
    scores: Float32 = grouped @ k.transpose(1, 2, 0)[:, None]  # [K, G, T, T]
    scores[..., hidden] = -np.inf
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    mixed: Float32 = scores @ v.transpose(1, 0, 2)[:, None]  # [K, G, T, E]
    return mixed.transpose(2, 0, 1, 3).reshape(tokens, heads, size)


_RUN: Final[dict[type, Callable[[_Batch, Any], Float32]]] = {ir.RopeRotate: _rotate, ir.Attention: _attention}
"""Faster than the reference's, and of whole windows."""
