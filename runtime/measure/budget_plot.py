"""The picture of a measured budget: memory over time against the budget line, and the plan beside the measurement."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.measure.budget_report import BudgetReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
_ANONYMOUS, _MAPPED, _BUDGET = "#3b6fb6", "#a9c6e8", "#c0392b"
_LABEL_WIDTH = 0.08  # of the axis; a shorter phase gets no name
_PARTS = ("#8da0cb", "#66c2a5", "#a6d854", "#c9c9c9", "#ffd92f", "#3b6fb6")


class PlotError(GemmaEdgeError):
    """The picture cannot be drawn."""


def plot(report: BudgetReport, path: Path) -> None:
    """Writes `path`. Raises PlotError: neither .png nor .svg, or matplotlib is not installed."""
    if path.suffix not in FORMATS:
        raise PlotError(f"{path}: found {path.suffix or 'no ending'}, expected {' or '.join(FORMATS)}; rename it")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PlotError("matplotlib is not installed, a picture needs it; pip install 'gemma-edge[plot]'") from error
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{report.bundle} on {report.profile.name}: {'passed' if report.passed else 'FAILED'}")
    over_time, parts = figure.subplots(1, 2, width_ratios=(3, 2))
    _over_time(over_time, report)
    _parts(parts, report)
    figure.savefig(path, dpi=120)


def _over_time(axes: "Axes", report: BudgetReport) -> None:
    """Areas of anonymous and mapped memory, one on the other, with the ends of load, prefill and decode."""
    judged, budget_mib = report.judged, report.profile.budget_bytes / MIB
    seconds = [sample.at_s for sample in judged.samples]
    axes.stackplot(
        seconds,
        [sample.hard_bytes / MIB for sample in judged.samples],
        [sample.file_bytes / MIB for sample in judged.samples],
        labels=["anonymous, shared, swapped", "mapped files"],
        colors=[_ANONYMOUS, _MAPPED],
    )
    axes.axhline(budget_mib, color=_BUDGET, linewidth=1.5, label=f"budget, {budget_mib:.0f} MiB")
    highest = max((sample.hard_bytes + sample.file_bytes) / MIB for sample in judged.samples)
    axes.set_ylim(0, max(budget_mib, highest) * 1.15)
    axes.set_xlim(0, max(seconds) or 1)
    begin, last = 0.0, max(seconds)
    for name, end in judged.phase_s.items():
        axes.axvline(end, color="grey", linewidth=0.7, linestyle=":")
        if end - begin > _LABEL_WIDTH * last:
            place = ((begin + end) / 2, 0.98)
            axes.annotate(name, place, xycoords=("data", "axes fraction"), ha="center", va="top", color="grey")
        begin = end
    axes.set_xlabel("seconds")
    axes.set_ylabel("MiB")
    axes.set_title("in a cgroup of the budget's size" if report.limited else "sampled, no cgroup", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=8, frameon=False)


def _parts(axes: "Axes", report: BudgetReport) -> None:
    """Two stacked bars, the plan and the measurement, part by part."""
    rows: Any = report.rows()
    bottom = [0.0, 0.0]
    for row, color in zip(rows, _PARTS[-len(rows) :], strict=True):
        heights = [row.planned_bytes / MIB, row.measured_bytes / MIB]
        axes.bar(["planned", "measured"], heights, bottom=bottom, color=color, label=row.name, width=0.6)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    budget_mib = report.profile.budget_bytes / MIB
    axes.axhline(budget_mib, color=_BUDGET, linewidth=1.5)
    axes.set_ylim(0, max(budget_mib, *bottom) * 1.15)
    axes.set_title("by part, at the end of the run", fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
