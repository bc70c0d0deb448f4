"""Two kinds of picture as inline SVG: a histogram over powers of ten, and lines over layers."""

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 240, 48, 36, 16
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df")


def histogram(values: Mapping[str, Sequence[float]], lowest: float, title: str) -> str:
    """How many values lie in each third of a power of ten from `lowest` on, side by side for each name."""
    bins = {name: _counts(series, lowest) for name, series in values.items()}
    last = max((max(counts) for counts in bins.values()), default=0)
    largest = max((n for counts in bins.values() for n in counts.values()), default=1)
    step = (_WIDTH - _LEFT) / (last + 1)
    parts = []
    for index, (name, counts) in enumerate(bins.items()):
        width = step * 0.8 / len(bins)
        for place, count in counts.items():
            height = count / largest * (_HEIGHT - _BOTTOM - _TOP)
            x, y = _LEFT + place * step + index * width, _HEIGHT - _BOTTOM - height
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{_colour(index)}">'
                f"<title>{escape(name)}: {count} tokens</title></rect>"
            )
    for place in range(0, last + 1, 3):
        label = f"{lowest * 10 ** (place / 3):.0e}"
        parts.append(_text(_LEFT + place * step, _HEIGHT - _BOTTOM + 14, label))
    parts.append(_text(4, _TOP + 4, str(largest)))
    return _picture(title, parts, list(bins))


def lines(series: Mapping[str, Mapping[int, float]], title: str) -> str:
    """One line with dots for each name, over whole numbers; values that are not finite are left out."""
    finite = {name: {x: y for x, y in line.items() if math.isfinite(y)} for name, line in series.items()}
    finite = {name: line for name, line in finite.items() if line}
    xs = [x for line in finite.values() for x in line]
    ys = [y for line in finite.values() for y in line.values()]
    if not xs:
        return f"<p>{escape(title)}: nothing to draw, every value is exact.</p>"
    low, high = min(0.0, *ys), max(1.0, *ys)
    last = max(1, *xs)

    def place(x: int, y: float) -> tuple[float, float]:
        share = (y - low) / (high - low)
        return _LEFT + x / last * (_WIDTH - _LEFT - 8), _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)

    parts = []
    for index, (name, line) in enumerate(finite.items()):
        points = [place(x, y) for x, y in sorted(line.items())]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_colour(index)}" stroke-width="2"/>')
        for (x, y), (layer, value) in zip(points, sorted(line.items()), strict=True):
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_colour(index)}">'
                f"<title>{escape(name)}, {layer}: {value:.1f}</title></circle>"
            )
    for y in (low, (low + high) / 2, high):
        parts.append(_text(4, place(0, y)[1] + 4, f"{y:.0f}"))
    for x in sorted({0, last // 2, last}):
        parts.append(_text(place(x, low)[0], _HEIGHT - _BOTTOM + 14, str(x)))
    return _picture(title, parts, list(finite))


def _counts(values: Sequence[float], lowest: float) -> dict[int, int]:
    counts: dict[int, int] = {}
    for value in values:
        place = max(0, math.floor(3 * math.log10(max(value, lowest) / lowest) + 1e-9))
        counts[place] = counts.get(place, 0) + 1
    return counts


def _picture(title: str, parts: Sequence[str], names: Sequence[str]) -> str:
    axis = f'<line x1="{_LEFT}" y1="{_HEIGHT - _BOTTOM}" x2="{_WIDTH}" y2="{_HEIGHT - _BOTTOM}" stroke="#888"/>'
    legend = [
        f'<text x="{_LEFT + 190 * i}" y="{_HEIGHT - 6}" font-size="11" fill="{_colour(i)}">{escape(name)}</text>'
        for i, name in enumerate(names)
    ]
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{axis}{"".join(parts)}{"".join(legend)}</svg></figure>'
    )


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" fill="currentColor">{escape(text)}</text>'


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]
