"""The checkpoint's own logits on a small machine: the decoder Graph in numpy, one weight in memory at a time.

Every op runs over all tokens before the next op (machine.py). Its weight is read from safetensors in blocks of
rows, folded, used and dropped, and a value is dropped after the op that reads it last; so memory is the activations of
one layer and a block of one weight, however large the model. Logits come in blocks of rows: for 1024 tokens all of them
are 1 GiB.

Shapes: as in the graph, but with the batch of windows where the graph has 1: [B, T, ...]. A decoder treats the tokens
of every op alone except in attention, so the graph's last-token op lets all of them pass.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import NO_HOOKS, Allocate, Hooks, Machine, in_memory, operands, tensors
from gemma_edge.converter.evaluate.products import one_thread_each, product
from gemma_edge.converter.evaluate.static_scales import with_static_scales
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.tensors import Role

Float32 = NDArray[np.float32]

LOGIT_BLOCK_BYTES: Final = 128 << 20


class StreamingModel:
    """One checkpoint, ready to be evaluated; holds no weight.

    model: the checkpoint's own, or one that differs from it on purpose. allocate: where values of many tokens lie.
    """

    def __init__(self, checkpoint: Checkpoint, model: Model, allocate: Allocate = in_memory) -> None:
        self.model = model
        self.graph = model.decoder("evaluate", ir.ANY, with_logits=True)
        self._lookups = tuple(model.lookups(ir.ANY))
        self._checkpoint = checkpoint
        self.allocate = allocate
        [head] = (i for i, op in enumerate(self.graph.ops) if isinstance(op, ir.Linear) and op.weight.role is Role.HEAD)
        self.body, self._tail = self.graph.ops[:head], self.graph.ops[head:]

    @classmethod
    def open(cls, checkpoint: Checkpoint, allocate: Allocate = in_memory) -> "StreamingModel":
        """The model that config.json describes. Raises ConfigError, and CheckpointError where tensors are missing."""
        model = with_static_scales(Model.from_json(checkpoint.text_config), checkpoint)
        return cls(checkpoint, model, allocate)

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
        return 2 * sum(spec.values for op in self.body[position:] for spec in tensors(op))

    def head_bytes(self, tokens: int) -> int:
        """The share of `logits`."""
        return 2 * -(-tokens // self.logit_rows) * self.head.weight.values

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
        while walk.position < len(self.body):
            yield walk.step()

    def begin(self, windows: NDArray[np.integer[Any]], hooks: Hooks = NO_HOOKS) -> "Walk":
        """Look the tokens up, and stop before the first op."""
        inputs = {name: self._look_up(graph, windows, hooks) for name, graph in self._inputs.items()}
        machine = Machine(self._checkpoint, hooks, windows.shape[1], self.allocate)
        machine.values = {value: inputs[name] for name, value in self.graph.inputs.items()}
        return Walk(self, machine, 0)

    def first_use(self, names: Collection[str]) -> int | None:
        """The op of a walk before which none of these weights was read; None where a lookup reads one."""
        if any(spec.name in names for graph in self._lookups for op in graph.ops for spec in tensors(op)):
            return None
        readers = (i for i, op in enumerate(self.body) if any(spec.name in names for spec in tensors(op)))
        return next(readers, len(self.body))

    def logits(self, hidden: Float32, hooks: Hooks = NO_HOOKS) -> Iterator[tuple[int, Float32]]:
        """Yield (first row, logits [n, V]) for rows of `hidden` [N, D]; the head is read once for every block."""
        if hooks.on_linear is not None:
            hooks.on_linear(self.head.weight.name, hidden)
            hooks = replace(hooks, on_linear=None)
        for first in range(0, len(hidden), self.logit_rows):
            machine = Machine(self._checkpoint, hooks, tokens=1)
            machine.values[self.head.x] = hidden[None, first : first + self.logit_rows]
            for op, finished in zip(self._tail, self._last_reads[len(self.body) :], strict=True):
                machine.step(op)
                machine.forget(finished)
            yield first, machine.values[self.graph.outputs["logits"]][0]

    def logit_columns(
        self, runs: Sequence[tuple[Float32, Hooks]], on_bytes: OnBytes | None = None
    ) -> Iterator[tuple[int, Iterator[Float32]]]:
        """Yield (first token id, logits [N, n] of each run in turn) for one stretch of the vocabulary after another.

        runs: rows of `hidden` [N, D], and what to put in place of the head's weights. The head is read once for all.
        """
        machine = Machine(self._checkpoint, NO_HOOKS, tokens=1)
        name = self.head.weight.name
        runs = [(x if hooks.inputs is None else hooks.inputs(name, x), hooks) for x, hooks in runs]

        def columns(first: int, rows: Float32) -> Iterator[Float32]:
            for hidden, hooks in runs:
                used = rows if hooks.weights is None else hooks.weights(name, first, rows)
                yield self.logits_of(product(hidden, used.T))

        for first, rows in machine.rows(self.head.weight):
            yield first, columns(first, rows)
            if on_bytes is not None:
                on_bytes(2 * rows.size)

    def logits_of(self, products: Float32) -> Float32:
        """Logits [N, n] of some of the vocabulary, from what the head's rows of these tokens give."""
        machine = Machine(self._checkpoint, NO_HOOKS, tokens=1)
        machine.values = {self.head.out: products}
        for op in self._tail[1:]:
            assert isinstance(op, ir.Binary | ir.Unary | ir.StaticRange)  # which treat every logit alone
            machine.step(op)
        return machine.values[self.graph.outputs["logits"]]

    @property
    def linears(self) -> list[ir.Linear]:
        """In the order in which a walk comes to them; the last is the head."""
        return [op for op in (*self.body, self.head) if isinstance(op, ir.Linear)]

    @property
    def head(self) -> ir.Linear:
        """What turns `hidden` into logits, but for a soft-cap."""
        head = self._tail[0]
        assert isinstance(head, ir.Linear)
        return head

    @property
    def _inputs(self) -> dict[str, ir.Graph]:
        """The lookup behind each input of the decoder."""
        return dict(zip(self.graph.inputs, self._lookups, strict=True))

    def _look_up(self, graph: ir.Graph, windows: NDArray[np.integer[Any]], hooks: Hooks) -> Float32:
        machine = Machine(self._checkpoint, hooks, windows.shape[1], self.allocate)
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
    machine: Machine
    position: int

    def step(self) -> tuple[ir.Value, Float32]:
        """Run one op; its value, [B, T, ...]."""
        op = self.model.body[self.position]
        result = self.machine.step(op)
        self._go_on()
        return op.out, result

    @property
    def next_op(self) -> ir.Op | None:
        """What `step` would run; None where the head is next."""
        return self.model.body[self.position] if self.position < len(self.model.body) else None

    def give(self, result: Float32) -> None:
        """Take what the next op gives, [B, T, ...], from somebody who has computed it."""
        self.machine.values[self.model.body[self.position].out] = result
        self._go_on()

    def _go_on(self) -> None:
        self.machine.forget(self.model._last_reads[self.position])
        self.position += 1

    def finish(self) -> Float32:
        """Run all ops that are left; what the head multiplies, [B * T, D]."""
        self.advance(len(self.model.body))
        hidden: Float32 = self.machine.values[self.model.head.x]
        return hidden.reshape(-1, hidden.shape[-1])

    def advance(self, position: int) -> None:
        """Run the ops before `position`."""
        with one_thread_each():
            while self.position < position:
                self.step()

    def fork(self, hooks: Hooks) -> "Walk":
        """Another walk that goes on from here, with hooks of its own; this one is not touched by it."""
        return Walk(self.model, self.machine.fork(hooks), self.position)
