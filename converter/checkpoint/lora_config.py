"""adapter_config.json: what PEFT's settings mean for a merge, and which of them a merge here cannot honour.

Source: peft tuners/lora/config.py and tuners_utils.check_target_module_exists (0.21). PEFT skips what it does not know;
here a setting that would change the merged weights is either computed or refused by name.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_edge.converter.checkpoint.checkpoint import read_json_object
from gemma_edge.converter.checkpoint.expressions import ExpressionError, expression
from gemma_edge.profiles.errors import GemmaEdgeError

CONFIG_FILE = "adapter_config.json"
_ALL_LINEAR = "all-linear"

# Without effect on the merged weights, whatever they say. fan_in_fan_out: PEFT takes it for False on an nn.Linear, and
# Gemma has no other; bias, modules_to_save: what they trained lies in the weights' file, and is found there.
_NO_EFFECT = frozenset((
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "fan_in_fan_out",
    "inference_mode", "loftq_config", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_version", "qalora_group_size", "revision", "task_type",
))  # fmt: skip
_UNDERSTOOD = frozenset((
    "alpha_pattern", "ensure_weight_tying", "exclude_modules", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "peft_type", "r", "rank_pattern", "target_modules", "trainable_token_indices",
    "unsloth_version", "use_dora", "use_rslora",
))  # fmt: skip

# The others (pissa, olora, corda, loftq) begin by changing the base weights: a merge into the original ones is wrong.
_KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")

_MOST_NAMES = 10_000
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class LoraError(GemmaEdgeError):
    """An adapter that cannot be merged, or not into this checkpoint."""


@dataclass(frozen=True)
class LoraConfig:
    """The settings that decide a merge. Modules go by the names they had in training ("model.layers.0.mlp.up_proj").

    path: of adapter_config.json, for messages. base: what the adapter says it was trained on.
    targets, excluded: names or name endings, or one regular expression, or "all-linear". layers: None means all.
    tokens: rows of tables that were trained by themselves, by the last part of the table's name.
    keeps_tie: what was trained for one of embedding and head, where they are one matrix, is for the other as well.
    """

    path: Path
    base: str | None
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    is_rslora: bool
    is_dora: bool
    keeps_tie: bool
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: frozenset[int] | None
    tokens: Mapping[str, tuple[int, ...]]

    @classmethod
    def load(cls, path: Path) -> "LoraConfig":
        """Read and check the file at `path`. Raises LoraError naming the key, CheckpointError if it is not JSON."""
        values = read_json_object(path)
        if "fine_tune_type" in values:
            raise LoraError(f"{path}: an adapter of mlx-lm; merge it with `mlx_lm.fuse` and convert the result")
        if values.get("peft_type") != "LORA":
            raise LoraError(
                f"{path}: peft_type is {values.get('peft_type')!r}, expected 'LORA'; "
                "merge the adapter with PEFT (merge_and_unload) and convert the result"
            )
        for key, value in values.items():
            is_set = not (value is None or value is False or value == [] or value == {})
            if is_set and key not in _NO_EFFECT | _UNDERSTOOD:
                raise _cannot(path, key, value)
        if values.get("init_lora_weights", True) not in _KEEPS_THE_BASE:
            raise LoraError(
                f"{path}: init_lora_weights is {values['init_lora_weights']!r}, which changed the base model; save the "
                "adapter with path_initial_model_for_weight_conversion, or merge it with PEFT and convert the result"
            )
        layers = values.get("layers_to_transform")
        if layers is not None and values.get("layers_pattern") not in (None, [], "layers", ["layers"]):
            raise _cannot(path, "layers_pattern", values["layers_pattern"])
        return cls(
            path=path,
            base=values.get("base_model_name_or_path"),
            rank=_number(path, "r", values.get("r"), int),
            alpha=_number(path, "lora_alpha", values.get("lora_alpha"), float),
            rank_pattern=_pattern(path, "rank_pattern", values.get("rank_pattern"), int),
            alpha_pattern=_pattern(path, "alpha_pattern", values.get("alpha_pattern"), float),
            is_rslora=_flag(path, "use_rslora", values),
            is_dora=_flag(path, "use_dora", values),
            keeps_tie=_flag(path, "ensure_weight_tying", values),
            targets=_names(path, "target_modules", values.get("target_modules")),
            excluded=_names(path, "exclude_modules", values.get("exclude_modules") or []),
            layers=None if layers is None or layers == [] else _layers(path, layers),
            tokens=_tokens(path, values.get("trainable_token_indices")),
        )

    def rank_of(self, module: str) -> int:
        """Of one module: the first pattern that its name ends with, or the default."""
        return next((rank for key, rank in self.rank_pattern.items() if _ends_with(key, module)), self.rank)

    def alpha_of(self, module: str) -> float:
        """As rank_of."""
        return next((alpha for key, alpha in self.alpha_pattern.items() if _ends_with(key, module)), self.alpha)

    def scale_of(self, module: str) -> float:
        """What B @ A is multiplied by: alpha / rank, or alpha / sqrt(rank) (rank-stabilised, arXiv 2312.03732)."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.is_rslora else rank)

    def is_target(self, module: str) -> bool:
        """Whether the settings say that this module has an adapter."""
        if _matches(self.excluded, module):
            return False
        if self.targets == _ALL_LINEAR:  # but the head
            return not module.rpartition(".")[2].startswith(("lm_head", "embed_tokens"))
        if not _matches(self.targets, module):
            return False
        if self.layers is None or isinstance(self.targets, str):
            return True
        layer = _LAYER.search(module)
        return layer is not None and int(layer[1]) in self.layers


def _matches(names: str | tuple[str, ...], module: str) -> bool:
    """PEFT's rule: a string is a regular expression for all of the name, a list holds names or last parts of names."""
    if isinstance(names, str):
        return expression(names).matches(module)
    return any(module == name or module.endswith("." + name) for name in names)


def _ends_with(pattern: str, module: str) -> bool:
    """peft.utils.other.get_pattern_key: a regular expression for the name or its last parts."""
    return expression(pattern).ends(module)


def _cannot(path: Path, key: str, value: Any) -> LoraError:
    return LoraError(
        f"{path}: {key} is {value!r}, which cannot be merged here; "
        "merge the adapter with PEFT (merge_and_unload) and convert the result"
    )


def _wrong(path: Path, key: str, value: Any, expected: str) -> LoraError:
    return LoraError(f"{path}: {key} is {value!r}, expected {expected}; fix it or save the adapter again")


def _number(path: Path, key: str, value: Any, kind: type[int] | type[float]) -> Any:
    """A rank (int) or an alpha (float, but written as either)."""
    is_number = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or (kind is int and value < 1):
        raise _wrong(path, key, value, "a whole number from 1" if kind is int else "a number")
    return kind(value)


def _flag(path: Path, key: str, values: Mapping[str, Any]) -> bool:
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise _wrong(path, key, value, "true or false")
    return value


def _pattern(path: Path, key: str, value: Any, kind: type[int] | type[float]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(path, key, value, "an object from name to number")
    _check_expressions(path, key, value)
    return {name: _number(path, f"{key}.{name}", number, kind) for name, number in value.items()}


def _names(path: Path, key: str, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    if not isinstance(value, str):
        raise _wrong(path, key, value, "a list of names or an expression")
    _check_expressions(path, key, [value])
    return value


def _check_expressions(path: Path, key: str, sources: Collection[str]) -> None:
    if len(sources) > _MOST_NAMES:
        raise _wrong(path, key, f"a list of {len(sources)}", f"at most {_MOST_NAMES} names")
    for source in sources:
        try:
            expression(source).ends("")
        except ExpressionError as error:
            raise _wrong(path, key, source, f"a regular expression ({error})") from None


def _tokens(path: Path, value: Any) -> dict[str, tuple[int, ...]]:
    if not value:
        return {}
    named = value if isinstance(value, dict) else {"embed_tokens": value}
    for numbers in named.values():
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            raise _wrong(path, "trainable_token_indices", value, "token ids, or a list of them for each table")
    return {name: tuple(numbers) for name, numbers in named.items()}


def _layers(path: Path, value: Any) -> frozenset[int]:
    numbers = value if isinstance(value, list) else [value]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise _wrong(path, "layers_to_transform", value, "layer numbers")
    return frozenset(numbers)
