"""A decoder graph as our executor runs it: the same computation, with caches that are updated in place.

What is written for every runtime is changed in two ways that onnxruntime 1.31 knows and earlier ones do not:

- layers that share keys and values do not give them again, which saves a copy of them per layer and step;
- sliding layers keep `window + PREFILL_TOKENS` slots instead of the whole context (`sliding_window_cache`), except the
  one that others share, which the kernel cannot read like that.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gemma_edge.runtime.executors.base import BundleMismatchError

PREFILL_TOKENS = 128
"""Rows of one call at most: more cost activation memory and gain little."""

_LINE_BYTES = 64
_LARGEST_SIZE = 4096  # of heads, and of their number: memory is set aside for what a graph says


@dataclass(frozen=True)
class Cache:
    """One layer's keys, or values: [1, kv_heads, slots, head_size]. window: None where it holds the whole context."""

    name: str  # of the input
    kv_heads: int
    head_size: int
    window: int | None

    @property
    def output(self) -> str:
        """Its name as an output."""
        return self.name.replace("past_key_values", "present")

    def shape(self, context_tokens: int) -> tuple[int, int, int, int]:
        """As numbers."""
        slots = context_tokens if self.window is None else self.window + PREFILL_TOKENS
        return 1, self.kv_heads, slots, self.head_size


def in_place(model: ir.Model) -> None:
    """Change `model` as described; changed already, it stays."""
    for node in _attentions(model):
        if len(node.outputs) == 1:
            continue
        present = node.outputs[1]
        if not present.is_graph_output():
            node.resize_outputs(1)
        elif node.attributes["local_window_size"].as_int() > 0 and not present.uses():
            node.attributes["sliding_window_cache"] = ir.AttrInt64("sliding_window_cache", 1)


def in_whole_lines(model: ir.Model) -> None:
    """Give what is looked up by row further rows of zeros, up to whole cache lines; nobody looks for them.

    ONNX Runtime 1.31 saves one weight right behind the other, and its kernels for AVX-512 end the process where packed
    ones are mapped from between two lines. A vocabulary that is no multiple of 16, with the scales of its table, is
    enough for that.
    """
    for name, value in model.graph.initializers.items():
        readers = [use.node.op_type for use in value.uses()]
        table = value.const_value
        if table is None or table.nbytes % _LINE_BYTES == 0 or len(table.shape) != 2 or set(readers) != {"Gather"}:
            continue
        rows = table.numpy()
        padded = np.concatenate([rows, np.zeros((-len(rows) % _LINE_BYTES, rows.shape[1]), rows.dtype)])
        value.const_value, value.shape = ir.tensor(padded, name=name), ir.Shape(padded.shape)


def caches(model: ir.Model) -> list[Cache]:
    """What a graph changed by `in_place` keeps. Raises BundleMismatchError for caches that are not as we write them."""
    found = []
    for node in _attentions(model):
        if len(node.outputs) == 1:
            continue
        window = node.attributes["local_window_size"].as_int() if "sliding_window_cache" in node.attributes else None
        for value in node.inputs[3:5]:
            shape = () if value is None or value.shape is None else tuple(value.shape)
            sizes = [size for size in shape[1::2] if isinstance(size, int) and 0 < size <= _LARGEST_SIZE]
            if value is None or len(shape) != 4 or len(sizes) != 2:
                raise BundleMismatchError(
                    f"graph {model.graph.name}: an attention's cache has the shape {list(map(str, shape))}, expected "
                    "[batch, heads, tokens, size]; convert the checkpoint with gemma-edge"
                )
            kv_heads, head_size = sizes
            found.append(Cache(str(value.name), kv_heads, head_size, window))
    return found


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "GroupQueryAttention"]
