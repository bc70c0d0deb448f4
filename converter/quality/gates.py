"""Bounds that a bundle must keep: `kl<=0.02,top1>=0.95,ppl<=1.02`."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from gemma_edge.profiles.errors import GemmaEdgeError

METRICS: Mapping[str, str] = {
    "kl": "KL, mean, nats",  # KL(checkpoint || bundle)
    "kl_p99": "KL, 99th percentile",
    "kl_max": "KL, largest",
    "top1": "top-1 agreement",  # share of positions with the same most likely token
    "top5": "top-5 agreement",  # share of the checkpoint's five most likely tokens that are among the bundle's
    "ppl": "perplexity ratio",  # bundle / checkpoint
    "tasks": "prompts passed",  # share, of --prompts
}
_GATE = re.compile(r"\s*(?P<metric>\w+)\s*(?P<relation><=|>=)\s*(?P<bound>[0-9.eE+-]+)\s*")


class GateError(GemmaEdgeError):
    """A bound that cannot be read."""


@dataclass(frozen=True)
class Gate:
    """One bound."""

    metric: str
    relation: Literal["<=", ">="]
    bound: float

    def holds(self, value: float) -> bool:
        """Whether `value` keeps it."""
        return value <= self.bound if self.relation == "<=" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.metric} {self.relation} {self.bound:g}"


@dataclass(frozen=True)
class GateResult:
    """A gate and what was found."""

    gate: Gate
    value: float

    @property
    def holds(self) -> bool:
        return self.gate.holds(self.value)

    def __str__(self) -> str:
        return f"gate {self.gate}: {'passed' if self.holds else 'FAILED'} ({self.value:.6g})"


def parse_gates(text: str, *, with_tasks: bool) -> tuple[Gate, ...]:
    """Of a comma-separated list. with_tasks: whether `tasks` is measured. Raises GateError naming what is wrong."""
    gates = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        matched = _GATE.fullmatch(part)
        if matched is None or matched["metric"] not in METRICS:
            raise GateError(f"gate {part!r}: expected METRIC<=BOUND or METRIC>=BOUND, METRIC of {', '.join(METRICS)}")
        if matched["metric"] == "tasks" and not with_tasks:
            raise GateError(f"gate {part!r}: there are no prompts to pass; give --prompts, or leave the gate out")
        try:
            bound = float(matched["bound"])
        except ValueError:
            bound = math.inf
        if not math.isfinite(bound):  # 1e999 is infinite too: a gate that nothing can break
            raise GateError(f"gate {part!r}: {matched['bound']!r} is no number; write one such as 0.02")
        gates.append(Gate(matched["metric"], cast(Literal["<=", ">="], matched["relation"]), bound))
    if text.strip() and not gates:
        raise GateError(f"gates {text!r}: found none in it, expected some such as kl<=0.02; write one or leave it out")
    return tuple(gates)


def judge(gates: tuple[Gate, ...], values: Mapping[str, float]) -> tuple[GateResult, ...]:
    """Every gate with its value."""
    return tuple(GateResult(gate, values[gate.metric]) for gate in gates)
