"""A plan as a Hugging Face directory: its tensors in shards, each size, and writing them."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from gemma_edge.converter.checkpoint.checkpoint import SIDE_FILES, Checkpoint
from gemma_edge.converter.checkpoint.safetensors_file import TensorInfo
from gemma_edge.converter.checkpoint.slices.shards import (
    INDEX,
    ITEM_BYTES,
    Header,
    header_bytes,
    index_json,
    shard_name,
    split,
)
from gemma_edge.converter.compressed_tensors.config import quantization_config
from gemma_edge.converter.compressed_tensors.packing import PlacedWeight, headers
from gemma_edge.converter.plan.door import DECODER
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.quantize.quantize import QuantError
from gemma_edge.converter.quantize.recipes import RecipeError, Storage
from gemma_edge.converter.quantize.stored import StoredWeight
from gemma_edge.converter.quantize.stream import NO_QUANTIZERS, Look, Quantizer, Stream, write_at
from gemma_edge.converter.tensors import AS_STORED, Role, TensorSpec
from gemma_edge.converter.tokenizer.chat_template import bundle_template
from gemma_edge.converter.tokenizer.tokenizer import sentencepiece_model

SHARD_BYTES: Final = 4 << 30
_COPIED: Final = tuple(name for name in SIDE_FILES if name != "config.json" and not name.startswith("model."))
_SHAPE: Final = "_shape"
_PIECE_BYTES: Final = 8 << 20


@dataclass(frozen=True)
class PlannedFile:
    """A file whose size is known. content: bytes, a file of the checkpoint, or None for what is still to come."""

    name: str
    nbytes: int
    content: bytes | Path | None


@dataclass(frozen=True)
class Weights:
    """What the shards hold. specs, storages: by a name of ours, in the order of use. names: in the file.

    copied: tensors of the checkpoint that no layer of the decoder reads, as they are.
    """

    specs: Mapping[str, TensorSpec]
    storages: Mapping[str, Storage]
    names: Mapping[str, str]
    copied: Mapping[str, TensorInfo]

    @property
    def parts(self) -> dict[str, dict[str, Header]]:
        """What lies together: of each tensor, by its name in the model, all that is stored of it, by name."""
        own = {
            self.names[name]: headers(self.names[name], spec.shape, self.storages[name].encoding)
            for name, spec in self.specs.items()
        }
        return own | {name: {name: Header(tensor.dtype, tensor.shape)} for name, tensor in self.copied.items()}

    @property
    def headers(self) -> dict[str, Header]:
        """Of every stored tensor by its name in the file, in the order of the file."""
        return {key: header for stored in self.parts.values() for key, header in stored.items()}


@dataclass(frozen=True)
class CompressedBundle:
    """Everything about the directory but its weights."""

    plan: Plan
    tokenizer: bytes
    notes: tuple[str, ...]
    sections: tuple[PlannedFile, ...]
    _weights: Weights = field(repr=False)
    _shards: tuple[tuple[str, tuple[str, ...]], ...] = field(repr=False)

    @classmethod
    def lay_out(cls, plan: Plan, source: Checkpoint, shard_bytes: int = SHARD_BYTES) -> "CompressedBundle":
        """Divide the tensors into shards of about `shard_bytes`, and collect configuration and tokenizer.

        Raises RecipeError where nothing is packed; TokenizerError where the checkpoint's tokenizer cannot be used.
        """
        weights = _weights(plan, source)
        config = dict(source.config) | {"quantization_config": _configuration(plan, weights)}
        parts, stored = weights.parts, weights.headers
        sizes = {name: sum(header.nbytes for header in part.values()) for name, part in parts.items()}
        total = sum(sizes.values())
        groups = split(sizes, max(1, -(-total // shard_bytes)))
        shards = [
            (shard_name(i, len(groups)), tuple(key for name in names for key in parts[name]))
            for i, names in enumerate(groups, 1)
        ]
        files = [PlannedFile(name, _nbytes({key: stored[key] for key in keys}), None) for name, keys in shards]
        if len(shards) > 1:
            index = index_json(total, {key: name for name, keys in shards for key in keys})
            files.append(PlannedFile(INDEX, len(index), index))
        text = json.dumps(config, indent=2).encode() + b"\n"
        files.append(PlannedFile("config.json", len(text), text))
        side = [path for path in (source.side_path / name for name in _COPIED) if path.is_file()]
        files += [PlannedFile(path.name, path.stat().st_size, path) for path in side]
        template = bundle_template(source.side_path)
        tokenizer = sentencepiece_model(source.side_path, plan.model.config.vocab_size, template.written)
        media = any(not name.startswith(source.prefix) for name in weights.copied)
        notes = ("encoders of images and audio are copied as they are",) if media else ()
        return cls(plan, tokenizer, notes, tuple(files), weights, tuple(shards))

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(file.nbytes for file in self.sections)

    def beside(self, out: Path) -> Mapping[Path, bytes]:  # noqa: ARG002  as other formats have it
        """Nothing."""
        return {}

    def write(
        self,
        directory: Path,
        checkpoint: Checkpoint,
        identity: Callable[[], str],  # noqa: ARG002  the directory carries no identifier
        on_bytes: Callable[[int], None],
        quantizers: Mapping[str, Quantizer] = NO_QUANTIZERS,
        look: Look | None = None,
    ) -> dict[str, QuantError]:
        """Stream the weights, shard by shard, then everything else; returns the errors by tensor name."""
        stored, errors = self._weights.headers, dict[str, QuantError]()
        for name, keys in self._shards:
            header, places = header_bytes({key: stored[key] for key in keys})
            with (directory / name).open("wb") as file:
                file.truncate(_nbytes({key: stored[key] for key in keys}))
                write_at(file, header, 0)
                stream = Stream(checkpoint, self._weights.specs, self._weights.storages, file, 0, quantizers, look)
                errors |= stream.write(list(self._placed(places)), on_bytes)
                self._copy(file, places)
                os.fsync(file.fileno())
        for planned in self.sections:
            if isinstance(planned.content, Path):
                shutil.copyfile(planned.content, directory / planned.name)
            elif planned.content is not None:
                (directory / planned.name).write_bytes(planned.content)
        return {name: error for name, error in errors.items() if name in self.plan.storages}

    def _placed(self, places: Mapping[str, int]) -> Iterator[PlacedWeight]:
        """Those weights whose values lie in this shard; a scale lies beside its values."""
        for name, spec in self._weights.specs.items():
            key, encoding = self._weights.names[name], self._weights.storages[name].encoding
            weight = StoredWeight(name, spec.shape, encoding)
            if encoding.kind == "float" and key in places:
                yield PlacedWeight(weight, places[key])
            elif f"{key}_packed" in places:
                yield PlacedWeight(weight, places[f"{key}_packed"], places[f"{key}_scale"])

    def _copy(self, file: BinaryIO, places: Mapping[str, int]) -> None:
        """What is not quantized here: shapes, and tensors as the checkpoint has them."""
        for name, spec in self._weights.specs.items():
            if (key := self._weights.names[name] + _SHAPE) in places:
                write_at(file, np.array(spec.shape, "<i8"), places[key])
        for name, tensor in self._weights.copied.items():
            if name in places:
                stored = np.memmap(tensor.file, np.uint8, "r", tensor.offset, (tensor.nbytes,))
                for first in range(0, tensor.nbytes, _PIECE_BYTES):
                    write_at(file, np.asarray(stored[first : first + _PIECE_BYTES]), places[name] + first)


def _nbytes(stored: Mapping[str, Header]) -> int:
    return len(header_bytes(stored)[0]) + sum(header.nbytes for header in stored.values())


def _weights(plan: Plan, source: Checkpoint) -> Weights:
    """The decoder's tensors as the checkpoint has them, a tied head for both; and what stays as it is."""
    decoder = plan.graphs[DECODER][0].used
    tables = [spec for spec in plan.specs.values() if spec.role in (Role.EMBEDDING, Role.PLE)]
    used = [plan.specs[name] for name in decoder]
    if plan.model.config.tied_head:
        head = next(spec for spec in used if spec.role is Role.HEAD)
        tables = [spec for spec in tables if spec.source != head.source]
    specs = {spec.name: replace(spec, fold=AS_STORED) for spec in (*tables, *used)}
    storages = dict(plan.storages)
    names = {name: _stored(source, spec).name for name, spec in specs.items()}
    copied: dict[str, TensorInfo] = {}
    for group, tensors in plan.unconverted.groups.items():
        for tensor in tensors:
            if (spec := _unused(tensor, source, group, plan)) is not None:
                specs[spec.name], names[spec.name] = spec, tensor.name
                storages[spec.name] = storages[_query(spec.source)]
            elif tensor.dtype in ITEM_BYTES and "equals" not in group:
                copied[tensor.name] = tensor
    return Weights(specs, storages, names, copied)


def _unused(tensor: TensorInfo, source: Checkpoint, group: str, plan: Plan) -> TensorSpec | None:
    """Keys' and values' matrices of a layer that reads another's: vLLM loads them in one with those of the queries."""
    name = tensor.name.removeprefix(source.prefix)
    if not group.startswith("layers.") or not name.endswith(("k_proj.weight", "v_proj.weight")):
        return None
    return TensorSpec(name, name, tensor.shape, Role.ATTENTION) if _query(name) in plan.specs else None


def _query(name: str) -> str:
    return name.replace("k_proj", "q_proj").replace("v_proj", "q_proj")


def _stored(source: Checkpoint, spec: TensorSpec) -> TensorInfo:
    tensor = source.resolve(spec.source)
    assert tensor is not None  # the plan matched it
    return tensor


def _configuration(plan: Plan, weights: Weights) -> dict[str, Any]:
    packed, plain = {}, []
    for name, spec in weights.specs.items():
        module = spec.source.removesuffix(".weight")
        encoding = weights.storages[name].encoding
        if encoding.kind == "int":
            packed[module] = encoding
        elif len(spec.shape) == 2:
            plain.append(module)
    if not packed:
        raise RecipeError(
            f"{plan.target.recipe.name}: no matrix of attention or feed-forward is int4 or int8, and "
            "compressed-tensors packs no others; use --target custom-int4 or custom-int8"
        )
    return quantization_config(packed, plain)
