"""The door of this room: how a GGUF file is planned, laid out and looked into.

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
from gemma_edge.converter.checkpoint.gguf.choice import SUFFIX
from gemma_edge.converter.checkpoint.gguf.families import FAMILIES
from gemma_edge.converter.checkpoint.gguf.file import is_gguf
from gemma_edge.converter.checkpoint.spelling import EMBEDDING
from gemma_edge.converter.evaluate.activations import round_blocks
from gemma_edge.converter.evaluate.machine import Inputs
from gemma_edge.converter.gguf.blocks import BLOCK, stored_bytes
from gemma_edge.converter.graph.ops import ANY, Graph
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.door import DECODER
from gemma_edge.converter.plan.footprint import ModelSizes, Needs, cache_layout
from gemma_edge.converter.plan.output import Bundle
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.plan.target import Target, TargetError
from gemma_edge.converter.quantize.packed_rows import StoredRows
from gemma_edge.converter.quantize.recipes import Storage
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.profiles.costs_llama import llama_footprint
from gemma_edge.runtime.formats.atomic import atomic_file
from gemma_edge.runtime.formats.encoding import Encoding


def graphs(model: Model, target: Target) -> Mapping[str, Sequence[Graph]]:  # noqa: ARG001  llama.cpp has its own
    """What is stored follows from them: one graph for any number of tokens, and the tables."""
    decoder = model.decoder(DECODER, tokens=ANY, with_logits=True)
    return {DECODER: [decoder]} | {graph.name: [graph] for graph in model.lookups(tokens=ANY)}


def nbytes(spec: TensorSpec, storage: Storage) -> int:
    """See plan/door.py; a tied head takes none, as the embedding's bytes are its own."""
    if spec.role is Role.HEAD and spec.source == EMBEDDING:
        return 0
    return stored_bytes(spec.shape, storage.encoding)


def needs(model: ModelSizes, target: Target) -> Needs:
    """In llama.cpp, with the file mapped."""
    if model.model.family not in FAMILIES:
        written = " and ".join(FAMILIES)
        raise TargetError(
            f"format gguf: written for {written}, not for {model.model.family}; use --format litertlm or --format onnx"
        )
    config, layout = model.model.config, cache_layout(target, model.model)
    by_role = model.sums(target)
    if config.tied_head:  # the embedding is read in full as well
        by_role.pop(Role.EMBEDDING)
    table_bytes = sum(by_role.pop(role, 0) for role in (Role.EMBEDDING, Role.PLE))
    weights_bytes = sum(by_role.values())
    repacked = sum(nbytes for role, nbytes in model.sums(target, _repacked).items() if role in by_role)
    kv_bytes = sum(layout.nbytes(owner.heads.kv, owner.heads.size, owner.window) for owner in model.owners)
    footprint = llama_footprint(
        weights_bytes=weights_bytes,
        repacked_bytes=repacked,
        table_bytes=table_bytes,
        kv_bytes=kv_bytes,
        vocab_size=config.vocab_size,
        shape=model.activations(layout.context_tokens),
    )
    return Needs(footprint, weights_bytes + kv_bytes)


def _repacked(encoding: Encoding, shape: tuple[int, ...]) -> int:
    """Q4_0's matrices are copied, in the order that its kernels read."""
    return encoding.nbytes(shape) if encoding.kind == "int" and encoding.bits == 4 else 0


def kernel_inputs(plan: Plan) -> Inputs:
    """llama.cpp's kernels for CPUs bring inputs to the weights' kind: blocks of int8, float16, bfloat16."""
    storages = plan.storages

    def rounded(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        encoding = storages[name].encoding
        if encoding.kind == "int":
            return round_blocks(x, BLOCK)
        values: NDArray[np.float32] = encoding.unpack(encoding.pack(x), x.shape).astype(np.float32, copy=False)
        return values

    return rounded


def opened(out: Path) -> AbstractContextManager[Any]:
    """A file."""
    return atomic_file(out)


def lay_out(plan: Plan, source: Checkpoint) -> Bundle:
    """Raises TokenizerError, MetadataError or ChatTemplateError where the checkpoint's side files cannot be used."""
    from gemma_edge.converter.gguf.bundle import GgufBundle

    return GgufBundle.lay_out(plan, source.side_path)


def reads(path: Path) -> bool:
    """A file of that name or beginning."""
    return not os.path.isdir(path) and (path.name.endswith(SUFFIX) or is_gguf(path))  # noqa: PTH112  see onnx/format.py


def inspect(path: Path) -> dict[str, Any]:
    """Metadata and tensors. Raises CheckpointError."""
    from gemma_edge.converter.gguf.inspect import inspect_gguf

    return inspect_gguf(path)


def stored_rows(path: Path, specs: Mapping[str, TensorSpec]) -> Mapping[str, Sequence[StoredRows]]:
    """See plan/output.py. Raises CheckpointError."""
    from gemma_edge.converter.gguf.stored import stored_rows

    return stored_rows(path, specs)


def show(values: dict[str, Any], console: Console) -> None:
    """As tables."""
    from gemma_edge.converter.gguf.inspect import print_gguf

    print_gguf(values, console)
