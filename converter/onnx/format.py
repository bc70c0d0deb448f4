"""The door of this room: how an ONNX directory is planned, laid out and looked into.

What needs an extra is imported when it is asked for: a plan needs none.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.activations import round_blocks
from gemma_edge.converter.evaluate.machine import Inputs
from gemma_edge.converter.graph.ops import ANY, Graph
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.onnx.blocks import scale_block, scale_count, stored_bytes
from gemma_edge.converter.plan.cache_layout import CacheLayout
from gemma_edge.converter.plan.door import DECODER
from gemma_edge.converter.plan.footprint import ModelSizes, Needs, cache_layout, resident
from gemma_edge.converter.plan.output import Bundle
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.packed_rows import StoredRows
from gemma_edge.converter.quantize.recipes import Placement, Storage
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.profiles.costs_encoders import with_encoders
from gemma_edge.profiles.costs_onnx import PREFILL_TOKENS, onnx_footprint
from gemma_edge.runtime.formats.atomic import atomic_directory
from gemma_edge.runtime.formats.encoding import Encoding, EncodingError


def graphs(model: Model, target: Target) -> Mapping[str, Sequence[Graph]]:  # noqa: ARG001  a graph takes any length
    """One graph for any number of tokens; of an encoder, one with its adapter."""
    decoder = model.decoder("decoder", tokens=ANY, with_logits=True)
    encoders = [graph for encoder in model.encoders for graph in encoder.graphs(in_one=True)]
    return {DECODER: [decoder]} | {graph.name: [graph] for graph in (*model.lookups(tokens=ANY), *encoders)}


def nbytes(spec: TensorSpec, storage: Storage) -> int:
    """See plan/door.py; a scale is stored for every block. Raises EncodingError for what is not written here."""
    if storage.encoding.is_foreign:
        raise EncodingError(f"ONNX directories hold no {storage.encoding.name}; use int8 or fp16")
    is_table = Placement.of(spec.role) is Placement.OFFLOADED
    return stored_bytes(spec.shape, storage.encoding, is_table)


def needs(model: ModelSizes, target: Target) -> Needs:
    """In our executor."""
    context_tokens = cache_layout(target, model.model).context_tokens
    by_role = model.sums(target)
    kv_bytes, ring_bytes = _kv_bytes(model, context_tokens)
    footprint = onnx_footprint(
        values_bytes=resident(model.sums(target, Encoding.data_bytes)),
        scales=resident(model.sums(target, scale_count)),
        embedder_bytes=by_role.get(Role.EMBEDDING, 0),
        ple_bytes=by_role.get(Role.PLE, 0),
        kv_bytes=kv_bytes,
        ring_bytes=ring_bytes,
        shape=model.activations(context_tokens),
    )
    return Needs(with_encoders(footprint, model.encoders(target)), resident(by_role) + kv_bytes)


def _kv_bytes(model: ModelSizes, context_tokens: int) -> tuple[int, int]:
    """(all, those of rings), as our executor keeps them, whatever the graph says.

    All are rings but those that other layers read as well.
    """
    config, owners = model.model.config, model.owners
    readers = range(len(owners), len(config.attention))
    shared = {config.kv_source(layer) for layer in readers}
    layout = CacheLayout(context_tokens, PREFILL_TOKENS)
    windows = [None if layer in shared else owner.window for layer, owner in enumerate(owners)]
    sizes = [
        (layout.nbytes(owner.heads.kv, owner.heads.size, window), window)
        for owner, window in zip(owners, windows, strict=True)
    ]
    return sum(nbytes for nbytes, _ in sizes), sum(nbytes for nbytes, window in sizes if window is not None)


def kernel_inputs(plan: Plan) -> Inputs:
    """MatMulNBits rounds the inputs of integer weights to int8, block by block, unless they are on static levels."""
    storages = plan.storages

    def rounded(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        encoding, static = storages[name].encoding, plan.specs[name].static
        if encoding.kind == "float" or (static is not None and static.inputs):
            return x
        return round_blocks(x, scale_block(plan.specs[name].shape, encoding, is_table=False))

    return rounded


def opened(out: Path) -> AbstractContextManager[Any]:
    """A directory."""
    return atomic_directory(out)


def lay_out(plan: Plan, source: Checkpoint) -> Bundle:
    """Raises TokenizerError, MetadataError or ChatTemplateError where the checkpoint's side files cannot be used."""
    from gemma_edge.converter.onnx.bundle import OnnxBundle

    return OnnxBundle.lay_out(plan, source.side_path)


def reads(path: Path) -> bool:
    """A directory."""
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises where a name is too long, or may not be looked up


def inspect(path: Path) -> dict[str, Any]:
    """Files, graphs, weights and configuration. Raises OnnxDirectoryError."""
    from gemma_edge.converter.onnx.inspect import inspect_directory

    return inspect_directory(path)


def stored_rows(path: Path, specs: Mapping[str, TensorSpec]) -> Mapping[str, Sequence[StoredRows]]:
    """See plan/output.py. Raises OnnxDirectoryError."""
    from gemma_edge.converter.onnx import stored

    return stored.stored_rows(path, specs)


def show(values: dict[str, Any], console: Console) -> None:
    """As tables."""
    from gemma_edge.converter.onnx.inspect import print_directory

    print_directory(values, console)
