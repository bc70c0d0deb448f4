"""Mistakes that converters are known to make and that no error message tells: the model just answers worse.

Each is a change to the computation. If a bundle's logits are those of the changed computation and not those of the
right one, it has the fault.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from gemma_edge.converter.models import gemma3, gemma3n
from gemma_edge.converter.models.blocks import AttentionLayer
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.tensors import Role, TensorSpec

Config = gemma3.Config | gemma3n.Config

_ENDLESS_TOKENS = 1 << 30


@dataclass(frozen=True)
class Fault:
    """A named mistake. alter: the model with it; None where the model has nothing that could be wrong so.

    in_window: seen in texts that are no longer than the sliding window. after_head: changes nothing before the logits.
    """

    name: str
    meaning: str
    alter: Callable[[Model], Model | None]
    in_window: bool = True
    after_head: bool = False


@dataclass(frozen=True)
class Finding:
    """A fault that a bundle has. evidence: what was seen, in numbers or in text."""

    name: str
    meaning: str
    evidence: str


def _without_softcap(model: Model) -> Model | None:
    return _with(model, replace(model.config, softcap=None)) if model.config.softcap else None


def _without_sparsity(model: Model) -> Model | None:
    config = model.config
    if isinstance(config, gemma3.Config) or not any(config.sparsity):
        return None
    return _with(model, replace(config, sparsity=(0.0,) * len(config.sparsity)))


def _unshared(model: Model) -> Model | None:
    config = model.config
    if isinstance(config, gemma3.Config) or config.kv_layers == len(config.attention):
        return None
    return _with(model, replace(config, kv_layers=len(config.attention)))


def _with(model: Model, config: gemma3.Config | gemma3n.Config) -> Model:
    """With other numbers; what weights it keeps are folded as they were."""
    other = Model.of(config)
    return replace(other, tensors={name: model.tensors.get(name, spec) for name, spec in other.tensors.items()})


class _LastOwner(gemma3n.Config):
    """Every sharing layer reads the last layer that owns keys and values, whatever its kind."""

    def kv_source(self, layer: int) -> int:
        return min(layer, self.kv_layers - 1)


def _shared_with_the_last(model: Model) -> Model | None:
    config = model.config
    if isinstance(config, gemma3.Config) or config.kv_layers == len(config.attention):
        return None
    return _with(model, _LastOwner(**{field.name: getattr(config, field.name) for field in fields(config)}))


def _without_window(model: Model) -> Model | None:
    layers = tuple(AttentionLayer(a.rope, a.window and _ENDLESS_TOKENS) for a in model.config.attention)
    return None if layers == model.config.attention else _with_attention(model, layers)


def _one_rope(model: Model) -> Model | None:
    whole = [layer.rope for layer in model.config.attention if layer.window is None]
    layers = tuple(AttentionLayer(whole[0] if whole else a.rope, a.window) for a in model.config.attention)
    return None if layers == model.config.attention else _with_attention(model, layers)


def _with_attention(model: Model, layers: tuple[AttentionLayer, ...]) -> Model:
    return _with(model, replace(model.config, attention=layers))


def _other_norms(model: Model) -> Model:
    """Every norm with the other family's convention."""

    def other(spec: TensorSpec) -> TensorSpec:
        if spec.role is not Role.NORM:
            return spec
        return replace(spec, fold=replace(spec.fold, add=1.0 - spec.fold.add))

    tensors: Mapping[str, TensorSpec] = {name: other(spec) for name, spec in model.tensors.items()}
    return Model(model.config, tensors)


WRONG_NORMS: Final = Fault(
    "wrong norm offset",
    "Gemma 3 stores its norms as w - 1, Gemma 3n as w; the other family's convention was used",
    _other_norms,
)

GRAPH_FAULTS: Final = (
    Fault(
        "missing soft-cap",
        "logits must be bounded by final_logit_softcapping * tanh(...)",
        _without_softcap,
        after_head=True,
    ),
    Fault(
        "missing sparsity",
        "the first layers must cut activations below the quantile of activation_sparsity_pattern",
        _without_sparsity,
    ),
    Fault(
        "unshared KV",
        "the last num_kv_shared_layers must read an earlier layer's keys and values instead of making their own",
        _unshared,
    ),
    Fault(
        "wrongly shared KV",
        "a layer that shares keys and values must read the last owner of its own kind",
        _shared_with_the_last,
    ),
    Fault(
        "missing sliding window",
        "local layers must see only the last sliding_window tokens",
        _without_window,
        in_window=False,
    ),
    Fault(
        "one RoPE base for all layers",
        "local layers must rotate by their own rope_theta",
        _one_rope,
    ),
)
"""What the graph may get wrong; WRONG_NORMS is in the weights."""


def known_tensors(model: Model) -> dict[str, TensorSpec]:
    """Every tensor that the model, or the model with a fault, could have."""
    altered = (fault.alter(model) for fault in GRAPH_FAULTS)
    return {name: spec for other in (*altered, model) if other is not None for name, spec in other.tensors.items()}
