"""Mistakes that converters are known to make and that no error message tells: the model just answers worse.

Each is a change to the computation. If a bundle's logits are those of the changed computation and not those of the
right one, it has the fault.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.questions import Wrong
from gemma_edge.converter.tensors import Role, TensorSpec


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


def _with(mistake: Wrong) -> Callable[[Model], Model | None]:
    """The model with other numbers; what weights it keeps are folded as they were."""

    def alter(model: Model) -> Model | None:
        config = dict(model.config.wrong()).get(mistake)
        if config is None:
            return None
        other = Model.of(config)
        return replace(other, tensors={name: model.tensors.get(name, spec) for name, spec in other.tensors.items()})

    return alter


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
        Wrong.SOFTCAP,
        "logits must be bounded by final_logit_softcapping * tanh(...)",
        _with(Wrong.SOFTCAP),
        after_head=True,
    ),
    Fault(
        Wrong.SPARSITY,
        "the first layers must cut activations below the quantile of activation_sparsity_pattern",
        _with(Wrong.SPARSITY),
    ),
    Fault(
        Wrong.UNSHARED,
        "the last num_kv_shared_layers must read an earlier layer's keys and values instead of making their own",
        _with(Wrong.UNSHARED),
    ),
    Fault(
        Wrong.OTHER_OWNER,
        "a layer that shares keys and values must read the last owner of its own kind",
        _with(Wrong.OTHER_OWNER),
    ),
    Fault(
        Wrong.WINDOW,
        "local layers must see only the last sliding_window tokens",
        _with(Wrong.WINDOW),
        in_window=False,
    ),
    Fault(
        Wrong.ROPE,
        "local layers must rotate by their own rope_theta",
        _with(Wrong.ROPE),
    ),
)
"""What the graph may get wrong; WRONG_NORMS is in the weights."""


def known_tensors(model: Model) -> dict[str, TensorSpec]:
    """Every tensor that the model, or the model with a fault, could have."""
    altered = (fault.alter(model) for fault in GRAPH_FAULTS)
    return {name: spec for other in (*altered, model) if other is not None for name, spec in other.tensors.items()}
