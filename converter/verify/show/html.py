"""The report as one HTML file that needs nothing else: no script, no font, no network."""

from collections.abc import Iterable, Sequence
from html import escape

from gemma_edge.converter.quality.gates import METRICS
from gemma_edge.converter.verify.find.findings import layer_of
from gemma_edge.converter.verify.show.report import Prediction, Report, spelled
from gemma_edge.converter.verify.show.svg import histogram, lines
from gemma_edge.profiles.sizes import format_bytes

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; } svg { width: 100%; max-width: 44rem; }
.bad { color: #d1242f; font-weight: 600; } .good { color: #1a7f37; font-weight: 600; } code { white-space: pre-wrap; }
"""
_LOWEST_KL = 1e-6


def html_report(report: Report) -> str:
    """The whole page."""
    outcome = '<span class="good">passed</span>' if report.passed else '<span class="bad">failed</span>'
    parts = [
        f"<h1>{escape(report.bundle.name)}: {outcome}</h1>",
        f"<p><strong>{escape(report.told)}.</strong></p>",
        f"<p>Against the checkpoint {escape(report.checkpoint)}, {report.windows * report.window_tokens} tokens in "
        f"{report.windows} windows; {report.seconds:.1f} s, peak anonymous memory "
        f"{format_bytes(report.peak_anon_bytes)}. Intervals hold with 95 % confidence.</p>",
        _findings(report),
        _metrics(report),
        _distribution(report),
        *_layers(report),
        _tensors(report),
        _encoders(report),
        _worst(report),
        _tasks(report),
    ]
    title = escape(f"{report.bundle.name} against {report.checkpoint}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _findings(report: Report) -> str:
    rows = [
        f'<li><span class="bad">{escape(f.name)}</span>: {escape(f.evidence)}. {escape(f.meaning)}.</li>'
        for f in report.findings
    ]
    rows += [f'<li><span class="{"good" if g.holds else "bad"}">{escape(str(g))}</span></li>' for g in report.gates]
    return f"<ul>{''.join(rows)}</ul>" if rows else ""


def _metrics(report: Report) -> str:
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
    return _table(heads, rows)


def _distribution(report: Report) -> str:
    series = {report.bundle.name: report.bundle.kl}
    if report.against is not None:
        series[report.against.name] = report.against.kl
    return histogram(series, _LOWEST_KL, "KL(checkpoint || bundle) of each token, nats")


def _layers(report: Report) -> Iterable[str]:
    if not report.layers:
        return
    parts = {
        "output, weights alone": {x.layer: x.output.snr_db for x in report.layers if x.output is not None},
        "keys in the runtime": {x.layer: x.keys.snr_db for x in report.layers if x.keys is not None},
        "values in the runtime": {x.layer: x.values.snr_db for x in report.layers if x.values is not None},
    }
    yield lines(parts, "Signal to noise by layer, dB")
    heads = ["layer", *parts, "cosine of output", ""]
    rows = [
        [
            str(layer.layer),
            *(f"{line[layer.layer]:.1f}" if layer.layer in line else "" for line in parts.values()),
            "" if layer.output is None else f"{layer.output.cosine:.6f}",
            "departs" if layer.departs else "",
        ]
        for layer in report.layers
    ]
    yield f"<details><summary>Every layer</summary>{_table(heads, rows)}</details>"


def _tensors(report: Report) -> str:
    if not report.tensors:
        return "<p>The bundle's weights have names of their own and could not be compared.</p>"
    lowest: dict[str, dict[int, float]] = {}
    for tensor in report.tensors:
        layer = layer_of(tensor.name)
        if layer is not None:
            line = lowest.setdefault(tensor.encoding, {})
            line[layer] = min(line.get(layer, float("inf")), tensor.snr_db)
    rows = [
        [t.name, t.encoding, f"{t.snr_db:.1f}", f"{t.cosine:.6f}", f"{t.gain:.4f}", "differs" if t.differs else ""]
        for t in sorted(report.tensors, key=lambda t: t.snr_db)
    ]
    heads = ["tensor", "encoding", "SNR, dB", "cosine", "gain", ""]
    picture = lines(lowest, "Lowest signal to noise of the stored weights by layer and encoding, dB")
    return f"{picture}<details><summary>Every tensor</summary>{_table(heads, rows)}</details>"


def _encoders(report: Report) -> str:
    if not report.encoders:
        return ""
    rows = [[e.modality, str(e.embeddings), f"{e.relative_error:.2e}", f"{e.cosine:.5f}"] for e in report.encoders]
    return f"<h2>Encoders</h2>{_table(['encoder', 'embeddings', 'relative error', 'worst cosine'], rows)}"


def _worst(report: Report) -> str:
    heads = ["KL", "window, position", "after", "came", "checkpoint", "bundle"]
    rows = [
        [
            f"{t.kl:.4f}", f"{t.window}, {t.position}", t.context, t.following or "",
            _predictions(t.reference), _predictions(t.found),
        ]
        for t in report.worst
    ]  # fmt: skip
    return f"<h2>Largest differences</h2>{_table(heads, rows)}"


def _tasks(report: Report) -> str:
    if not report.tasks:
        return ""
    rows = [[task.prompt, task.answer, task.complaint or "ok"] for task in report.tasks]
    return f"<h2>Prompts</h2>{_table(['prompt', 'answer', ''], rows)}"


def _predictions(predictions: Sequence[Prediction]) -> str:
    return ", ".join(f"{p.token!r} {p.probability:.0%}" for p in predictions)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td><code>{escape(cell)}</code></td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
