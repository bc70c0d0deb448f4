"""What measuring a bundle against a budget has found: plan beside measurement, and the verdict."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gemma_edge.profiles.costs import EMBEDDING_PART, PLE_PART, WEIGHTS_PART
from gemma_edge.profiles.device import DeviceProfile
from gemma_edge.profiles.footprint import Footprint
from gemma_edge.profiles.sizes import MIB, format_bytes

LEAST_SPEED = 0.8  # of decode inside the cgroup, against decode without it (profiles/FORMAT.md, "One definition")
_WITH_EMBEDDING = f"{WEIGHTS_PART}, {EMBEDDING_PART}"
_ALL_MAPPED, _ALL_ANONYMOUS = "all mapped files", "all anonymous memory"
_MAPPED = {  # part of the plan -> what is mapped for it, in a bundle or an ONNX directory
    WEIGHTS_PART: ("tf_lite_prefill_decode", "weight_cache", "decoder_model_merged", "model"),
    EMBEDDING_PART: ("tf_lite_embedder", "inputs_embeds"),
    PLE_PART: ("tf_lite_per_layer_embedder", "per_layer_inputs"),
}
_TOKENIZER = "tokenizer"
_FEW_BYTES = 16 * MIB
_BUSY = "; hardly a page was read twice, so other programs slowed it: measure on a quiet machine"
_LIBRARIES = "libraries and other files"
_REST = "KV cache, activations, runtime"


@dataclass(frozen=True)
class Sample:
    """The process and its children at one moment. `at_s` counts from its start."""

    at_s: float
    hard_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class Trace:
    """One run in a process of its own. Bytes are peaks.

    charge_bytes: the cgroup's own peak, page cache included; None without a cgroup, or where the kernel keeps none.
    reread_bytes: file pages that the cgroup dropped and had to read again; None likewise.
    error: why it did not complete.
    parts: what the process saw of itself at its end, by stage of loading and by section of the bundle.
    phase_s: when "load", "prefill" and "decode" ended.
    """

    decode_tokens_per_s: float
    hard_bytes: int
    file_bytes: int
    charge_bytes: int | None
    reread_bytes: int | None
    error: str | None
    parts: Mapping[str, int]
    samples: tuple[Sample, ...] = ()
    phase_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PartRow:
    """One line of plan against measurement."""

    name: str
    planned_bytes: int
    measured_bytes: int


@dataclass(frozen=True)
class BudgetReport:
    """free: the run without a limit, None where speed is not judged. limited: the one in the cgroup, None without it.

    no_cgroup: why there was no cgroup, "" where there was one.
    """

    bundle: str
    profile: DeviceProfile
    plan: Footprint
    no_cgroup: str
    free: Trace | None
    limited: Trace | None
    least_speed: float = LEAST_SPEED

    def __post_init__(self) -> None:
        if self.free is None and self.limited is None:
            raise ValueError("a report needs at least one run")

    @property
    def judged(self) -> Trace:
        """The run whose memory counts."""
        trace = self.limited or self.free
        assert trace is not None
        return trace

    @property
    def peak_bytes(self) -> int:
        """RssAnon + RssShmem + swap: the figure that the budget bounds."""
        return self.judged.hard_bytes

    @property
    def speed(self) -> float | None:
        """Decode speed inside the cgroup over that outside; None without a cgroup."""
        if self.limited is None or self.free is None or not self.free.decode_tokens_per_s:
            return None
        return self.limited.decode_tokens_per_s / self.free.decode_tokens_per_s

    @property
    def failures(self) -> tuple[str, ...]:
        """Every condition of the definition that does not hold."""
        found = []
        budget_bytes = self.profile.budget_bytes
        if self.peak_bytes > budget_bytes:
            found.append(
                f"peak anonymous memory {format_bytes(self.peak_bytes)}, the budget is {format_bytes(budget_bytes)}"
            )
        if self.limited is not None and self.limited.error is not None:
            found.append(f"did not complete in a cgroup of {format_bytes(budget_bytes)}: {self.limited.error}")
        elif self.speed is not None and self.speed < self.least_speed:
            reread_bytes = self.judged.reread_bytes
            busy = _BUSY if reread_bytes is not None and reread_bytes < _FEW_BYTES else ""
            found.append(
                f"decodes at {self.speed:.0%} of its speed without the cgroup, expected {self.least_speed:.0%}{busy}"
            )
        return tuple(found)

    @property
    def passed(self) -> bool:
        return not self.failures

    def rows(self) -> tuple[PartRow, ...]:
        """Plan against measurement, part by part. Mapped parts as they were at the end of the run."""
        mapped = {part.name: part.file_bytes for part in self.plan.parts}
        seen = self.judged.parts
        if not seen:  # the process did not live to tell
            return (
                PartRow(_ALL_MAPPED, self.plan.file_bytes, self.judged.file_bytes),
                PartRow(_ALL_ANONYMOUS, self.plan.anon_bytes, self.peak_bytes),
            )
        rows = [
            PartRow(name, mapped[name], sum(seen.get(section, 0) for section in sections))
            for name, sections in _MAPPED.items()
            if mapped.get(name) and not seen.keys().isdisjoint(sections)
        ]
        inner_bytes = 0 if EMBEDDING_PART in (row.name for row in rows) else mapped.get(EMBEDDING_PART, 0)
        if rows and inner_bytes:  # Gemma 3's ONNX graph has its table among the weights
            rows[0] = PartRow(_WITH_EMBEDDING, rows[0].planned_bytes + inner_bytes, rows[0].measured_bytes)
        planned_bytes = self.plan.file_bytes - sum(row.planned_bytes for row in rows)
        measured_bytes = self.judged.file_bytes - sum(row.measured_bytes for row in rows)
        rows.append(PartRow(_LIBRARIES, planned_bytes, max(0, measured_bytes)))
        tokenizer_bytes = sum(part.anon_bytes for part in self.plan.parts if part.name == _TOKENIZER)
        rows.append(PartRow(_TOKENIZER, tokenizer_bytes, seen.get(_TOKENIZER, 0)))
        rest_bytes = max(0, self.peak_bytes - seen.get(_TOKENIZER, 0))
        rows.append(PartRow(_REST, self.plan.anon_bytes - tokenizer_bytes, rest_bytes))
        return tuple(rows)

    def values(self) -> dict[str, Any]:
        """For JSON. Samples are left out: the picture shows them."""
        return {
            "bundle": self.bundle,
            "profile": self.profile.name,
            "budget_bytes": self.profile.budget_bytes,
            "method": "sampling" if self.limited is None else "cgroup",
            "no_cgroup": self.no_cgroup,
            "passed": self.passed,
            "failures": list(self.failures),
            "plan": {"anon_bytes": self.plan.anon_bytes, "file_bytes": self.plan.file_bytes},
            "parts": [asdict(row) for row in self.rows()],
            "free": None if self.free is None else _values(self.free),
            "limited": None if self.limited is None else _values(self.limited),
            "speed": self.speed,
        }

    def text(self) -> str:
        """The report for a terminal or a log."""
        lines = [f"{self.bundle} on {self.profile.name}", f"{'':<32}{'planned':>10}{'measured':>10}"]
        table = [
            *self.rows(),
            PartRow("anonymous, peak", self.plan.anon_bytes, self.peak_bytes),
            PartRow("mapped, peak", self.plan.file_bytes, self.judged.file_bytes),
        ]
        lines += [
            f"{row.name:<32}{format_bytes(row.planned_bytes):>10}{format_bytes(row.measured_bytes):>10}"
            for row in table
        ]
        lines.append(f"{'budget':<32}{'':>10}{format_bytes(self.profile.budget_bytes):>10}")
        if self.limited is None:
            lines.append(f"measured by sampling, decode speed inside the limit not tested ({self.no_cgroup})")
        elif self.limited.charge_bytes is not None:
            lines.append(f"{'cgroup, page cache charged':<42}{format_bytes(self.limited.charge_bytes):>10}")
        if self.judged.reread_bytes is not None:
            lines.append(f"{'dropped and read again':<42}{format_bytes(self.judged.reread_bytes):>10}")
        if self.judged.error is None:
            lines.append(f"{'decode, tok/s':<42}{self.judged.decode_tokens_per_s:>10.1f}")
        if self.limited is not None and self.free is not None:
            lines.append(f"{'  without the cgroup':<42}{self.free.decode_tokens_per_s:>10.1f}")
        lines += [f"FAILED: {failure}" for failure in self.failures] or ["PASSED"]
        return "\n".join(lines)


def _values(trace: Trace) -> dict[str, Any]:
    return {name: value for name, value in asdict(trace).items() if name != "samples"}
