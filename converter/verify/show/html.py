"""The report as one HTML file that needs nothing else: no script, no font, no network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, TypeAlias

import jinja2

from gemma_edge.converter.quality.gates import METRICS
from gemma_edge.converter.verify.find.findings import layer_of
from gemma_edge.converter.verify.show import charts
from gemma_edge.converter.verify.show.report import Prediction, VerifyReport, spelled
from gemma_edge.profiles.sizes import format_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOWEST_KL = 1e-6

Table: TypeAlias = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Heads and rows."""


@dataclass(frozen=True)
class _Chart:
    """url: None where there is nothing to draw, or nothing to draw with."""

    title: str
    url: str | None


def html_report(report: VerifyReport) -> str:
    """The whole page. Without matplotlib it has no pictures, and says so."""
    template = (files("gemma_edge.converter.verify.show") / "page.html.jinja").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    lines = _layer_lines(report)
    return environment.from_string(template).render(
        report=report,
        peak=format_bytes(report.peak_anon_bytes),
        can_draw=charts.can_draw(),
        without_pictures=f"The report is {charts.WITHOUT_PICTURES}.",
        metrics=_metrics(report),
        distribution=_chart(
            "KL(checkpoint || bundle) of each token", lambda: charts.histogram(_kl(report), _LOWEST_KL, "nats")
        ),
        layers=_chart("Signal to noise by layer", lambda: charts.lines(lines, "dB")),
        layer_rows=_layer_rows(report, lines),
        tensors=_chart(
            "Lowest signal to noise of the stored weights by layer and encoding",
            lambda: charts.lines(_lowest(report), "dB"),
        ),
        tensor_rows=_tensor_rows(report),
        encoder_rows=_encoder_rows(report),
        worst_rows=_worst_rows(report),
        task_rows=_task_rows(report),
    )


def _chart(title: str, draw: "Callable[[], Figure | None]") -> _Chart:
    figure = draw() if charts.can_draw() else None
    return _Chart(title, None if figure is None else charts.svg_url(figure))


def _metrics(report: VerifyReport) -> Table:
    heads = ["metric", report.bundle.name]
    if report.against is not None:
        heads += [report.against.name, "difference"]
    rows = []
    for name, metric in report.bundle.metrics.items():
        row = [METRICS.get(name, name.replace("_", " ")), spelled(metric)]
        if report.against is not None and report.differences is not None:
            row += [
                spelled(report.against.metrics[name]),
                spelled(report.differences[name]) if name in report.differences else "",
            ]
        rows.append(row)
    if report.weights_kl is not None:
        rows.append(
            [f"KL of the stored weights alone, first {report.sample_tokens} tokens", f"{report.weights_kl:.6f}"]
        )
    return heads, rows


def _kl(report: VerifyReport) -> Mapping[str, Sequence[float]]:
    series = {report.bundle.name: report.bundle.kl}
    return series if report.against is None else {**series, report.against.name: report.against.kl}


def _layer_lines(report: VerifyReport) -> dict[str, dict[int, float]]:
    """dB by layer."""
    return {
        "output, weights alone": {x.layer: x.output.snr_db for x in report.layers if x.output is not None},
        "keys in the runtime": {x.layer: x.keys.snr_db for x in report.layers if x.keys is not None},
        "values in the runtime": {x.layer: x.values.snr_db for x in report.layers if x.values is not None},
    }


def _layer_rows(report: VerifyReport, lines: Mapping[str, Mapping[int, float]]) -> Table:
    rows = [
        [
            str(layer.layer),
            *(f"{line[layer.layer]:.1f}" if layer.layer in line else "" for line in lines.values()),
            "" if layer.output is None else f"{layer.output.cosine:.6f}",
            "departs" if layer.departs else "",
        ]
        for layer in report.layers
    ]
    return ["layer", *(f"{name}, dB" for name in lines), "cosine of output", ""], rows


def _lowest(report: VerifyReport) -> dict[str, dict[int, float]]:
    """dB by encoding and layer."""
    lowest: dict[str, dict[int, float]] = {}
    for tensor in report.tensors:
        layer = layer_of(tensor.name)
        if layer is not None:
            line = lowest.setdefault(tensor.encoding, {})
            line[layer] = min(line.get(layer, float("inf")), tensor.snr_db)
    return lowest


def _tensor_rows(report: VerifyReport) -> Table:
    rows = [
        [t.name, t.encoding, f"{t.snr_db:.1f}", f"{t.cosine:.6f}", f"{t.gain:.4f}", "differs" if t.differs else ""]
        for t in sorted(report.tensors, key=lambda t: t.snr_db)
    ]
    return ["tensor", "encoding", "SNR, dB", "cosine", "gain", ""], rows


def _encoder_rows(report: VerifyReport) -> Table:
    rows = [[e.modality, str(e.embeddings), f"{e.relative_error:.2e}", f"{e.cosine:.5f}"] for e in report.encoders]
    return ["encoder", "embeddings", "relative error", "worst cosine"], rows


def _worst_rows(report: VerifyReport) -> Table:
    rows = [
        [
            f"{t.kl:.4f}", f"{t.window}, {t.position}", t.context, t.following or "",
            _predictions(t.reference), _predictions(t.found),
        ]
        for t in report.worst
    ]  # fmt: skip
    return ["KL", "window, position", "after", "next token", "checkpoint", "bundle"], rows


def _task_rows(report: VerifyReport) -> Table:
    return ["prompt", "answer", ""], [[task.prompt, task.answer, task.complaint or "ok"] for task in report.tasks]


def _predictions(predictions: Sequence[Prediction]) -> str:
    return ", ".join(f"{p.token!r} {p.probability:.0%}" for p in predictions)
