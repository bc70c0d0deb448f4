"""A Hugging Face checkpoint: names, shapes and dtypes from the headers, values streamed one tensor at a time.

Knows how the files name and store tensors, not what a tensor means: the model families say which ones they need
(`match`), and everything that is wrong with the files is found there, before anything is written.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint import spelling
from gemma_edge.converter.checkpoint.gguf.choice import gguf_at
from gemma_edge.converter.checkpoint.integers.packed import read_integers, unpacked
from gemma_edge.converter.checkpoint.origin import Origin
from gemma_edge.converter.checkpoint.quantized import quantized_by
from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError, TensorInfo, read_header, unreadable
from gemma_edge.converter.checkpoint.spelling import DECODER_PREFIXES, EMBEDDING, HEAD_NAMES, LEFTOVERS
from gemma_edge.converter.checkpoint.stored_values import check_stored, read_bounds, read_values, same_values
from gemma_edge.converter.models.encoders import PREFIXES
from gemma_edge.converter.models.family import text_type_of
from gemma_edge.converter.tensors import Derivation, SourceTensor, TensorSpec
from gemma_edge.profiles.plain_file import read_plain
from gemma_edge.runtime.formats.direct import DirectReader

__all__ = ["Checkpoint", "CheckpointError", "TensorInfo", "Unconverted", "read_config"]

Float32 = NDArray[np.float32]


# What besides the weights decides the output, where present.
SIDE_FILES = (
    "config.json", "generation_config.json", "model.safetensors.index.json",
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Unconverted:
    """Tensors that are known and stay behind, by the prefix or the reason that claimed them."""

    groups: Mapping[str, tuple[TensorInfo, ...]]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensors in self.groups.values() for tensor in tensors)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint directory, or GGUF. Holds no file open and no values: reading is safe from many threads.

    path: the directory; of a GGUF, its file.
    config: config.json as it is.
    tensors: every tensor of every shard, by name as stored.
    prefix: what stands before a decoder tensor's source name, "model.language_model.".
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    prefix: str
    origin: Origin | None = field(default=None, kw_only=True)

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Read config.json, the index and the headers, and check that they agree with each other and the files.

        path: a directory, or a GGUF file.
        Raises:
            CheckpointError: naming the file or the tensor.
        """
        if (gguf := gguf_at(path)) is not None:
            from gemma_edge.converter.checkpoint.gguf.opened import open_gguf

            opened = open_gguf(gguf)
            return cls(opened.path, opened.config, opened.tensors, opened.prefix, origin=opened.origin)
        config = _read_config(path)
        tensors = unpacked(config, spelling.unwrapped(_read_headers(path)))
        prefix = spelling.decoder_prefix(tensors)
        if prefix is None:
            raise CheckpointError(
                f"{path}: no {EMBEDDING} among {len(tensors)} tensors; expected it behind one of "
                f"{', '.join(filter(None, DECODER_PREFIXES))}: not a Gemma checkpoint, or an incomplete one"
            )
        nested = config.get("text_config", config)
        if isinstance(nested, Mapping) and nested.get("tie_word_embeddings", True):
            tensors = spelling.with_embedding(tensors, prefix)
        return cls(path, MappingProxyType(config), MappingProxyType(tensors), prefix)

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The decoder's part of config.json: `text_config` of a multimodal checkpoint, else all of it."""
        return _text_config(self.path, self.config)

    @property
    def revision(self) -> str | None:
        """The commit, where the directory is a snapshot in the Hugging Face cache (.../snapshots/<commit>)."""
        path = self.path.absolute()
        for place in (path, *path.parents)[: 1 if self.origin is None else None]:
            if place.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", place.name):
                return place.name
        return None

    @property
    def side_path(self) -> Path:
        """Where config.json, tokenizer and chat template lie: the directory itself, unless it is none."""
        return self.path if self.origin is None else self.origin.side_path

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights came from, for the report."""
        gguf = {} if self.origin is None else {"gguf": dict(self.origin.facts)}
        return {"checkpoint": self.path.name, "revision": self.revision} | gguf

    def resolve(self, source: str) -> TensorInfo | None:
        """The stored tensor behind a source name ("layers.0.mlp.up_proj.weight", "lm_head.weight"), if there is one."""
        names: tuple[str, ...] = (self.prefix + source,)
        if source == "lm_head.weight":
            names = HEAD_NAMES
        elif source.startswith(PREFIXES):
            names = ("model." + source, source)
        return next((self.tensors[name] for name in names if name in self.tensors), None)

    def match(self, specs: Iterable[TensorSpec], ignored: Iterable[str]) -> Unconverted:
        """Check that every spec's tensor is stored in the right shape, and that nothing else is.

        Looks at headers only, with one exception: where the head is tied and stored all the same, the two are compared.

        ignored: prefixes that may stay behind: of stored names with or without a leading "model." ("vision_tower."),
            and of source names ("layers.20.self_attn.k_proj.").
        Raises:
            CheckpointError: a missing, misshapen, quantised or unclaimed tensor, by name.
        """
        try:
            return self._match(specs, tuple(ignored))
        except CheckpointError:
            reason = quantized_by(self.config, self.tensors) or spelling.unmerged(self.tensors)
            if reason is None:
                raise
            raise CheckpointError(f"{self.path}: {reason}") from None

    def _match(self, specs: Iterable[TensorSpec], ignored: tuple[str, ...]) -> Unconverted:
        claimed = set()
        missing = []
        for stored in (stored for spec in specs for stored in spec.stored):
            tensor = self.resolve(stored.source)
            if tensor is None:
                missing.append(stored.source)
                continue
            check_stored(tensor, stored)
            claimed.add(tensor.name)
        if missing:
            raise CheckpointError(
                f"{self.path}: {spelling.listed_with_verb(missing)} missing; "
                "incomplete checkpoint, or config.json of another"
            )
        return self._sort_leftovers([t for name, t in self.tensors.items() if name not in claimed], ignored)

    def _sort_leftovers(self, leftovers: list[TensorInfo], ignored: tuple[str, ...]) -> Unconverted:
        groups: dict[str, list[TensorInfo]] = {}
        unclaimed = []
        for tensor in leftovers:
            spellings = (tensor.name, tensor.name.removeprefix("model."), tensor.name.removeprefix(self.prefix))
            group = next((prefix for prefix in ignored if any(s.startswith(prefix) for s in spellings)), None)
            if group is None:
                group = next((reason for pattern, reason in LEFTOVERS if pattern.search(tensor.name)), None)
            if group is None and tensor.name in HEAD_NAMES:
                self._check_tied(tensor)
                group = "lm_head (equals embed_tokens)"
            if group is None:
                unclaimed.append(tensor.name)
            else:
                groups.setdefault(group, []).append(tensor)
        if unclaimed:
            raise CheckpointError(
                f"{self.path}: {spelling.listed_with_verb(unclaimed)} not part of this model; "
                "convert the checkpoint that config.json describes"
            )
        return Unconverted(MappingProxyType({group: tuple(tensors) for group, tensors in groups.items()}))

    def _check_tied(self, head: TensorInfo) -> None:
        """A stored head that no spec claims must equal the embedding: transformers unties the two where they differ."""
        embedding = self._require(EMBEDDING)
        try:
            are_equal = same_values(head, embedding)
        except OSError as error:
            raise unreadable(head.file, error) from error
        if not are_equal:
            raise CheckpointError(
                f"{head.name}: differs from {embedding.name}, which config.json says is the head; "
                'set "tie_word_embeddings": false there, or remove the tensor'
            )

    def read(self, source: str) -> Float32:
        """A whole tensor as float32 in its stored shape; for small ones.

        Raises:
            CheckpointError: NaN or Inf values, or a file that has become shorter.
        """
        tensor = self._require(source)
        values = np.empty(tensor.shape, np.float32)
        with reading(tensor.file) as file:
            read_values(file, tensor, 0, values.reshape(-1))
        return values

    def rows(
        self, source: str, chunk_bytes: int = 8 << 20, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, Float32]]:
        """Stream rows [start, stop) of a matrix as (first_row, float32 [n, columns]); further axes count as columns.

        The array is the same memory every time: use it before asking for the next. `chunk_bytes` are stored bytes per
        step; two buffers exist, together 3 * chunk_bytes for 16-bit dtypes.

        Raises:
            CheckpointError: NaN or Inf values, or a file that has become shorter.
        """
        tensor = self._require(source)
        row_count, columns = tensor.shape[0], math.prod(tensor.shape[1:])
        stop = row_count if stop is None else stop
        if not 0 <= start <= stop <= row_count:
            raise ValueError(f"rows {start}:{stop} of {row_count}")
        full_bytes = max(tensor.nbytes, 2 * row_count * columns)  # what is stored in fewer bits takes no more memory
        rows_per_chunk = max(1, min(stop - start, chunk_bytes * row_count // max(1, full_bytes)))
        values = np.empty((rows_per_chunk, columns), np.float32)
        with reading(tensor.file) as file:
            for first in range(start, stop, rows_per_chunk):
                chunk = values[: min(rows_per_chunk, stop - first)]
                read_values(file, tensor, first * columns, chunk.reshape(-1))
                yield first, chunk

    def integers(self, source: str, start: int, stop: int) -> tuple[NDArray[np.int8], Float32]:
        """Rows of a matrix that is stored as integers: codes [n, columns], scales [n, groups]. Raises as `read`."""
        tensor = self._require(source)
        with reading(tensor.file) as file:
            return read_integers(file, tensor, start, stop - start)

    def derive(self, derivation: Derivation) -> Float32:
        """Compute values from stored tensors. Raises CheckpointError as `read` does."""
        return derivation.compute(*map(self._read_source, derivation.sources))

    def _read_source(self, stored: SourceTensor) -> Float32:
        if stored.is_bound:
            tensor = self._require(stored.source)
            bound = np.empty(tensor.shape, np.float32)
            with reading(tensor.file) as file:
                read_bounds(file, tensor, bound.reshape(-1))
            return bound
        if stored.row is None:
            return self.read(stored.source)
        [(_, rows)] = self.rows(stored.source, start=stored.row, stop=stored.row + 1)
        return rows.reshape(-1).copy()

    def _require(self, source: str) -> TensorInfo:
        tensor = self.resolve(source)
        if tensor is None:
            raise CheckpointError(f"{self.path}: {source} missing; the checkpoint is incomplete")
        return tensor

    def input_files(self) -> list[Path]:
        """Every file that can influence the output: configuration, tokenizer, index and the shards in use."""
        if self.origin is not None:
            return list(self.origin.files)
        side_files = [self.path / name for name in SIDE_FILES]
        stored = [part for tensor in self.tensors.values() for part in (tensor, tensor.scales) if part is not None]
        shards = sorted({part.file for part in stored})
        return [file for file in side_files if file.is_file()] + shards

    def sha256(self, on_bytes: Callable[[int], None]) -> dict[str, str]:
        """SHA-256 of the contents of every input file, by file name; calls `on_bytes(n)` after every n bytes hashed."""
        return {file.name: _file_sha256(file, on_bytes) for file in self.input_files()}


def read_config(path: Path) -> Mapping[str, Any]:
    """config.json of a directory whose weights stay closed, or of a GGUF; its text_config, if any, is an object.

    Raises CheckpointError.
    """
    if (gguf := gguf_at(path)) is not None:
        from gemma_edge.converter.checkpoint.gguf.opened import gguf_config

        return gguf_config(gguf)
    config = _read_config(path)
    _text_config(path, config)
    return config


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise CheckpointError(f"{path}: not a directory; expected one with config.json and model.safetensors")
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: no config.json; expected a checkpoint in Hugging Face format")
    config = read_json_object(path / "config.json")
    nested, kind = config.get("text_config"), config.get("model_type")
    if isinstance(nested, dict) and isinstance(kind, str) and (text_type := text_type_of(kind)) is not None:
        config["text_config"] = {"model_type": text_type, **nested}  # which transformers takes for granted
    return config


def _text_config(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config", config)
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"{path / 'config.json'}: text_config is {nested!r}; expected an object")
    return nested


def _read_headers(path: Path) -> dict[str, TensorInfo]:
    """All tensors of model.safetensors, or of the shards the index names (in that order, as transformers looks)."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        raise CheckpointError(_why_no_weights(path))
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError(f"{index}: no weight_map from tensor to file name; download it again")
    # metadata.total_size is not looked at: transformers ignores it, tools write it wrong, the headers are the truth.
    tensors: dict[str, TensorInfo] = {}
    for file_name in sorted(set(weight_map.values())):
        shard = path / file_name
        if Path(file_name).name != file_name:
            raise CheckpointError(f"{index}: names {file_name!r}; expected a file name without directories")
        if not os.path.isfile(shard):  # noqa: PTH113  Path.is_file raises where the name is too long
            raise CheckpointError(f"{index}: names {file_name}, which is absent; download it as well")
        for name, tensor in read_header(shard).items():
            if name in tensors:
                raise CheckpointError(f"{path}: {name} is in both {tensors[name].file.name} and {file_name}; keep one")
            tensors[name] = tensor
    for name, file_name in weight_map.items():
        if name not in tensors or tensors[name].file.name != file_name:
            raise CheckpointError(
                f"{index}: says {name} is in {file_name}, which has no such tensor; download both again"
            )
    return tensors


def _why_no_weights(path: Path) -> str:
    """No model.safetensors and no index: say what is there instead and what helps."""
    names = sorted(file.name for file in path.iterdir())
    if "adapter_model.safetensors" in names:
        return f"{path}: a LoRA adapter, not a model; merge it into its base model first (peft: merge_and_unload)"
    for suffix, advice in (
        (".safetensors", "download model.safetensors.index.json, which says which tensor is in which file"),
        (".bin", "load it with transformers and save_pretrained() it, which writes safetensors"),
        (".pth", "load it with transformers and save_pretrained() it, which writes safetensors"),
    ):
        found = next((name for name in names if name.endswith(suffix)), None)
        if found:
            return f"{path}: found {found}, expected model.safetensors or model.safetensors.index.json; {advice}"
    return f"{path}: no model.safetensors or model.safetensors.index.json; expected a checkpoint in Hugging Face format"


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises CheckpointError naming the file."""
    try:
        value = json.loads(read_plain(path))
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:  # ValueError: also broken UTF-8
        raise CheckpointError(f"{path}: not JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON object was expected; download it again")
    return value


@contextmanager
def reading(path: Path, *, is_cached: bool = False) -> Iterator[DirectReader]:
    """The file open as a `DirectReader`; where the disk fails, a CheckpointError names it."""
    try:
        with DirectReader(path, is_cached=is_cached) as file:
            yield file
    except OSError as error:
        raise unreadable(path, error) from error


def _file_sha256(path: Path, on_bytes: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with reading(path) as file:
        offset = 0
        while block := file.read(offset, _BLOCK_BYTES):
            digest.update(block)
            on_bytes(len(block))
            offset += len(block)
    return digest.hexdigest()
