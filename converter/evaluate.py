"""The checkpoint's own logits on a small machine: the decoder Graph in numpy, one weight in memory at a time.

Every op runs over all tokens before the next op. Its weight is read from safetensors in blocks of rows, folded, used
and dropped, and a value is dropped after the op that reads it last; so memory is the activations of one layer and a
block of one weight, however large the model. Logits come in blocks of rows: for 1024 tokens all of them are 1 GiB.

Shapes: as in the graph, but with the batch of windows where the graph has 1: [B, T, ...]. A decoder treats the tokens
of every op alone except in attention, so the graph's last-token op lets all of them pass.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter import graph as ir
from gemma_edge.converter import reference
from gemma_edge.converter.checkpoint import Checkpoint
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.tensors import Role, TensorSpec

Float32 = NDArray[np.float32]

OnLinear = Callable[[str, Float32], None]
"""Called with a linear layer's weight name and its inputs, float32 [B * T, K], before it runs."""

Substitute = Callable[[str, int, Float32], Float32]
"""(name, first row, folded rows [n, K] or vector [n]) -> what to use in their place, of the same shape.

The memory of the rows is reused for the next block: copy what shall last."""

LOGIT_BLOCK_BYTES: Final = 128 << 20
_WEIGHT_BLOCK_BYTES: Final = 8 << 20  # stored bytes, 16 MiB as float32


@dataclass(frozen=True)
class Hooks:
    """What to do on the way. The default reads the checkpoint and reports to nobody."""

    on_linear: OnLinear | None = None
    weights: Substitute | None = None
    on_bytes: OnBytes | None = None  # after every n bytes of weights, as in progress.Stage


NO_HOOKS = Hooks()


class StreamingModel:
    """One checkpoint, ready to be evaluated; holds no weight.

    model: the checkpoint's own, or one that differs from it on purpose.
    """

    def __init__(self, checkpoint: Checkpoint, model: Model) -> None:
        self.model = model
        self.graph = model.decoder("evaluate", ir.ANY, with_logits=True)
        self._lookups = tuple(model.lookups(ir.ANY))
        self._checkpoint = checkpoint
        [head] = (i for i, op in enumerate(self.graph.ops) if isinstance(op, ir.Linear) and op.weight.role is Role.HEAD)
        self._body, self._tail = self.graph.ops[:head], self.graph.ops[head:]

    @classmethod
    def open(cls, checkpoint: Checkpoint) -> "StreamingModel":
        """The model that config.json describes. Raises ConfigError, and CheckpointError where tensors are missing."""
        model = Model.from_json(checkpoint.text_config)
        return cls(checkpoint, model)

    @property
    def logit_rows(self) -> int:
        """How many rows of logits one block holds at most."""
        return max(1, LOGIT_BLOCK_BYTES // (4 * self.model.config.vocab_size))

    def read_bytes(self, tokens: int) -> int:
        """What `run` over that many tokens reports to `on_bytes` in total; a value counts as two bytes."""
        return self.body_bytes + self.head_bytes(tokens)

    @property
    def body_bytes(self) -> int:
        """The share of `hidden`, or of `trace`."""
        return self.rest_bytes(0)

    def rest_bytes(self, position: int) -> int:
        """The share of a walk from there on."""
        return 2 * sum(spec.values for op in self._body[position:] for spec in _tensors(op))

    def head_bytes(self, tokens: int) -> int:
        """The share of `logits`."""
        return 2 * -(-tokens // self.logit_rows) * self._head.weight.values

    def run(self, windows: NDArray[np.integer[Any]], hooks: Hooks = NO_HOOKS) -> Iterator[tuple[int, Float32]]:
        """Yield (first row, logits float32 [n, V]) for the B * T rows of `windows` [B, T], each a text of its own."""
        hidden = self.hidden(windows, hooks)
        yield from self.logits(hidden, hooks)

    def hidden(self, windows: NDArray[np.integer[Any]], hooks: Hooks = NO_HOOKS) -> Float32:
        """What the head multiplies, [B * T, D]."""
        return self.begin(windows, hooks).finish()

    def trace(self, windows: NDArray[np.integer[Any]], hooks: Hooks = NO_HOOKS) -> Iterator[tuple[ir.Value, Float32]]:
        """Yield each of the graph's values as it is computed, with its numbers [B, T, ...], up to what the head reads.

        Two models may be walked side by side: what they hold is freed as they go.
        """
        walk = self.begin(windows, hooks)
        while walk.position < len(self._body):
            yield walk.step()

    def begin(self, windows: NDArray[np.integer[Any]], hooks: Hooks = NO_HOOKS) -> "Walk":
        """Look the tokens up, and stop before the first op."""
        inputs = {name: self._look_up(graph, windows, hooks) for name, graph in self._inputs.items()}
        machine = _Machine(self._checkpoint, hooks, windows.shape[1])
        machine.values = {value: inputs[name] for name, value in self.graph.inputs.items()}
        return Walk(self, machine, 0)

    def first_use(self, names: Collection[str]) -> int | None:
        """The op of a walk before which none of these weights was read; None where a lookup reads one."""
        if any(spec.name in names for graph in self._lookups for op in graph.ops for spec in _tensors(op)):
            return None
        readers = (i for i, op in enumerate(self._body) if any(spec.name in names for spec in _tensors(op)))
        return next(readers, len(self._body))

    def logits(self, hidden: Float32, hooks: Hooks = NO_HOOKS) -> Iterator[tuple[int, Float32]]:
        """Yield (first row, logits [n, V]) for rows of `hidden` [N, D]; the head is read once for every block."""
        if hooks.on_linear is not None:
            hooks.on_linear(self._head.weight.name, hidden)
            hooks = Hooks(None, hooks.weights, hooks.on_bytes)
        for first in range(0, len(hidden), self.logit_rows):
            machine = _Machine(self._checkpoint, hooks, tokens=1)
            machine.values[self._head.x] = hidden[None, first : first + self.logit_rows]
            for op, finished in zip(self._tail, self._last_reads[len(self._body) :], strict=True):
                machine.step(op)
                machine.forget(finished)
            yield first, machine.values[self.graph.outputs["logits"]][0]

    def logit_columns(
        self, runs: Sequence[tuple[Float32, Hooks]], on_bytes: OnBytes | None = None
    ) -> Iterator[tuple[int, Iterator[Float32]]]:
        """Yield (first token id, logits [N, n] of each run in turn) for one stretch of the vocabulary after another.

        runs: rows of `hidden` [N, D], and what to put in place of the head's weights. The head is read once for all.
        """
        machine = _Machine(self._checkpoint, NO_HOOKS, tokens=1)

        def columns(first: int, rows: Float32) -> Iterator[Float32]:
            for hidden, hooks in runs:
                used = rows if hooks.weights is None else hooks.weights(self._head.weight.name, first, rows)
                machine.values = {self._head.out: hidden @ used.T}
                for op in self._tail[1:]:
                    assert isinstance(op, ir.Binary | ir.Unary)  # which treat every logit alone
                    machine.step(op)
                yield machine.values[self.graph.outputs["logits"]]

        for first, rows in machine.rows(self._head.weight):
            yield first, columns(first, rows)
            if on_bytes is not None:
                on_bytes(2 * rows.size)

    @property
    def _head(self) -> ir.Linear:
        head = self._tail[0]
        assert isinstance(head, ir.Linear)
        return head

    @property
    def _inputs(self) -> dict[str, ir.Graph]:
        """The lookup behind each input of the decoder."""
        return dict(zip(self.graph.inputs, self._lookups, strict=True))

    def _look_up(self, graph: ir.Graph, windows: NDArray[np.integer[Any]], hooks: Hooks) -> Float32:
        machine = _Machine(self._checkpoint, hooks, windows.shape[1])
        machine.values[graph.inputs["token_ids"]] = windows
        for op in graph.ops:
            machine.step(op)
        return machine.values[graph.outputs["embeddings"]]

    @cached_property
    def _last_reads(self) -> list[list[ir.Value]]:
        """For each op, the values that nothing reads after it."""
        reader: dict[ir.Value, int] = {}
        for i, op in enumerate(self.graph.ops):
            reader |= dict.fromkeys((op.out, *operands(op)), i)
        del reader[self.graph.outputs["logits"]]
        finished: list[list[ir.Value]] = [[] for _ in self.graph.ops]
        for value, i in reader.items():
            finished[i].append(value)
        return finished


@dataclass
class Walk:
    """A run of the decoder up to the head, which stops between two ops; `position` counts those that ran."""

    model: StreamingModel
    machine: "_Machine"
    position: int

    def step(self) -> tuple[ir.Value, Float32]:
        """Run one op; its value, [B, T, ...]."""
        op = self.model._body[self.position]
        result = self.machine.step(op)
        self.machine.forget(self.model._last_reads[self.position])
        self.position += 1
        return op.out, result

    def finish(self) -> Float32:
        """Run all ops that are left; what the head multiplies, [B * T, D]."""
        self.advance(len(self.model._body))
        hidden: Float32 = self.machine.values[self.model._head.x]
        return hidden.reshape(-1, hidden.shape[-1])

    def advance(self, position: int) -> None:
        """Run the ops before `position`."""
        while self.position < position:
            self.step()

    def fork(self, hooks: Hooks) -> "Walk":
        """Another walk that goes on from here, with hooks of its own; this one is not touched by it."""
        return Walk(self.model, self.machine.fork(hooks), self.position)


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


def _tensors(op: ir.Op) -> Iterator[TensorSpec]:
    """The weights that an op reads."""
    return (value for field in fields(op) if isinstance(value := getattr(op, field.name), TensorSpec))


class _Machine:
    """The values of one run, and its ops; those that treat every number alone are reference.py's."""

    def __init__(self, checkpoint: Checkpoint, hooks: Hooks, tokens: int) -> None:
        self.values: dict[ir.Value, NDArray[Any]] = {}
        self._checkpoint = checkpoint
        self._hooks = hooks
        self._positions = np.arange(tokens, dtype=np.float32)

    def fork(self, hooks: Hooks) -> "_Machine":
        """With the same values; no op changes one."""
        fork = _Machine(self._checkpoint, hooks, len(self._positions))
        fork.values = dict(self.values)
        return fork

    def step(self, op: ir.Op) -> Float32:
        """Run one op and keep its result."""
        own: dict[type, Callable[[Any], Float32]] = {
            ir.Linear: self._linear,
            ir.Embed: self._embed,
            ir.RopeRotate: self._rotate,
            ir.Attention: self._attention,
            ir.Reshape: self._reshape,
            ir.LastToken: self._last_token,
        }
        run = own.get(type(op))
        result: Float32 = run(op) if run else reference.RUN[type(op)](self, op)  # type: ignore[arg-type]  # reads by []
        self.values[op.out] = result
        return result

    def forget(self, values: Iterable[ir.Value]) -> None:
        """Nothing reads them any more."""
        for value in values:
            del self.values[value]

    def __getitem__(self, operand: ir.Operand) -> Any:
        if isinstance(operand, ir.Value):
            return self.values[operand]
        return operand if isinstance(operand, float) else self._small(operand)

    def _small(self, spec: TensorSpec) -> Float32:
        """A whole vector."""
        values = spec.fold(self._checkpoint.read(spec.source))
        self._report(values)
        return values if self._hooks.weights is None else self._hooks.weights(spec.name, 0, values)

    def rows(self, spec: TensorSpec, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Float32]]:
        for first, stored in self._checkpoint.rows(spec.source, _WEIGHT_BLOCK_BYTES, start, stop):
            rows = spec.fold(stored)
            yield first, rows if self._hooks.weights is None else self._hooks.weights(spec.name, first, rows)

    def _report(self, values: Float32) -> None:
        if self._hooks.on_bytes is not None:
            self._hooks.on_bytes(2 * values.size)

    def _linear(self, op: ir.Linear) -> Float32:
        x: Float32 = self[op.x]
        flat = np.ascontiguousarray(x).reshape(-1, x.shape[-1])  # [B * T, K]
        if self._hooks.on_linear is not None:
            self._hooks.on_linear(op.weight.name, flat)
        out = np.empty((len(flat), op.weight.shape[0]), np.float32)
        for first, rows in self.rows(op.weight):
            np.matmul(flat, rows.T, out=out[:, first : first + len(rows)])
            self._report(rows)
        return out.reshape(*x.shape[:-1], -1)

    def _embed(self, op: ir.Embed) -> Float32:
        ids: NDArray[Any] = self[op.ids]
        ids = np.where((ids >= 0) & (ids < op.table.shape[0]), ids, 0)
        out = np.empty((*ids.shape, op.table.shape[1]), np.float32)
        for token in np.unique(ids).tolist():
            [(_, rows)] = ((first, rows.copy()) for first, rows in self.rows(op.table, token, token + 1))
            out[ids == token] = rows
        return out

    def _rotate(self, op: ir.RopeRotate) -> Float32:
        x: Float32 = self[op.x]  # [B, T, H, E]
        half = x.shape[-1] // 2
        angle = self._positions[:, None, None] * op.rope.inverse_frequencies(x.shape[-1])  # [T, 1, E/2]
        cos, sin = np.cos(angle), np.sin(angle)
        left, right = x[..., :half], x[..., half:]
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)

    def _attention(self, op: ir.Attention) -> Float32:
        q, k, v = self[op.q], self[op.cache.k], self[op.cache.v]
        behind = self._positions[:, None] - self._positions[None, :]  # how far key j lies behind query i
        hidden = (behind < 0) | (behind >= (op.cache.window or len(behind)))
        return np.stack([_attend(*window, hidden) for window in zip(q, k, v, strict=True)])

    def _reshape(self, op: ir.Reshape) -> Float32:
        x: Float32 = self[op.x]
        return x.reshape(*x.shape[:2], *op.out.shape[2:])

    def _last_token(self, op: ir.LastToken) -> Float32:
        x: Float32 = self[op.x]
        return x


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
