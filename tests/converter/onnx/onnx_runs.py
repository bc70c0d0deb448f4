"""Graphs on their way through the emitter and ONNX Runtime: an .onnx with its data files, run with a growing cache."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.onnx.file import BOOL, F32, I64, OnnxFile
from gemma_edge.converter.onnx.lower import lowered
from gemma_edge.converter.onnx.lowering import BATCH, TOKENS
from gemma_edge.converter.quantize.quantize import quantize_rows
from gemma_edge.runtime.formats.encoding import Encoding
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory

Arrays = dict[str, NDArray[Any]]
_TYPES = {"float32": F32, "int32": I64, "bool": BOOL}


@dataclass(frozen=True)
class Filled:
    """A finished .onnx on disk. `weights` are what its bytes stand for: the given ones, rounded as they are stored."""

    file: OnnxFile
    path: Path
    weights: dict[str, NDArray[np.float32]]


def fill(
    graph: Graph,
    weights: Mapping[str, NDArray[np.float32]],
    encodings: Mapping[str, str],
    folder: Path,
    many_rows: bool = False,
) -> Filled:
    """Emit the graph as a file of its own and store the weights. many_rows: as an encoder's."""
    parsed = {name: Encoding.parse(text) for name, text in encodings.items()}
    file = OnnxFile(f"{graph.name}.onnx", many_rows)
    inputs = {name: file.input(name, _TYPES[value.dtype], _dims(value.shape)) for name, value in graph.inputs.items()}
    for name, value in lowered(file, graph, parsed, inputs).items():
        value = file.op("Cast", value, to=F32) if graph.outputs[name].dtype == "bool" else value  # noqa: PLW2901
        file.output(name, value, _dims(graph.outputs[name].shape))
    contents = {name: np.zeros(nbytes, np.uint8) for name, nbytes in file.data.sizes.items()}
    stored = {}
    for name, placed in file.weights.items():
        rows = quantize_rows(weights[name], parsed[name])
        placed.put(0, rows, partial(_put, contents[placed.file]))
        stored[name] = parsed[name].dequantize(rows.data, rows.scales, weights[name].shape)
    for name, content in contents.items():
        content.tofile(folder / name)
    (folder / file.file_name).write_bytes(file.content)
    return Filled(file, folder / file.file_name, stored)


def _put(content: NDArray[np.uint8], values: NDArray[Any], offset: int) -> None:
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    content[offset : offset + data.size] = data


def _dims(shape: ir.Shape) -> list[int | str]:
    return [BATCH, *(TOKENS if size == ir.ANY else size for size in shape[1:])]


@dataclass
class Session:
    """A file in ONNX Runtime. The cache starts empty and grows from each run into the next."""

    session: onnxruntime.InferenceSession
    past: Arrays = field(default_factory=dict)
    position: int = 0

    @classmethod
    def of(cls, path: Path) -> "Session":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        caches = [node for node in session.get_inputs() if node.name.startswith("past_key_values")]
        past = {node.name: np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32) for node in caches}
        return cls(session, past)

    def run(self, inputs: Mapping[str, NDArray[Any]], tokens: int = 0) -> Arrays:
        """The outputs that are no cache. tokens: how many rows, for a graph with positions."""
        total = self.position + tokens
        feeds = {
            **inputs,
            **self.past,
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self.position, total)[None],
        }
        names = [node.name for node in self.session.get_outputs()]
        wanted = {node.name for node in self.session.get_inputs()}
        outputs = dict(
            zip(names, self.session.run(names, {k: v for k, v in feeds.items() if k in wanted}), strict=True)
        )
        self.past = {name: outputs.pop(name.replace("past_key_values", "present")) for name in self.past}
        self.position = total
        return outputs


class Program:
    """A directory as other programs run it: embeddings from a graph of their own, a batch, a cache that grows."""

    def __init__(self, path: Path, batch: int) -> None:
        directory = OnnxDirectory.open(path)
        self._sessions = {name: self._session(directory.graph_path(name)) for name in directory.graphs}
        self._decoder = self._sessions[directory.decoder]
        self.begin(batch)

    def begin(self, batch: int) -> None:
        """With an empty cache, for so many rows."""
        caches = [node for node in self._decoder.get_inputs() if node.name.startswith("past_key_values")]
        self._past = {node.name: np.zeros((batch, node.shape[1], 0, node.shape[3]), np.float32) for node in caches}

    @staticmethod
    def _session(path: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """The logits [B, V] behind each row's last token. ids: [B, T], new. mask: [B, past and T], 0 at padding."""
        positions = np.where(mask == 1, mask.cumsum(1) - 1, 1)[:, -ids.shape[1] :]  # as transformers derives them
        feeds: Arrays = {"input_ids": ids}
        if "embed_tokens" in self._sessions:
            feeds = _outputs(self._sessions["embed_tokens"], feeds)
        outputs = _outputs(self._decoder, feeds | {"attention_mask": mask, "position_ids": positions} | self._past)
        self._past = {name: outputs[name.replace("past_key_values", "present")] for name in self._past}
        logits: NDArray[np.float32] = outputs["logits"][:, 0]
        return logits


def _outputs(session: onnxruntime.InferenceSession, feeds: Arrays) -> Arrays:
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
