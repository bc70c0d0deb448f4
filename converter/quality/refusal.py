"""A bundle that loses too much is refused, in one line that says what would not be."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, CheckpointError
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.progress import Stage
from gemma_edge.converter.quality.acceptance import Acceptance, QualityError
from gemma_edge.converter.quality.figures import Quality
from gemma_edge.converter.quality.side_by_side import Compared


def refuse_loss(
    acceptance: Acceptance,
    plan: Plan,
    source: Checkpoint,
    windows: NDArray[np.integer[Any]],
    compared: Compared,
    directory: Path,
    stage: Stage,
) -> None:
    """Raises QualityError where what was measured on `windows` [B, T] is not accepted, with the cheapest remedy.

    directory: for temporary files.
    Raises CheckpointError where the checkpoint itself computes NaN or infinite logits, by its largest weight.
    """
    if not compared.quality.is_defined:
        largest, name = max(_largest(source, stored.source) for spec in plan.specs.values() for stored in spec.stored)
        raise CheckpointError(
            f"{source.path}: computes NaN or infinite logits, of which nothing can be made; its largest weights, up to "
            f"{largest:.3g}, are in {name}: the checkpoint is damaged, get it again"
        )
    complaint = acceptance.complaint(compared.quality)
    if complaint is None:
        return
    from gemma_edge.converter.quality.remedy import Search

    def accepts(quality: Quality) -> bool:
        return acceptance.complaint(quality) is None

    search = Search(plan, source, windows, compared.exact, directory, stage)
    remedy = search.cheapest(accepts)
    parts = [complaint, "no other recipe that was tried does better enough" if remedy is None else str(remedy)]
    if untried := search.untried:
        parts.append(untried)
    if not acceptance.gates:
        parts.append("--accept-loss writes it all the same")
    raise QualityError("; ".join(parts))


def _largest(source: Checkpoint, name: str) -> tuple[float, str]:
    """The largest magnitude in a stored tensor, and its name."""
    return max(float(np.abs(rows).max()) for _, rows in source.rows(name)), name
