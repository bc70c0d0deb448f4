"""Graphs on their way through the emitter and LiteRT: a .tflite in memory with weights, run signature by signature."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.litert.file import TfliteFile
from gemma_edge.converter.litert.lower import emit
from gemma_edge.converter.plan.cache_layout import CacheLayout
from gemma_edge.converter.quantize.quantize import quantize_rows
from gemma_edge.runtime.formats.encoding import Encoding

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Filled:
    """A finished .tflite. `weights` are what its bytes stand for: the given ones, rounded as they are stored."""

    file: TfliteFile
    content: bytes
    weights: dict[str, NDArray[np.float32]]


def fill(
    graphs: Sequence[Graph],
    weights: Mapping[str, NDArray[np.float32]],
    encodings: Mapping[str, str],
    layout: CacheLayout | None = None,
) -> Filled:
    """Emit the graphs as the signatures of one file and store the weights in it."""
    parsed = {name: Encoding.parse(text) for name, text in encodings.items()}
    file = emit("test", list(graphs), parsed, layout)
    content = np.zeros(file.lay_out(), np.uint8)

    def write(data: NDArray[Any], offset: int) -> None:
        found = np.frombuffer(np.ascontiguousarray(data), np.uint8)
        content[offset : offset + found.size] = found

    stored = {}
    for name, placed in file.weights.items():
        if parsed[name].kind == "rest":  # all zeros
            continue
        rows = quantize_rows(weights[name], parsed[name])
        placed.put(0, rows, write)
        stored[name] = parsed[name].dequantize(rows.data, rows.scales, weights[name].shape)
    root = np.frombuffer(file.root(), np.uint8)
    content[: root.size] = root
    return Filled(file, content.tobytes(), stored)


@dataclass
class Session:
    """A file in LiteRT. Caches start as zeros and go from each run into the next, whichever signature runs."""

    interpreter: Interpreter
    caches: Arrays = field(default_factory=dict)

    @classmethod
    def of(cls, content: bytes) -> "Session":
        return cls(Interpreter(model_content=content, num_threads=1))

    def run(self, signature: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """The outputs that are no caches."""
        runner = self.interpreter.get_signature_runner(signature)
        for name, tensor in runner.get_input_details().items():
            if name.startswith("kv_cache"):
                self.caches.setdefault(name, np.zeros(tensor["shape"], tensor["dtype"]))
        # Copies: the interpreter's own memory may move in the next run.
        outputs = {name: value.copy() for name, value in runner(**inputs, **self.caches).items()}
        self.caches.update({name: value for name, value in outputs.items() if name in self.caches})
        return {name: value for name, value in outputs.items() if name not in self.caches}


@dataclass(frozen=True)
class Delegation:
    """What XNNPACK took of a file's first signature: how many partitions, and the ops that stayed with LiteRT."""

    partitions: int
    inside: Counter[str]
    outside: Counter[str]

    @classmethod
    def of(cls, content: bytes) -> "Delegation":
        interpreter = Interpreter(model_content=content, num_threads=1)
        count = len(interpreter._get_ops_details())
        interpreter.allocate_tensors()
        ops = interpreter._get_ops_details()
        ops, partitions = ops[:count], ops[count:]  # a partition is appended, what it replaces stays in the list
        assert {partition["op_name"] for partition in partitions} <= {"DELEGATE"}
        makes = {int(tensor): op for op in ops for tensor in op["outputs"]}
        inside: dict[int, str] = {}
        for partition in partitions:  # all that lies between its inputs and its outputs
            given = {int(tensor) for tensor in partition["inputs"]}
            wanted = [int(tensor) for tensor in partition["outputs"]]
            while wanted:
                tensor = wanted.pop()
                if tensor in makes and tensor not in given and makes[tensor]["index"] not in inside:
                    inside[makes[tensor]["index"]] = makes[tensor]["op_name"]
                    wanted += [int(operand) for operand in makes[tensor]["inputs"]]
        outside = Counter(op["op_name"] for op in ops if op["index"] not in inside)
        return cls(len(partitions), Counter(inside.values()), outside)
