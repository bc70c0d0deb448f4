"""A PEFT adapter directory: which modules it changes, and by which of its tensors.

Names in adapter_model.safetensors, M being a module's name in training ("model.language_model.layers.0.mlp.up_proj"):

    base_model.model.M.lora_A.weight [r, in], .lora_B.weight [out, r]      nn.Linear
    base_model.model.M.lora_embedding_A [r, rows], .lora_embedding_B [columns, r]      nn.Embedding
    base_model.model.M.lora_magnitude_vector [out]      DoRA
    base_model.model.M.weight, M.base_layer.weight      modules_to_save, embeddings: a tensor that replaces the base's
    base_model.model.M.token_adapter.trainable_tokens_delta [n, columns]      whole rows, of trainable_token_indices

Source: peft utils/save_and_load.py and tuners/lora/layer.py (0.21).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, TensorInfo
from gemma_edge.converter.checkpoint.lora_config import CONFIG_FILE, LoraConfig, LoraError
from gemma_edge.converter.checkpoint.safetensors_file import read_header
from gemma_edge.converter.checkpoint.stored_values import FLOATS
from gemma_edge.converter.printing import listed

WEIGHTS_FILE = "adapter_model.safetensors"

_LINEAR = ("lora_A.weight", "lora_B.weight")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
_MAGNITUDE = "lora_magnitude_vector"
_TOKENS = "token_adapter.trainable_tokens_delta"
# What replaces a weight; where several do, the last. An adapter of a resized model holds some more than once.
_SAVED = ("token_adapter.base_layer.weight", "base_layer.weight", "weight", "modules_to_save.weight")
_UNUSED = "original_module.weight"  # of modules_to_save: what it was before
_PARTS = (*_LINEAR, *_EMBEDDING, _MAGNITUDE, _TOKENS, *_SAVED, _UNUSED)
_KEY = re.compile(rf"base_model\.model\.(?P<module>.+?)\.(?P<part>{'|'.join(map(re.escape, _PARTS))})")


@dataclass(frozen=True)
class LowRank:
    """One module's change: scale * B @ A, transposed for an embedding.

    a, b, magnitude: tensors of the adapter. magnitude: DoRA's length of each row afterwards.
    """

    module: str
    a: TensorInfo
    b: TensorInfo
    scale: float
    is_embedding: bool
    magnitude: TensorInfo | None

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight it belongs to, as stored: [out, in], or [rows, columns] of an embedding."""
        return (self.a.shape[1], self.b.shape[0]) if self.is_embedding else (self.b.shape[0], self.a.shape[1])


@dataclass(frozen=True)
class Adapter:
    """An opened adapter directory; holds no values.

    weights: its tensors, read as a checkpoint's are, by their own names.
    low_rank, saved: what changes and what replaces a weight, by module. tokens: which rows are replaced by which.
    """

    path: Path
    config: LoraConfig
    weights: Checkpoint
    low_rank: Mapping[str, LowRank]
    saved: Mapping[str, TensorInfo]
    tokens: Mapping[str, tuple[tuple[int, ...], TensorInfo]]

    @classmethod
    def open(cls, path: Path) -> "Adapter":
        """Read configuration and header and check that they agree.

        Raises LoraError or CheckpointError, naming the file, the setting or the tensor.
        """
        config = LoraConfig.load(_require(path, CONFIG_FILE))
        tensors = read_header(_require(path, WEIGHTS_FILE))
        parts = _parts_by_module(path, tensors)
        low_rank = {
            module: _low_rank(config, module, own)
            for module, own in parts.items()
            if not own.keys() <= {*_SAVED, _TOKENS, _UNUSED}
        }
        tokens = {module: _token_rows(config, module, own) for module, own in parts.items() if _TOKENS in own}
        saved = {module: own[part] for module, own in parts.items() for part in _SAVED if part in own}
        if config.tokens and not tokens:
            found = next(map(list, config.tokens.values()))
            raise LoraError(
                f"{config.path}: trainable_token_indices is {found}, and {WEIGHTS_FILE} has no such rows; "
                "save the adapter again"
            )
        if not low_rank and not saved and not tokens:
            raise LoraError(f"{path / WEIGHTS_FILE}: holds no tensor; save the adapter again")
        weights = Checkpoint(path, {}, MappingProxyType(tensors), prefix="")
        return cls(path, config, weights, MappingProxyType(low_rank), MappingProxyType(saved), tokens)

    @property
    def files(self) -> list[Path]:
        """Configuration and weights."""
        return [self.path / CONFIG_FILE, self.path / WEIGHTS_FILE]

    @property
    def modules(self) -> list[str]:
        """Every module that it changes or replaces."""
        return list(dict.fromkeys((*self.low_rank, *self.saved, *self.tokens)))


def _require(path: Path, name: str) -> Path:
    """A file of the directory, or what is wrong with the directory."""
    if (path / name).is_file():
        return path / name
    if not path.is_dir():
        raise LoraError(f"{path}: not a directory; expected one with {CONFIG_FILE} and {WEIGHTS_FILE}")
    if name == WEIGHTS_FILE and (path / "adapter_model.bin").is_file():
        raise LoraError(f"{path}: found adapter_model.bin, expected {WEIGHTS_FILE}; load and save it with a newer PEFT")
    if name == CONFIG_FILE and (path / "config.json").is_file():
        raise LoraError(f"{path}: a model, not an adapter ({CONFIG_FILE} is absent); convert it with --checkpoint")
    raise LoraError(f"{path}: no {name}; expected an adapter as PEFT's save_pretrained() writes it")


def _parts_by_module(path: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    parts: dict[str, dict[str, TensorInfo]] = {}
    unknown = []
    for name, tensor in tensors.items():
        key = _KEY.fullmatch(name)
        if key is None or ".lora_" in key["module"]:
            unknown.append(name)
            continue
        if tensor.dtype not in FLOATS:
            raise LoraError(f"{name}: dtype {tensor.dtype}, expected {', '.join(FLOATS)}; save the adapter unquantised")
        parts.setdefault(key["module"], {})[key["part"]] = tensor
    if unknown:
        raise LoraError(
            f"{path / WEIGHTS_FILE}: {listed(unknown)} cannot be merged here; "
            "merge the adapter with PEFT (merge_and_unload) and convert the result"
        )
    return parts


def _low_rank(config: LoraConfig, module: str, parts: Mapping[str, TensorInfo]) -> LowRank:
    """One module's tensors, checked against each other and the configuration."""
    is_embedding = any(part in parts for part in _EMBEDDING)
    names = _EMBEDDING if is_embedding else _LINEAR
    for name in names:
        if name not in parts:
            raise LoraError(
                f"{config.path.parent}: {module}.{name} is missing; the adapter is incomplete, save it again"
            )
    a, b = (parts[name] for name in names)
    rank = config.rank_of(module)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise LoraError(
            f"{module}: A {list(a.shape)} and B {list(b.shape)}, expected [{rank}, n] and [n, {rank}] by r or "
            f"rank_pattern in {CONFIG_FILE}; they belong to different adapters"
        )
    shares_tie = config.keeps_tie and module.endswith(("embed_tokens", "lm_head"))  # PEFT saves both, names one
    if not config.is_target(module) and not shares_tie:
        raise LoraError(
            f"{module}: has an adapter, although target_modules in {CONFIG_FILE} does not name it; "
            "they belong to different adapters"
        )
    magnitude = parts.get(_MAGNITUDE)
    if (magnitude is not None) != config.is_dora:
        raise LoraError(
            f"{module}: {_MAGNITUDE} is {'there' if magnitude else 'missing'}, but use_dora in {CONFIG_FILE} is "
            f"{str(config.is_dora).lower()}; they belong to different adapters"
        )
    if magnitude is not None and (is_embedding or magnitude.shape != b.shape[:1]):
        raise LoraError(
            f"{module}: {_MAGNITUDE} has shape {list(magnitude.shape)}, expected one value for each output of a linear "
            "layer; merge the adapter with PEFT (merge_and_unload) and convert the result"
        )
    return LowRank(module, a, b, config.scale_of(module), is_embedding, magnitude)


def _token_rows(config: LoraConfig, module: str, parts: Mapping[str, TensorInfo]) -> tuple[tuple[int, ...], TensorInfo]:
    """Which rows a module's token adapter replaces, and by which."""
    name = module.rpartition(".")[2]
    ids = next((ids for key, ids in config.tokens.items() if module.endswith(key)), None)
    if ids is None and name == "lm_head":  # tied to the embedding, and trained with it
        ids = next((ids for key, ids in config.tokens.items() if key.endswith("embed_tokens")), None)
    rows = parts[_TOKENS]
    if ids is None or rows.shape[:1] != (len(ids),) or parts.keys() & {*_LINEAR, *_EMBEDDING}:
        raise LoraError(
            f"{module}: {_TOKENS} {list(rows.shape)} does not fit trainable_token_indices in {CONFIG_FILE}; "
            "merge the adapter with PEFT (merge_and_unload) and convert the result"
        )
    return ids, rows
