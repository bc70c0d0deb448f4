"""How long each op of a calibration takes beside the others, so that the time left is known early."""

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from gemma_edge.converter.calibrate.rounding import SWEEPS
from gemma_edge.converter.graph import ops as ir

_PER_WEIGHT: Final = 8000
"""Operations that a core could have done in a matrix product while it works on one weight in a column."""
_PER_VALUE: Final = 600
"""The same for one value of an op that is no matrix product."""


def efforts(ops: Iterable[ir.Op], calibrated: Collection[str], tokens: int) -> list[float]:
    """Of both runs and of rounding, in operations. Layers that read one input are rounded where the first is reached.

    calibrated: names of weights.
    """
    ops = tuple(ops)
    rows: dict[ir.Value, int] = {}
    for linear in _calibrated(ops, calibrated):
        rows[linear.x] = rows.get(linear.x, 0) + linear.weight.shape[0]
    found = []
    for op in ops:
        if isinstance(op, ir.Linear):
            effort = 4.0 * tokens * math.prod(op.weight.shape)
            if op.weight.name in calibrated and op.x in rows:
                effort += _rounding(rows.pop(op.x), op.weight.shape[1], tokens)
        else:
            effort = float(_PER_VALUE * tokens * math.prod(size for size in op.out.shape[2:] if isinstance(size, int)))
        found.append(effort)
    return found


def _calibrated(ops: Iterable[ir.Op], calibrated: Collection[str]) -> Iterator[ir.Linear]:
    return (op for op in ops if isinstance(op, ir.Linear) and op.weight.name in calibrated)


def _rounding(rows: int, columns: int, tokens: int) -> float:
    """Gram, drift, factor, moved weights, integers."""
    square = columns * columns
    drift = min(4 * tokens * rows * columns, 2 * square * (tokens + rows))
    return tokens * square + drift + square * columns + (3 + 2 * SWEEPS) * square * rows + _PER_WEIGHT * rows * columns
