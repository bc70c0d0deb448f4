"""Pictures of the report: nothing is cut off, and nothing is left out."""

import math
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from gemma_edge.converter.verify.show.charts import histogram, lines, svg_url

SIX = {f"encoding {n}": {layer: float(n + layer) for layer in range(35)} for n in range(6)}
FIGURES: Mapping[str, Callable[[], Figure | None]] = {
    "histogram": lambda: histogram({"int4": (1e-9, 3e-3, 2.0), "a bundle of a longer name": (5.0,)}, 1e-6, "nats"),
    "one value": lambda: histogram({"int4": (0.0,)}, 1e-6, "nats"),
    "layers": lambda: lines(SIX, "dB"),
    "one layer": lambda: lines({"output": {0: -3.5}}, "dB"),
}


def texts(figure: Figure) -> Iterator[Text]:
    """All words that are drawn."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text() and text.get_visible():
            yield text


@pytest.mark.parametrize("name", FIGURES)
def test_every_label_is_inside_the_picture(name: str) -> None:
    figure = FIGURES[name]()
    assert figure is not None
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    shown = {axis: axis.get_view_interval() for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis)}
    beyond = {
        tick.label1
        for axis, (low, high) in shown.items()
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if not low <= tick.get_loc() <= high  # matplotlib keeps these and does not draw them
    }
    checked = [text for text in texts(figure) if text not in beyond]
    assert len(checked) > 4
    for text in checked:
        box = text.get_window_extent(canvas.get_renderer())
        assert 0 <= box.x0 <= box.x1 <= figure.bbox.width, text.get_text()
        assert 0 <= box.y0 <= box.y1 <= figure.bbox.height, text.get_text()


def test_every_value_is_counted() -> None:
    figure = histogram({"a": (0.0, 1e-9, 1e-6, 2e-6, 1.0), "b": (1e-2,)}, 1e-6, "nats")
    patches: Sequence[Any] = figure.axes[0].patches
    counts = [patch.get_data().values for patch in patches]
    assert [sum(series) for series in counts] == [5, 1]
    assert counts[0][0] == 4  # 2e-6 is in the same third of a power of ten
    assert counts[0][-1] == 1


def test_every_line_is_there_with_a_name() -> None:
    figure = lines(SIX, "dB")
    assert figure is not None
    assert [str(line.get_label()) for line in figure.axes[0].lines] == list(SIX)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(SIX)


def test_infinity_is_left_out() -> None:
    assert lines({"exact": {0: math.inf, 1: math.inf}}, "dB") is None
    assert lines({}, "dB") is None
    figure = lines({"exact": {0: math.inf}, "other": {0: 3.0, 1: math.inf}}, "dB")
    assert figure is not None
    [line] = figure.axes[0].lines
    assert np.asarray(line.get_xdata()).tolist() == [0]


def test_the_picture_is_one_svg() -> None:
    figure = lines({"output": {0: 1.0, 1: 2.0}}, "dB")
    assert figure is not None
    head, content = svg_url(figure).split(",")
    assert head == "data:image/svg+xml;base64"
    assert ElementTree.fromstring(b64decode(content)).tag.endswith("svg")
