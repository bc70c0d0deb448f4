"""The door of this room: how a directory of packed safetensors is planned, laid out and looked into."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.spelling import EMBEDDING
from gemma_edge.converter.compressed_tensors.config import QUANT_METHOD
from gemma_edge.converter.evaluate.machine import Inputs
from gemma_edge.converter.graph.ops import ANY, Graph
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.door import DECODER
from gemma_edge.converter.plan.footprint import ModelSizes, Needs, cache_layout
from gemma_edge.converter.plan.output import Bundle
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.packed_rows import StoredRows
from gemma_edge.converter.quantize.recipes import Storage
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.profiles.footprint import Footprint, Part
from gemma_edge.profiles.plain_file import read_plain
from gemma_edge.runtime.formats.atomic import atomic_directory
from gemma_edge.runtime.formats.encoding import Encoding, EncodingError

_BF16: Final = Encoding("float", 16, brain=True)
_GROUPS: Final = (0, 32, 64, 128)  # columns of a scale that vLLM's kernels take; 0: all of a row


def graphs(model: Model, target: Target) -> Mapping[str, Sequence[Graph]]:  # noqa: ARG001  each program has its own
    """What is stored follows from them: one graph for any number of tokens, and the tables."""
    decoder = model.decoder(DECODER, tokens=ANY, with_logits=True)
    return {DECODER: [decoder]} | {graph.name: [graph] for graph in model.lookups(tokens=ANY)}


def nbytes(spec: TensorSpec, storage: Storage) -> int:
    """See plan/door.py; a tied head takes none, as the embedding's bytes are its own."""
    encoding = storage.encoding
    if encoding.kind == "int" and spec.role not in (Role.ATTENTION, Role.FFN):
        raise EncodingError(
            f"compressed-tensors packs attention and feed-forward alone, found {encoding.name}; use bf16"
        )
    if encoding.kind == "int" and (encoding.bits < 4 or encoding.block not in _GROUPS):
        raise EncodingError(f"compressed-tensors has no kernel for {encoding.name}; use int4-b32, int4-b128 or int8")
    if spec.role is Role.HEAD and spec.source == EMBEDDING:
        return 0
    return encoding.nbytes(spec.shape)


def needs(model: ModelSizes, target: Target) -> Needs:
    """In vLLM, all in memory; what that takes besides is not known here."""
    config, layout = model.model.config, cache_layout(target, model.model)
    by_role = model.sums(target)
    if config.tied_head:
        by_role.pop(Role.HEAD)
    weights_bytes = sum(by_role.values())
    kv_bytes = sum(layout.nbytes(owner.heads.kv, owner.heads.size, owner.window) for owner in model.owners)
    parts = (
        Part("weights", weights_bytes, 0, "computed: all of them, tables too"),
        Part("KV cache", kv_bytes, 0, "computed: of one sequence"),
    )
    return Needs(Footprint.of(parts), weights_bytes - by_role.get(Role.PLE, 0) + kv_bytes)


def kernel_inputs(plan: Plan) -> Inputs:  # noqa: ARG001  all layers alike
    """vLLM multiplies numbers of the model's type: bfloat16."""

    def rounded(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:  # noqa: ARG001  all layers alike
        values: NDArray[np.float32] = _BF16.unpack(_BF16.pack(x), x.shape).astype(np.float32, copy=False)
        return values

    return rounded


def opened(out: Path) -> AbstractContextManager[Any]:
    """A directory."""
    return atomic_directory(out)


def lay_out(plan: Plan, source: Checkpoint) -> Bundle:
    """Raises RecipeError, TokenizerError or ChatTemplateError."""
    from gemma_edge.converter.compressed_tensors.bundle import CompressedBundle

    return CompressedBundle.lay_out(plan, source)


def reads(path: Path) -> bool:
    """A directory whose config.json says so."""
    if not os.path.isdir(path):  # noqa: PTH112  see onnx/format.py
        return False
    try:
        config = json.loads(read_plain(path / "config.json"))
        return bool(config["quantization_config"]["quant_method"] == QUANT_METHOD)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # whatever else lies there
        return False


def inspect(path: Path) -> dict[str, Any]:
    """Files, tensors and configuration. Raises CheckpointError."""
    from gemma_edge.converter.compressed_tensors.inspect import inspect_directory

    return inspect_directory(path)


def stored_rows(path: Path, specs: Mapping[str, TensorSpec]) -> Mapping[str, Sequence[StoredRows]]:
    """See plan/output.py. Raises CheckpointError."""
    from gemma_edge.converter.quantize.checkpoint_rows import rows_of

    return rows_of(Checkpoint.open(path), specs)


def show(values: dict[str, Any], console: Console) -> None:
    """As tables."""
    from gemma_edge.converter.compressed_tensors.inspect import print_directory

    print_directory(values, console)
