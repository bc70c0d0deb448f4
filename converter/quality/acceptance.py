"""Whether a bundle may appear under its name: what it lost, against what is asked for and what is usable at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from gemma_edge.converter.quality.figures import GATED, Quality
from gemma_edge.converter.quality.gates import Gate, GateError, judge, parse_gates
from gemma_edge.converter.quality.verdict import Verdict
from gemma_edge.profiles.errors import GemmaEdgeError

NOT_MEASURED: Final = "not measured"


class QualityError(GemmaEdgeError):
    """A bundle that loses too much. The command line's exit status is 3: the request is right, its result is not."""

    exit_status = 3


@dataclass(frozen=True)
class Acceptance:
    """What is asked of a conversion's result. accept_loss: take one that is not usable; gates hold all the same."""

    gates: tuple[Gate, ...] = ()
    measure: bool = True
    accept_loss: bool = False

    @classmethod
    def of(cls, gate: str, measure: bool, accept_loss: bool) -> Self:
        """From the command line. Raises GateError for a gate that cannot be read, or that nothing is measured for."""
        gates = parse_gates(gate, with_tasks=False)
        for each in gates:
            if each.metric not in GATED:
                raise GateError(
                    f"gate {each}: convert measures {', '.join(GATED)}; use one of these, or `gemma-edge verify`"
                )
            if not measure:
                raise GateError(f"gate {each}: expected a measurement, found --no-measure; leave one of them out")
        return cls(gates, measure, accept_loss)

    def complaint(self, quality: Quality) -> str | None:
        """What is wrong with it, as the beginning of a line; None where it may pass."""
        failed = [verdict for verdict in judge(self.gates, quality.metrics) if not verdict.holds]
        if failed:
            return str(failed[0])
        if quality.verdict is Verdict.NOT_USABLE and not self.accept_loss:
            return (
                f"KL {quality.kl:.2g} nats, perplexity {quality.perplexity_ratio:.3g} times the checkpoint's: "
                f"{quality.verdict}, {quality.verdict.meaning}"
            )
        return None

    def values(self, quality: Quality | None, text: str) -> dict[str, Any]:
        """For the report: what was measured, or why nothing was."""
        if quality is None:
            return {"verdict": NOT_MEASURED, "meaning": "convert was told not to measure (--no-measure)"}
        gates = [{"gate": str(verdict.gate), "value": verdict.value} for verdict in judge(self.gates, quality.metrics)]
        return {"text": text, **quality.values(), **({"gates": gates} if gates else {})}


def quality_line(values: Mapping[str, Any]) -> str:
    """What a report says about quality, in one line."""
    if "kl" not in values:
        return f"quality: {values['verdict']}; {values['meaning']}"
    figures = {key: "infinite" if values[key] is None else f"{values[key]:.3g}" for key in _FIGURES}
    return (
        f"quality: {values['verdict']}; {values['meaning']} (KL {figures['kl']} nats, top-1 {values['top1']:.0%}, "
        f"perplexity {figures['perplexity']} against {figures['reference_perplexity']}, {values['tokens']} tokens)"
    )


_FIGURES = ("kl", "perplexity", "reference_perplexity")
