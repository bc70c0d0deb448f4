"""What an ONNX directory will need in memory, computed from its graphs and its configuration; no weight is read."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Final

import numpy as np
import onnx_ir as ir

from gemma_edge.profiles.budget import MemoryBudget
from gemma_edge.profiles.costs import ActivationShape
from gemma_edge.profiles.costs_encoders import EncoderShape, with_encoders
from gemma_edge.profiles.costs_onnx import onnx_footprint
from gemma_edge.profiles.footprint import Footprint
from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.onnx.encoders import OnnxEncoders
from gemma_edge.runtime.executors.onnx.graph import PREFILL_TOKENS, Cache, caches, in_place
from gemma_edge.runtime.executors.onnx.rows import OnnxTable, tables_within
from gemma_edge.runtime.executors.run_plan import longest_context, made_anonymous
from gemma_edge.runtime.formats.onnx_dir import AUDIO_ENCODER, EMBEDDER, VISION_ENCODER, OnnxDirectory, as_ours

_ALTUP: Final = re.compile(r"altup_projections\.\d+\.weight")  # Gemma 3n's, one for each stream but the first


@dataclass(frozen=True)
class OnnxPlan:
    """The sizes a footprint depends on; used as BundlePlan is."""

    weights_bytes: int
    scales: int
    embedder_bytes: int
    ple_bytes: int
    caches: tuple[Cache, ...]
    activations: ActivationShape
    encoders: tuple[EncoderShape, ...]

    @classmethod
    def of(cls, directory: OnnxDirectory) -> "OnnxPlan":
        """Changes the decoder's graph to run in place, as the executor does.

        Raises OnnxDirectoryError without metadata, BundleMismatchError where graphs or configuration are not ours.
        """
        decoder = directory.graphs[directory.decoder]
        with as_ours(directory.graph_path(directory.decoder)):
            in_place(decoder)
            kept = tuple(caches(decoder))
            rows_bytes = dict(_rows_bytes(directory))
            inner_bytes = 0 if directory.is_split else rows_bytes["inputs_embeds"]
            return cls(
                _stored_bytes(decoder) - inner_bytes,
                _scales(decoder),
                rows_bytes["inputs_embeds"],
                rows_bytes.get("per_layer_inputs", 0),
                kept,
                _activations(directory, kept),
                tuple(_encoders(directory)),
            )

    @property
    def context_tokens(self) -> int:
        """What the directory was converted for."""
        return self.activations.context_tokens

    def footprint(
        self, context_tokens: int | None = None, *, anonymous_weights: bool = False, slots: int = 1
    ) -> Footprint:
        """The peak of a run; parameters as BundlePlan's."""
        context = context_tokens or self.context_tokens
        planned = onnx_footprint(
            values_bytes=self.weights_bytes - self.scales * np.dtype(np.float32).itemsize,
            scales=self.scales,
            embedder_bytes=self.embedder_bytes,
            ple_bytes=self.ple_bytes,
            kv_bytes=sum(_cache_bytes(cache, context) for cache in self.caches),
            ring_bytes=sum(_cache_bytes(cache, context) for cache in self.caches if cache.window is not None),
            shape=replace(self.activations, context_tokens=context),
            slots=slots,
        )
        planned = with_encoders(planned, self.encoders)
        return made_anonymous(planned) if anonymous_weights else planned

    def longest_context(self, budget: MemoryBudget, *, anonymous_weights: bool = False, slots: int = 1) -> int | None:
        """As `longest_context`; the shortest is one call of prefill."""
        return longest_context(self, budget, PREFILL_TOKENS, anonymous_weights, slots)


def _cache_bytes(cache: Cache, context_tokens: int) -> int:
    """Of what is written: a context shorter than a ring leaves the rest untouched."""
    _, kv_heads, slots, head_size = cache.shape(context_tokens)
    return kv_heads * min(slots, context_tokens) * head_size * np.dtype(np.float32).itemsize


def _rows_bytes(directory: OnnxDirectory) -> Iterator[tuple[str, int]]:
    """Of each table that rows are read of, by the input that takes them."""
    if directory.is_split:
        path, graph = directory.graph_path(EMBEDDER), directory.graphs[EMBEDDER]
        stored = {str(value.name): OnnxTable(path, graph, str(value.name)).stored for value in graph.graph.outputs}
    else:
        path = directory.graph_path(directory.decoder)
        stored = {"inputs_embeds": tables_within(directory.graphs[directory.decoder], path.parent)}
    for name, parts in stored.items():
        yield name, sum(part.nbytes for part in parts)


def _stored_bytes(model: ir.Model) -> int:
    """Of all weights beside the graph."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, ir.ExternalTensor))


def _scales(model: ir.Model) -> int:
    """Of all matrices of integers that the decoder multiplies by."""
    scales = (node.inputs[2] for node in model.graph if node.op_type == "MatMulNBits")
    tensors = (value.const_value for value in scales if value is not None)
    return sum(tensor.size for tensor in tensors if tensor is not None)


def _activations(directory: OnnxDirectory, kept: tuple[Cache, ...]) -> ActivationShape:
    model = directory.graphs[directory.decoder]
    path = directory.graph_path(directory.decoder)
    matrices = list(_matrices(model))
    attention = next((node for node in model.graph if node.op_type == "GroupQueryAttention"), None)
    if not matrices or not kept or attention is None:
        raise BundleMismatchError(
            f"{path}: found no weights, keys and values of a decoder, its memory cannot be computed; "
            "convert the checkpoint with gemma-edge"
        )
    rows = next((value for value in model.graph.inputs if value.name == "per_layer_inputs"), None)
    sizes = () if rows is None or rows.shape is None else tuple(rows.shape)[2:]  # [B, T, L, P]
    ple_values = prod(size for size in sizes if isinstance(size, int)) if sizes else 0
    return ActivationShape(
        directory.metadata().max_num_tokens,
        heads=attention.attributes["num_heads"].as_int(),
        kv_heads=kept[0].kv_heads,
        model_width=max(matrices)[1],  # the head has the most rows
        ffn_width=max(columns for _, columns in matrices),
        altup_inputs=1 + sum(_ALTUP.fullmatch(name) is not None for name in model.graph.initializers),
        ple_values=ple_values,
        kv_values=sum(cache.kv_heads * cache.head_size for cache in kept),
        vocab_size=max(matrices)[0],
    )


def _matrices(model: ir.Model) -> Iterator[tuple[int, int]]:
    """(rows, columns) of each matrix that the decoder multiplies by; every one is stored [N, K]."""
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            yield node.attributes["N"].as_int(), node.attributes["K"].as_int()
        elif node.op_type in ("FusedMatMul", "MatMul", "Cast"):  # float16 is cast first
            for value in node.inputs:
                tensor = None if value is None else value.const_value
                if isinstance(tensor, ir.ExternalTensor) and len(tensor.shape) == 2:
                    rows, columns = (int(size) for size in tensor.shape.numpy())
                    yield rows, columns


def _encoders(directory: OnnxDirectory) -> Iterator[EncoderShape]:
    """Of each encoder beside the decoder."""
    encoders = OnnxEncoders(directory, 1, 1)
    vision, audio = encoders.vision, encoders.audio
    graphs = directory.encoder(VISION_ENCODER), directory.encoder(AUDIO_ENCODER)
    if vision is not None and graphs[0] is not None:
        yield EncoderShape(vision.design, _stored_bytes(graphs[0]), vision.inputs)
    if audio is not None and graphs[1] is not None:
        yield EncoderShape(audio.design, _stored_bytes(graphs[1]), audio.inputs)
