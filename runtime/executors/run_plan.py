"""What a run will need in memory, whatever the format: the contexts that fit, and weights without a cache on a disk."""

from dataclasses import replace
from typing import Protocol

from gemma_edge.profiles.budget import MemoryBudget
from gemma_edge.profiles.costs import DRAFTER_PART, WEIGHTS_PART
from gemma_edge.profiles.costs_encoders import EncoderKind
from gemma_edge.profiles.footprint import Footprint, Part

_CONTEXT_STEP_TOKENS = 256


class RunPlan(Protocol):
    """What a run of a bundle or an ONNX directory will need."""

    @property
    def context_tokens(self) -> int:
        """The longest it was converted for."""

    def footprint(
        self, context_tokens: int | None = None, *, anonymous_weights: bool = False, slots: int = 1
    ) -> Footprint:
        """The peak, in a context shorter than the longest if given, with keys and values of so many conversations."""

    def longest_context(self, budget: MemoryBudget, *, anonymous_weights: bool = False, slots: int = 1) -> int | None:
        """The longest context that fits; None where none does."""


def longest_context(
    plan: RunPlan, budget: MemoryBudget, shortest_tokens: int, anonymous_weights: bool, slots: int
) -> int | None:
    """The plan's own context or one that is shorter by a multiple of 256; None where not even `shortest_tokens` fit."""
    for context in range(plan.context_tokens, shortest_tokens - 1, -_CONTEXT_STEP_TOKENS):
        if budget.fits(plan.footprint(context, anonymous_weights=anonymous_weights, slots=slots)):
            return context
    return None


def made_anonymous(planned: Footprint) -> Footprint:
    """With weights that have no cache on a disk."""
    return replace(planned, parts=tuple(_made_anonymous(part) for part in planned.parts))


def _made_anonymous(part: Part) -> Part:
    if part.name not in (WEIGHTS_PART, DRAFTER_PART, *EncoderKind):
        return part
    return Part(part.name, part.total_bytes, 0, "computed: packed into memory, no weight cache on a disk")
