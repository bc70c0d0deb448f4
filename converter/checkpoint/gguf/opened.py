"""A GGUF file as a checkpoint: what a Hugging Face directory holds in files beside its weights is made of its metadata.

Everything behind this sees a Checkpoint: names, shapes and values are those of the Hugging Face checkpoint that the
file was made of, as far as its quantization kept them. config.json, tokenizer.json and the chat template lie in a
temporary directory for as long as the checkpoint is in use.
"""

import json
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from gemma_edge.converter.checkpoint.gguf.choice import parts_of
from gemma_edge.converter.checkpoint.gguf.config import ARCHITECTURES, derived_config, derived_generation
from gemma_edge.converter.checkpoint.gguf.file import GgufFile, GgufTensor, read_gguf
from gemma_edge.converter.checkpoint.gguf.names import PREFIX, renamed
from gemma_edge.converter.checkpoint.gguf.tokenizer import derived_template, derived_tokenizer, tokenizer_json
from gemma_edge.converter.checkpoint.gguf.values import BLOCK_TYPES, require_gguf
from gemma_edge.converter.checkpoint.origin import Origin
from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError, TensorInfo
from gemma_edge.converter.checkpoint.scratch import Scratch
from gemma_edge.converter.printing import listed

_KINDS: Final[Mapping[str, str]] = {
    "imatrix": "an importance matrix, not a model; give the GGUF that was quantized with it",
    "adapter": "a LoRA adapter, not a model; give its base model, and the adapter as PEFT saves it with --lora",
    "mmproj": "encoders without a text model; give the text model's GGUF, or the safetensors checkpoint for images",
}
_IMATRIX: Final = "quantize.imatrix."
_SPECIAL: Final = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True)
class _Model:
    """All parts of one GGUF. metadata: of the first part."""

    files: tuple[GgufFile, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]  # by Hugging Face's names

    @property
    def path(self) -> Path:
        """Of the first part."""
        return self.files[0].path

    @property
    def stored(self) -> list[GgufTensor]:
        """As the files have them."""
        return [tensor for file in self.files for tensor in file.tensors.values()]

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return derived_config(self.path, self.metadata, self.tensors)


@dataclass(frozen=True)
class OpenedGguf:
    """What makes a Checkpoint, which says what each of these is."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    prefix: str
    origin: Origin


def open_gguf(path: Path) -> OpenedGguf:
    """The checkpoint of a GGUF file, or of any part of one that is split.

    Raises CheckpointError, naming the file and what is wrong with it, or what it is instead of a Gemma text model.
    """
    model = _read(path)
    if any(tensor.type in BLOCK_TYPES for tensor in model.stored):
        require_gguf(str(model.path))
    config = model.config
    template = derived_template(model.path, model.metadata)
    contents = {
        "config.json": json.dumps(config, indent=2).encode(),
        "generation_config.json": json.dumps(derived_generation(model.path, model.metadata)).encode(),
        "tokenizer.json": tokenizer_json(derived_tokenizer(model.path, model.metadata)),
        "tokenizer_config.json": json.dumps({f"{name}_token": f"<{name}>" for name in _SPECIAL}).encode(),
    }
    if template is not None:
        contents["chat_template.jinja"] = template.encode()
    directory, remove = _side_files(model.path, contents)
    origin = Origin(tuple(file.path for file in model.files), directory, _facts(model))
    weakref.finalize(origin, remove)
    return OpenedGguf(model.path, MappingProxyType(config), MappingProxyType(dict(model.tensors)), PREFIX, origin)


def gguf_config(path: Path) -> dict[str, Any]:
    """config.json alone; raises CheckpointError as open_gguf does."""
    return _read(path).config


def _read(path: Path) -> _Model:
    """All parts of a GGUF, checked against each other."""
    names = parts_of(path.name)
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{path}: a part of {len(names)}, {listed(missing)} absent; download all of them")
    files = tuple(read_gguf(path.parent / name) for name in names)
    metadata = files[0].metadata
    _check_model(files[0].path, metadata)
    _check_parts(files)
    pairs = [(file.path, tensor) for file in files for tensor in file.tensors.values()]
    counts = Counter(tensor.name for _, tensor in pairs)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise CheckpointError(
            f"{path}: {listed(twice)} in more than one part, expected one; download all of them again"
        )
    return _Model(files, metadata, renamed(pairs, metadata["general.architecture"]))


def _check_model(path: Path, metadata: Mapping[str, Any]) -> None:
    kind, architecture = metadata.get("general.type", "model"), metadata.get("general.architecture")
    kind = "mmproj" if architecture == "clip" else kind
    if kind != "model":
        what = _KINDS.get(kind) if isinstance(kind, str) else None
        raise CheckpointError(f"{path}: {what or f'general.type is {str(kind)[:40]!r}, expected model'}")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: general.architecture is {str(architecture)[:40]!r}, expected {' or '.join(ARCHITECTURES)}; "
            "only these can be converted"
        )


def _check_parts(files: tuple[GgufFile, ...]) -> None:
    """split.* of each part, as llama-gguf-split writes it: its number, how many there are, and how many tensors."""
    if len(files) == 1 and files[0].metadata.get("split.count", 0) in (0, 1):
        return
    expected = [(file, key, value) for no, file in enumerate(files) for key, value in _split_keys(no, len(files))]
    expected.append((files[0], "split.tensors.count", sum(len(file.tensors) for file in files)))
    for file, key, value in expected:
        if file.metadata.get(key) != value:
            raise CheckpointError(
                f"{file.path}: {key} is {str(file.metadata.get(key))[:40]}, expected {value} in part "
                f"{files.index(file) + 1} of {len(files)}; keep the parts' names, and download all of them again"
            )


def _split_keys(number: int, count: int) -> tuple[tuple[str, int], ...]:
    return ("split.no", number), ("split.count", count)


def _side_files(path: Path, contents: Mapping[str, bytes]) -> tuple[Path, Callable[[], object]]:
    """A temporary directory of the GGUF's name with these files in it, and what removes it."""
    try:
        scratch = Scratch()
        directory = scratch.path / path.name
        directory.mkdir()
        for name, content in contents.items():
            (directory / name).write_bytes(content)
    except OSError as error:
        raise CheckpointError(
            f"{tempfile.gettempdir()}: cannot hold the tokenizer of {path.name} ({error.strerror}); free 40 MB, "
            "or set TMPDIR"
        ) from error
    return directory, scratch.remove


def _facts(model: _Model) -> dict[str, Any]:
    """What the report says of the file."""
    metadata = model.metadata
    types = Counter(tensor.type for tensor in model.stored)
    matrices = {tensor.type for tensor in model.stored if len(tensor.shape) > 1} - {"F32"}  # small ones often stay F32
    imatrix = {key.removeprefix(_IMATRIX): value for key, value in metadata.items() if key.startswith(_IMATRIX)}
    return {
        "architecture": metadata["general.architecture"],
        "name": metadata.get("general.name"),
        "file_type": _file_type(metadata.get("general.file_type")),
        "parts": len(model.files),
        "tensors_by_type": dict(sorted(types.items())),
        "mixed_quantization": len(matrices) > 1,
        "importance_matrix": imatrix or None,
    }


def _file_type(number: Any) -> str | None:
    """llama.cpp's name of the quantization as a whole, "Q4_K_M"; the number where the package gguf is absent."""
    try:
        from gguf import LlamaFileType

        name: str = LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (ImportError, ValueError):
        return None if number is None else str(number)[:40]
    return name
