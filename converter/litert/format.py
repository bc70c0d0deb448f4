"""The door of this room: how a .litertlm bundle is planned, laid out and looked into.

What needs an extra is imported when it is asked for: a plan needs none.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.activations import round_tokens
from gemma_edge.converter.evaluate.machine import Inputs
from gemma_edge.converter.graph.ops import Graph, RmsNorm, Value
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.matformer.pair import small_model
from gemma_edge.converter.plan.door import DECODER
from gemma_edge.converter.plan.footprint import ModelSizes, Needs, cache_layout, resident
from gemma_edge.converter.plan.output import Bundle
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.packed_rows import StoredRows
from gemma_edge.converter.quantize.recipes import Storage
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.profiles.costs import litert_footprint, with_drafter
from gemma_edge.profiles.costs_encoders import with_encoders
from gemma_edge.profiles.signatures import VERIFY, Call
from gemma_edge.profiles.signatures import calls as calls_of
from gemma_edge.runtime.formats.atomic import atomic_file
from gemma_edge.runtime.formats.encoding import EncodingError


def graphs(model: Model, target: Target) -> Mapping[str, Sequence[Graph]]:
    """Signatures for a decode step and each length of a prefill chunk, over the whole context and over spans of it."""
    decoders = [*_decoders(model, target, "")]
    if target.beside is not None:
        decoders += _decoders(small_model(model, target.beside), target, f"{target.beside.name}/")
    others = [*model.lookups(), *(graph for encoder in model.encoders for graph in encoder.graphs(in_one=False))]
    if model.drafter is not None:
        others.append(model.drafter.graph())
    return {DECODER: decoders} | {graph.name: [graph] for graph in others}


def _hidden(graph: Graph) -> Value:
    """Behind the last norm of a decoder, [1, T, D]."""
    return next(op.out for op in reversed(graph.ops) if isinstance(op, RmsNorm))


def _decoders(model: Model, target: Target, prefix: str) -> Iterator[Graph]:
    """prefix: of the signatures' names; none of them begins as LiteRT-LM's do where there is one."""
    drafted = None if target.verify_tokens is None else Call(target.verify_tokens, True)
    for call in _calls(model, target):
        name = VERIFY if call == drafted else call.name
        graph = model.decoder(prefix + name, call.rows, call.has_logits, every_row=True)
        graph.past, graph.is_steps, graph.is_batch = call.past, call.is_verify, call.is_batch
        graph.wraps = not call.is_verify or call == drafted  # our runtime never lets it: executors/litert/slot.py
        if model.drafter is not None and call.has_logits:
            graph.output("activations", _hidden(graph))
        yield graph


def _calls(model: Model, target: Target) -> Iterator[Call]:
    return calls_of(target.prefill_tokens, target.spans_for(model), target.all_verify_tokens, target.batch_rows)


def nbytes(spec: TensorSpec, storage: Storage) -> int:
    """See plan/door.py. Raises EncodingError for what LiteRT has no kernel for."""
    if storage.encoding.is_foreign:
        raise EncodingError(f"LiteRT has no kernel for {storage.encoding.name}; use int8 or fp16")
    return storage.encoding.nbytes(spec.shape)


def needs(model: ModelSizes, target: Target) -> Needs:
    """In LiteRT, with a cache of packed weights."""
    layout = cache_layout(target, model.model)
    by_role = model.sums(target)
    weights_bytes = resident(by_role)
    drafter = model.model.drafter
    calls = (1 if target.beside is None else 2) * tuple(_calls(model.model, target))
    caches = [(layout.nbytes(x.heads.kv, x.heads.size, x.window), layout.is_ring(x.window)) for x in model.owners]
    kv_bytes = sum(nbytes for nbytes, _ in caches)
    footprint = litert_footprint(
        weights_bytes=weights_bytes,
        embedder_bytes=by_role.get(Role.EMBEDDING, 0),
        ple_bytes=by_role.get(Role.PLE, 0),
        kv_bytes=kv_bytes,
        ring_bytes=sum(nbytes for nbytes, is_ring in caches if is_ring),
        largest_ring_bytes=max((nbytes for nbytes, is_ring in caches if is_ring), default=0),
        kv_is_half=layout.half,
        calls=calls,
        shape=model.activations(layout.context_tokens),
    )
    if drafter is not None:
        recipe = target.recipe_for(model.model)
        drafter_bytes = sum(nbytes(spec, recipe.storage(spec)) for spec in drafter.tensors.values())
        read = {past: layout.nbytes(past.kv_heads, past.size, past.window) for past in drafter.pasts}
        footprint = with_drafter(
            footprint,
            drafter_bytes,
            model.model.config.vocab_size,
            by_clusters=drafter.config.clusters > 0,
            half_bytes=sum(read.values()) if layout.half else 0,
        )
    return Needs(with_encoders(footprint, model.encoders(target)), weights_bytes + kv_bytes)


def kernel_inputs(plan: Plan) -> Inputs:
    """XNNPACK rounds the inputs of integer weights to int8, token by token, unless they are on static levels."""
    storages = plan.storages

    def rounded(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        encoding, static = storages[name].encoding, plan.specs[name].static
        is_static = static is not None and static.inputs and static.outputs and not encoding.block
        return x if encoding.kind == "float" or is_static else round_tokens(x)

    return rounded


def opened(out: Path) -> AbstractContextManager[Any]:
    """A file."""
    return atomic_file(out)


def lay_out(plan: Plan, source: Checkpoint) -> Bundle:
    """Raises TokenizerError, MetadataError or ChatTemplateError where the checkpoint's side files cannot be used."""
    from gemma_edge.converter.litert.bundle import LitertBundle

    return LitertBundle.lay_out(plan, source.side_path)


def reads(path: Path) -> bool:
    """A file."""
    return not os.path.isdir(path)  # noqa: PTH112  see onnx/format.py


def inspect(path: Path) -> dict[str, Any]:
    """Sections, graphs, weights and metadata. Raises BundleError."""
    from gemma_edge.converter.litert.inspect import inspect_bundle

    return inspect_bundle(path)


def stored_rows(path: Path, specs: Mapping[str, TensorSpec]) -> Mapping[str, Sequence[StoredRows]]:
    """See plan/output.py. Raises BundleError."""
    from gemma_edge.converter.litert import stored

    return stored.stored_rows(path, specs)


def show(values: dict[str, Any], console: Console) -> None:
    """As tables."""
    from gemma_edge.converter.litert.inspect import print_inspection

    print_inspection(values, console)
