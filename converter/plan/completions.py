"""What the options of `convert` and `plan` take, for a shell to offer. Imported when it asks."""

from collections.abc import Iterable


def targets() -> Iterable[str]:
    """The official models and `custom`, in each precision."""
    from gemma_edge.converter.plan.targets import target_values

    return [str(row["target"]) for row in target_values()]


def sliced_targets() -> Iterable[str]:
    """The published slices of E4B, in each precision."""
    from gemma_edge.converter.quantize.recipes import NAMES

    return [f"{name}-{precision}" for name in slices() for precision in NAMES]


def slices() -> Iterable[str]:
    """The published slices of E4B."""
    from gemma_edge.converter.models.matformer.slices import E2B, PUBLISHED

    return [E2B, *PUBLISHED]


def formats() -> Iterable[str]:
    """All that are written."""
    from gemma_edge.converter.plan.format import FORMATS

    return list(FORMATS)


def recipes() -> Iterable[str]:
    """Those that have names."""
    from gemma_edge.converter.plan.target import AUTO
    from gemma_edge.converter.quantize.recipes import OTHER_NAMES

    return [*OTHER_NAMES, AUTO]


def encodings() -> Iterable[str]:
    """ROLE=ENCODING, all of them."""
    from gemma_edge.converter.tensors import Role
    from gemma_edge.runtime.formats.encoding import NAMES

    return [f"{role}={name}" for role in Role for name in NAMES]
