"""`gemma-edge plan --slices`: every slice of E4B beside the whole, for one request and one device."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from gemma_edge.converter.models.matformer.slices import PUBLISHED, WHOLE_MMLU, frontier
from gemma_edge.converter.plan.fit import fit_target
from gemma_edge.converter.plan.plan import make_plan
from gemma_edge.converter.plan.target import WHOLE_OF_SLICES, Target, TargetError
from gemma_edge.profiles.budget import OverBudget
from gemma_edge.profiles.sizes import format_bytes

_LOWEST_SCORE = 48


def slice_values(request: Target) -> list[dict[str, Any]]:
    """The whole and each published slice, the largest first: sizes in bytes, speed in tokens/s, MMLU in percent.

    fits: whether it fits the request's profile; None without one. best: whether no smaller one has as much MMLU.
    Raises TargetError for another model than E4B.
    """
    if request.size != WHOLE_OF_SLICES:
        raise TargetError(
            f"target {request.name}: slices are cut from Gemma 3n E4B; "
            f"use --target {WHOLE_OF_SLICES}-{request.precision}"
        )
    return list(_rows(replace(request, slice=None, fit=False)))


def _rows(request: Target) -> Iterator[dict[str, Any]]:
    best = {cut.name for cut in frontier()}
    for cut in (None, *reversed([*PUBLISHED.values()])):
        wanted = replace(request, slice=cut)
        model, fits = wanted.official_model(), request.profile is not None
        try:
            fitted = fit_target(wanted, model)
        except OverBudget:
            fitted, fits = fit_target(replace(wanted, profile=None), model), False
        plan = make_plan(replace(fitted, target=replace(fitted.target, profile=request.profile)))
        yield {
            "slice": WHOLE_OF_SLICES if cut is None else cut.name,
            "weight_bytes": sum(tensor.nbytes for tensor in plan.tensors),
            "anon_bytes": plan.footprint.anon_bytes,
            "file_bytes": plan.footprint.file_bytes,
            "fits": None if request.profile is None else fits,
            "predicted_decode_tokens_per_s": None if request.profile is None else plan.predicted_decode_tokens_per_s,
            "mmlu": WHOLE_MMLU if cut is None else cut.mmlu,
            "best": cut is not None and cut.name in best,
        }


def print_slices(rows: list[dict[str, Any]], request: Target, console: Console) -> None:
    """The same as a table, with MMLU as bars; those of the frontier are full."""
    table = Table(title=f"slices of {WHOLE_OF_SLICES}-{request.precision}", title_justify="left")
    table.add_column("target", no_wrap=True)
    for heading in ("weights", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    if request.profile is not None:
        table.add_column("tokens/s", justify="right")
        table.add_column(f"fits {request.profile.name}")
    table.add_column("MMLU, %", no_wrap=True)
    for row in rows:
        cells = [f"{row['slice']}-{request.precision}", format_bytes(row["weight_bytes"])]
        cells.append(format_bytes(row["anon_bytes"] + row["file_bytes"]))
        if request.profile is not None:
            cells += [f"{row['predicted_decode_tokens_per_s']:.1f}", "yes" if row["fits"] else "no"]
        bar = ("█" if row["best"] else "░") * round(row["mmlu"] - _LOWEST_SCORE)
        table.add_row(*cells, f"{row['mmlu']:.1f} {bar}")
    console.print(table)
    console.print(
        f"MMLU: of the pre-trained model, as Google published it (google/gemma3n-slicing-configs); bars begin at "
        f"{_LOWEST_SCORE}, full ones are of slices that no smaller one equals",
        highlight=False,
    )
