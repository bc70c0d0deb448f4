"""What verification found, for people and machines alike."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gemma_edge.converter.quality.gates import METRICS, GateResult
from gemma_edge.converter.quality.verdict import Verdict, verdict_of
from gemma_edge.converter.verify.find.encoders import EncoderScore
from gemma_edge.converter.verify.find.faults import Finding
from gemma_edge.converter.verify.find.layers import LayerReport, TensorReport
from gemma_edge.converter.verify.measure.scores import Metric
from gemma_edge.converter.verify.measure.similarity import Similarity
from gemma_edge.converter.verify.measure.tasks import TaskResult
from gemma_edge.profiles.sizes import format_bytes

_WORST_ROWS = 5  # of each kind, in what is printed
_PREDICTED = 3  # tokens


@dataclass(frozen=True)
class Prediction:
    """A token as text and how likely it is."""

    token: str
    probability: float


@dataclass(frozen=True)
class WorstToken:
    """A position where bundle and checkpoint differ most. context: the text before; following: what came next."""

    window: int
    position: int
    kl: float
    context: str
    following: str | None
    reference: tuple[Prediction, ...]
    found: tuple[Prediction, ...]


@dataclass(frozen=True)
class BundleScores:
    """One bundle's figures. kl: of every position, for the picture."""

    name: str
    metrics: Mapping[str, Metric]
    kl: tuple[float, ...]


@dataclass(frozen=True)
class VerifyReport:
    """Everything. against: the second bundle's, and what it has more than the first, on the same text."""

    checkpoint: str
    windows: int
    window_tokens: int
    bundle: BundleScores
    against: BundleScores | None
    differences: Mapping[str, Metric] | None
    sample_tokens: int  # what layers, tensors and faults were looked at with
    weights_kl: float | None  # of the sample: what storing the weights costs, without the runtime's rounding
    layers: tuple[LayerReport, ...]
    tensors: tuple[TensorReport, ...]
    worst: tuple[WorstToken, ...]
    encoders: tuple[EncoderScore, ...]  # of the bundle's images and audio, on random ones
    findings: tuple[Finding, ...]
    tasks: tuple[TaskResult, ...]
    gates: tuple[GateResult, ...]
    seconds: float
    peak_anon_bytes: int
    not_checked: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """No fault found, and every gate passed; without gates, the verdict is not "not usable"."""
        is_enough = all(gate.holds for gate in self.gates) if self.gates else self.verdict is not Verdict.NOT_USABLE
        return is_enough and not self.findings

    @property
    def verdict(self) -> Verdict:
        """What the figures mean, for people; by the same bounds as `convert`."""
        metrics = self.bundle.metrics
        return verdict_of(metrics["kl"].value, metrics["top1"].value, metrics["ppl"].value)

    @property
    def told(self) -> str:
        """The verdict and its reason in one sentence, as the last word on a bundle."""
        count, verdict = len(self.findings), self.verdict
        metrics = self.bundle.metrics
        figures = (
            f"KL {metrics['kl'].value:.2g} nats, the checkpoint's most likely token in {metrics['top1'].value:.0%} of "
            f"positions, perplexity x {metrics['ppl'].value:.3g}"
        )
        if count:
            return f"{count} fault{'s' * (count != 1)} found; {verdict} by its figures alone: {figures}"
        if verdict is Verdict.NOT_USABLE:
            return (
                f"{verdict}: {verdict.meaning} ({figures}); no known fault explains it, so it is what storing the "
                "weights in so few bits costs: convert to a higher precision, or with --calibrate"
            )
        return f"{verdict}: {verdict.meaning} ({figures}); no known fault found"

    def values(self) -> dict[str, Any]:
        """As JSON; what is infinite is null."""
        values = asdict(self) | {
            "passed": self.passed,
            "verdict": self.verdict,
            "verdict_means": self.verdict.meaning,
            "layers": [_layer_values(layer) for layer in self.layers],
            "tensors": [asdict(tensor) | {"differs": tensor.differs} for tensor in self.tensors],
            "gates": [
                {
                    "gate": str(g.gate), "metric": g.gate.metric, "relation": g.gate.relation,
                    "bound": g.gate.bound, "value": g.value, "holds": g.holds,
                }
                for g in self.gates
            ],
        }  # fmt: skip
        finite: dict[str, Any] = _finite(values)
        return finite

    def json(self) -> str:
        """The text of it."""
        return json.dumps(self.values(), indent=2, allow_nan=False)

    def print(self, console: Console) -> None:
        """For people."""
        console.print(
            f"[bold]{escape(self.bundle.name)}[/] against {escape(self.checkpoint)}: "
            f"{self.windows * self.window_tokens} tokens in {self.windows} windows",
            highlight=False,
        )
        console.print(self._metrics())
        if self.layers:
            console.print(self._worst_layers())
        if self.worst:
            console.print(self._worst_tokens())
        for encoder in self.encoders:
            console.print(
                f"{encoder.modality} encoder: relative error {encoder.relative_error:.2e} of {encoder.embeddings} "
                f"embeddings, the worst cosine {encoder.cosine:.5f}",
                highlight=False,
            )
        for result in self.tasks:
            judged = "ok" if result.complaint is None else f"{result.complaint}, found {result.answer!r}"
            console.print(escape(f"prompt {result.prompt!r}: {judged}"), highlight=False)
        for finding in self.findings:
            told = escape(f"{finding.evidence}. {finding.meaning}")
            console.print(f"[bold red]{finding.name}[/]: {told}", highlight=False)
        for line in self.not_checked:
            console.print(escape(line), highlight=False)
        for gate in self.gates:
            console.print(f"[{'green' if gate.holds else 'bold red'}]{gate}[/]", highlight=False)
        console.print(
            f"{self.seconds:.1f} s, peak anonymous memory {format_bytes(self.peak_anon_bytes)}", highlight=False
        )
        console.print(f"[bold]{escape(self.told)}[/]", highlight=False)

    def _metrics(self) -> Table:
        table = Table("metric", escape(self.bundle.name), title="95 % confidence in brackets", title_justify="left")
        if self.against is not None:
            table.add_column(escape(self.against.name))
            table.add_column("difference")
        for name, metric in self.bundle.metrics.items():
            row = [METRICS.get(name, name.replace("_", " ")), spelled(metric)]
            if self.against is not None and self.differences is not None:
                row.append(spelled(self.against.metrics[name]))
                row.append(spelled(self.differences[name]) if name in self.differences else "")
            table.add_row(*row)
        if self.weights_kl is not None:
            table.add_row(f"KL of the weights alone, {self.sample_tokens} tokens", f"{self.weights_kl:.6f}")
        return table

    def _worst_layers(self) -> Table:
        table = Table("layer", title="signal to noise in dB", title_justify="left")
        for heading in ("output, weights alone", "keys in the runtime", "values in the runtime", "cosine of output"):
            table.add_column(heading, justify="right")
        for layer in self.layers:
            cosine = "" if layer.output is None else f"{layer.output.cosine:.5f}"
            cells = [_db(part) for part in (layer.output, layer.keys, layer.values)]
            table.add_row(str(layer.layer), *cells, cosine, style="red" if layer.departs else None)
        return table

    def _worst_tokens(self) -> Table:
        table = Table("KL", "after", "checkpoint", "bundle", title="largest differences", title_justify="left")
        for token in self.worst[:_WORST_ROWS]:
            texts = (repr(token.context[-40:]), _predictions(token.reference), _predictions(token.found))
            table.add_row(f"{token.kl:.4f}", *map(escape, texts))
        return table


def spelled(metric: Metric) -> str:
    """ "0.0123 [0.0110, 0.0140]"."""
    bounds = "" if metric.low is None or metric.high is None else f" [{metric.low:.5g}, {metric.high:.5g}]"
    return f"{metric.value:.5g}{bounds}"


def _predictions(predictions: tuple[Prediction, ...]) -> str:
    return ", ".join(f"{p.token!r} {p.probability:.0%}" for p in predictions[:_PREDICTED])


def _db(similarity: Similarity | None) -> str:
    return "" if similarity is None else f"{similarity.snr_db:.1f}"


def _layer_values(layer: LayerReport) -> dict[str, Any]:
    parts = {"output": layer.output, "keys": layer.keys, "values": layer.values}
    return {"layer": layer.layer, "departs": layer.departs} | {
        name: None if part is None else {"cosine": part.cosine, "snr_db": part.snr_db} for name, part in parts.items()
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
