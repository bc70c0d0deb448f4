"""Which known fault explains what the bundle computed: try each, and see whether the logits then agree."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import Hooks
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.progress import OnBytes
from gemma_edge.converter.verify.find.bundle_weights import BundleWeights
from gemma_edge.converter.verify.find.faults import GRAPH_FAULTS, WRONG_NORMS, Fault, Finding
from gemma_edge.converter.verify.find.folds import with_turned

Float32 = NDArray[np.float32]

_EXPLAINED = 0.5  # a fault is there if with it at most half of the squared difference is left
_NOTHING = 1e-9  # squared difference, as a share of the logits', that float32 leaves in another order of summation


@dataclass(frozen=True)
class Sample:
    """A few tokens with the logits [T, V] that the bundle gave after each."""

    tokens: Sequence[int]
    logits: Float32

    def distance(self, blocks: Iterable[tuple[int, Float32]]) -> float:
        """Mean squared difference of logits, (first row, [n, V]) at a time, as a share of the bundle's mean square."""
        total = size = 0.0
        for first, logits in blocks:
            for row, found in enumerate(logits, first):
                difference = found - self.logits[row]
                total += float(np.dot(difference, difference))
                size += float(np.dot(self.logits[row], self.logits[row]))
        return total / size


@dataclass(frozen=True)
class Explanation:
    """What a bundle does.

    findings: the faults that it has, the weightiest first. left: the squared difference of the logits that none of them
    explains, as a share of the logits'.
    """

    findings: tuple[Finding, ...]
    left: float


class Diagnosis:
    """The computations that a bundle may be doing, each judged by how far its logits are from the bundle's."""

    def __init__(self, checkpoint: Checkpoint, stored: BundleWeights | None, sample: Sample) -> None:
        """stored: the bundle's weights, so that only the computation differs; None takes the checkpoint's."""
        self._checkpoint = checkpoint
        self._stored = stored
        self._sample = sample

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is tried. With the bundle's own weights a wrong norm is in both computations: see offset_norms."""
        return GRAPH_FAULTS if self._stored is not None else (*GRAPH_FAULTS, WRONG_NORMS)

    def find(self, model: Model, hidden: Float32, left: float, on_bytes: OnBytes) -> Explanation:
        """The faults whose sum explains the bundle best; none where nothing is to explain.

        hidden: what the right computation gives to the head, [T, D], with the same weights. left: how far the logits
        are that follow from it. on_bytes: as in Hooks.
        """
        findings: list[Finding] = []
        rest = list(self.faults)
        while left > _NOTHING:
            best = min(self._tried(rest, model, hidden, on_bytes), key=lambda trial: trial.left, default=None)
            if best is None or best.left > _EXPLAINED * left:
                break
            evidence = (
                f"over {len(self._sample.tokens)} tokens the bundle's logits are {_db(best.left)} from a computation "
                f"with this fault and {_db(left)} from one without"
            )
            findings.append(Finding(best.fault.name, best.fault.meaning, evidence))
            rest.remove(best.fault)
            left, model, hidden = best.left, best.model, best.hidden
        return Explanation(tuple(findings), left)

    def read_bytes(self, model: Model) -> int:
        """What `find` reports to `on_bytes` where it finds nothing."""
        tokens = len(self._sample.tokens)
        evaluations = [
            (fault, StreamingModel(self._checkpoint, m)) for fault, m in self._candidates(self.faults, model)
        ]
        bodies = sum(evaluated.body_bytes for fault, evaluated in evaluations if not fault.after_head)
        return bodies + len(evaluations) * StreamingModel(self._checkpoint, model).head_bytes(tokens)

    def _tried(self, faults: Sequence[Fault], model: Model, hidden: Float32, on_bytes: OnBytes) -> Iterator["_Trial"]:
        for fault, altered in self._candidates(faults, model):
            if not fault.after_head:
                evaluated = StreamingModel(self._checkpoint, altered)
                own = evaluated.hidden(np.array([self._sample.tokens], np.int64), self._hooks(on_bytes))
            else:
                own = hidden
            yield _Trial(fault, altered, own, self._distance(altered, own, on_bytes))

    def _distance(self, model: Model, hidden: Float32, on_bytes: OnBytes) -> float:
        model_logits = StreamingModel(self._checkpoint, model).logits(hidden, self._hooks(on_bytes))
        return self._sample.distance(model_logits)

    def _hooks(self, on_bytes: OnBytes) -> Hooks:
        return Hooks(read=None if self._stored is None else self._stored.read, on_bytes=on_bytes)

    def _candidates(self, faults: Sequence[Fault], model: Model) -> Iterator[tuple[Fault, Model]]:
        shortest = min((layer.window for layer in model.config.attention if layer.window), default=0)
        for fault in faults:
            if not fault.in_window and len(self._sample.tokens) <= shortest:
                continue
            altered = fault.alter(model)
            if altered is not None and self._stored is not None:  # weights that only a wrong model has
                altered = with_turned(altered, self._stored)
            if altered is not None and self._has_weights(altered):
                yield fault, altered

    def _has_weights(self, model: Model) -> bool:
        """A computation on weights that the bundle does not hold is not what it does."""
        specs = model.decoder("candidate", 1, with_logits=True).used.values()
        return all(
            self._checkpoint.resolve(spec.source) is not None and (self._stored is None or spec.name in self._stored)
            for spec in specs
        )


@dataclass(frozen=True)
class _Trial:
    """One fault tried: the model with it, what that gives to the head, and how far its logits are off."""

    fault: Fault
    model: Model
    hidden: Float32
    left: float


def _db(distance: float) -> str:
    return f"{10 * np.log10(max(distance, 1e-30)):.0f} dB"
