"""The pictures of the report: SVG as data: URLs, drawn by matplotlib, which the extra `plot` installs."""

import io
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WITHOUT_PICTURES = "without pictures, matplotlib is not installed; pip install 'gemma-edge[plot]'"
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df")
_INK = "#808080"  # of axes and words: to be read on white and on black
_INCHES = (8.8, 3.3)


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def histogram(values: Mapping[str, Sequence[float]], lowest: float, unit: str) -> "Figure":
    """How many values lie in each third of a power of ten, for each name; those below `lowest` count in the first."""
    figure = _figure()
    [axes] = figure.axes
    largest = max((max(series, default=lowest) for series in values.values()), default=lowest)
    bins = max(1, math.floor(3 * math.log10(max(largest, lowest) / lowest)) + 1)
    edges = lowest * 10 ** (np.arange(bins + 1) / 3)
    for colour, (name, series) in zip(cycle(_COLOURS), values.items(), strict=False):
        counts, _ = np.histogram(np.clip(series, lowest, edges[-1]), edges)
        axes.stairs(counts, edges, fill=True, alpha=0.6, color=colour, label=name)
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel(unit)
    axes.set_ylabel("tokens")
    _legend(figure)
    return figure


def lines(series: Mapping[str, Mapping[int, float]], unit: str) -> "Figure | None":
    """A line with dots over layers for each name; None where no value is finite."""
    from matplotlib.ticker import MaxNLocator

    finite = {name: {x: y for x, y in sorted(line.items()) if math.isfinite(y)} for name, line in series.items()}
    if not any(finite.values()):
        return None
    figure = _figure()
    [axes] = figure.axes
    for colour, (name, line) in zip(cycle(_COLOURS), finite.items(), strict=False):
        if line:
            axes.plot(list(line), list(line.values()), marker="o", markersize=3.5, color=colour, label=name)
    values = [0.0, *(y for line in finite.values() for y in line.values())]
    room = 0.06 * ((max(values) - min(values)) or 1.0)
    axes.set_ylim(min(values) - room * (min(values) < 0), max(values) + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")
    axes.set_ylabel(unit)
    _legend(figure)
    return figure


def svg_url(figure: "Figure") -> str:
    """The picture itself, for the `src` of an image."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "gemma-edge"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{b64encode(content.getvalue()).decode()}"


def _figure() -> "Figure":
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.tick_params(colors=_INK)
    axes.spines[:].set_color(_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure


def _legend(figure: "Figure") -> None:
    figure.legend(loc="outside upper left", ncols=len(_COLOURS), frameon=False, labelcolor=_INK, fontsize=9)
