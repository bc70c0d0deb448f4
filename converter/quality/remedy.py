"""When a bundle loses too much: what would be accepted for the fewest bytes. Every candidate is measured, not guessed.

Candidates are options to append to the command line: scales for blocks of 32 columns, int8 for one part of the model or
more, and, where it does not take long, --calibrate. What the checkpoint gives on the text is known already, so that a
candidate costs one run of the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.disk_arrays import arrays_in
from gemma_edge.converter.calibrate.layers import calibrate, is_calibrated
from gemma_edge.converter.calibrate.spool import Spool
from gemma_edge.converter.calibrate.step import calibration_windows
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.plan.fit import fit_target
from gemma_edge.converter.plan.plan import Plan, make_plan
from gemma_edge.converter.plan.target import BUILT_IN_TEXT, calibration_text
from gemma_edge.converter.progress import Stage
from gemma_edge.converter.quality.figures import Quality
from gemma_edge.converter.quality.measure import bundle_hooks
from gemma_edge.converter.quality.side_by_side import SideBySide, pairs_of
from gemma_edge.converter.quantize.qat import with_grids
from gemma_edge.converter.quantize.recipes import ENCODER_ROLES, Placement, Recipe, RecipeError
from gemma_edge.converter.quantize.stream import NO_QUANTIZERS, Quantizer
from gemma_edge.converter.tensors import Role
from gemma_edge.profiles.budget import OverBudget
from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.formats import hadamard

Float32 = NDArray[np.float32]

_TRIED_VALUES: Final = 300_000_000
"""A model with more values in its layers is not calibrated for a try: that takes minutes."""

_TRIED_WINDOWS: Final = 16
"""Fewer than `--calibrate` takes: following the advice loses less than was measured, not more."""

_TRIED_CALIBRATIONS: Final = 2
"""The smallest: what was asked for, and in blocks of 32."""

_FINEST_BLOCK: Final = 32


@dataclass(frozen=True)
class Remedy:
    """options: to append. more_bytes: in the bundle, than what was asked for has."""

    options: str
    quality: Quality
    more_bytes: int

    def __str__(self) -> str:
        return f"{self.options} gives KL {self.quality.kl:.2g} for {_change(self.more_bytes)}"


def _change(more_bytes: int) -> str:
    if not more_bytes:
        return "no byte more"
    return f"{format_bytes(abs(more_bytes))} {'more' if more_bytes > 0 else 'less'}"


@dataclass(frozen=True)
class _Candidate:
    options: str
    plan: Plan

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.plan.tensors)

    def calibrated(self, source: Checkpoint) -> "_Candidate | None":
        """The same with --calibrate; None where there is nothing to calibrate."""
        if not any(is_calibrated(storage) for storage in self.plan.storages.values()):
            return None
        fitted = self.plan.fitted
        target = replace(fitted.target, calibration=calibration_text(BUILT_IN_TEXT))
        plan = make_plan(replace(fitted, target=target), source)
        return _Candidate(f"{self.options} --calibrate".strip(), plan)


@dataclass(frozen=True)
class Search:
    """Where to look. exact: what the head reads in the checkpoint on `windows` [B, T], [B * T, D].

    directory: for temporary files.
    """

    plan: Plan
    source: Checkpoint
    windows: NDArray[np.integer[Any]]
    exact: Float32
    directory: Path
    stage: Stage

    def cheapest(self, accepts: Callable[[Quality], bool]) -> Remedy | None:
        """The candidate with the fewest bytes whose quality is accepted; None where none is."""
        candidates = sorted(self._candidates(), key=lambda candidate: candidate.nbytes)
        found = self._first(candidates, accepts)
        if self.plan.target.calibration is not None or not self.is_small:
            return found
        calibrated = [c.calibrated(self.source) for c in (_Candidate("", self.plan), *candidates)]
        fewer = [
            c for c in calibrated if c is not None and (found is None or c.nbytes < self._nbytes + found.more_bytes)
        ]
        return self._first(fewer[:_TRIED_CALIBRATIONS], accepts) or found

    @property
    def untried(self) -> str | None:
        """What a try that would take too long costs; None where there is none, or it was tried."""
        asked = _Candidate("", self.plan)
        calibrated = None if self.is_small or self.plan.target.calibration else asked.calibrated(self.source)
        if calibrated is None:
            return None
        return f"--calibrate, which was not tried, takes {_change(calibrated.nbytes - asked.nbytes)}"

    @property
    def is_small(self) -> bool:
        """Whether a try of --calibrate is quick enough."""
        resident = (t.spec for t in self.plan.tensors if Placement.of(t.spec.role) is Placement.RESIDENT)
        return sum(spec.values for spec in resident if spec.role is not Role.HEAD) <= _TRIED_VALUES

    @property
    def _nbytes(self) -> int:
        return _Candidate("", self.plan).nbytes

    def _first(self, candidates: Sequence[_Candidate], accepts: Callable[[Quality], bool]) -> Remedy | None:
        for candidate in candidates:
            quality = self._quality(candidate.plan)
            if accepts(quality):
                return Remedy(candidate.options, quality, candidate.nbytes - self._nbytes)
        return None

    def _candidates(self) -> Iterator[_Candidate]:
        """Blocks of 32 and int8 for some roles or all, then recipes of more bits as a whole."""
        target = self.plan.target
        if not target.recipe.tensors:  # else the recipe names every tensor, and --encoding would change none
            for options in self._encodings():
                recipe = partial(reduce, Recipe.overridden, options, target.recipe)
                yield from self._candidate(" ".join(f"--encoding {option}" for option in options), recipe)
        for precision in ("int8", "fp16"):
            instead = " instead of --recipe" if target.recipe.tensors else ""
            yield from self._candidate(f"--target {target.size}-{precision}{instead}", partial(Recipe.named, precision))

    def _encodings(self) -> Iterator[list[str]]:
        roles = self._roles()
        in_blocks = {role: option for role in roles if (option := self._in_blocks(role)) is not None}
        low = [role for role in roles if self._recipe.roles[role].encoding.bits < 8]
        for count in range(len(low) + 1):
            for chosen in combinations(low, count):
                others = [option for role, option in in_blocks.items() if role not in chosen]
                if options := [*others, *(f"{role}=int8" for role in chosen)]:
                    yield options

    @property
    def _recipe(self) -> Recipe:
        """As it is for this model."""
        return self.plan.target.recipe_for(self.plan.model)

    def _roles(self) -> list[Role]:
        """Of the text model, with integers."""
        present = {t.spec.role for t in self.plan.tensors if t.storage.encoding.kind == "int"}
        return [role for role in self.plan.target.recipe.roles if role in present and role not in ENCODER_ROLES]

    def _in_blocks(self, role: Role) -> str | None:
        """The option for finer int4, where the role has coarser integers."""
        encoding = self._recipe.roles[role].encoding
        is_table = Placement.of(role) is Placement.OFFLOADED
        if encoding.bits > 4 or (encoding.bits == 4 and (is_table or encoding.block == _FINEST_BLOCK)):
            return None
        return f"{role}=int4" if is_table else f"{role}=int4-b{_FINEST_BLOCK}"

    def _candidate(self, options: str, recipe: Callable[[], Recipe]) -> Iterator[_Candidate]:
        """None where no bundle can hold it, or the profile cannot bear it."""
        with suppress(RecipeError, OverBudget):
            target = replace(self.plan.target, recipe=recipe(), fit=False)
            model = with_grids(self.plan.model, self.source, target.recipe_for(self.plan.model))
            plan = make_plan(fit_target(target, model), self.source)
            if plan.storages != self.plan.storages:
                yield _Candidate(options, plan)

    def _quality(self, plan: Plan) -> Quality:
        """As it would be. What is too large to calibrate for a try is measured without: that can only lose more."""
        text = plan.target.calibration
        if text is None or not self.is_small:
            return self._measured(plan, NO_QUANTIZERS)
        model = StreamingModel(self.source, plan.model, arrays_in(self.directory))
        windows = calibration_windows(text, plan.model, self.source)[:_TRIED_WINDOWS]
        with TemporaryFile(dir=self.directory) as file:
            on_bytes = self.stage("calibrate", 2 * model.read_bytes(0))
            quantizers = calibrate(self.source, model, plan.storages, windows, Spool(file), on_bytes)
            return self._measured(plan, quantizers)

    def _measured(self, plan: Plan, quantizers: Mapping[str, Quantizer]) -> Quality:
        model = StreamingModel(self.source, plan.model)
        on_bytes = self.stage("try", model.body_bytes + model.head_bytes(1))
        hooks = replace(bundle_hooks(plan, model, self.source, quantizers), on_bytes=on_bytes)
        assert hooks.weights is not None
        side_by_side = SideBySide(model, pairs_of(self.source, hooks.weights), hooks, on_bytes)
        with np.errstate(all="ignore"):
            return side_by_side.head(self.windows, self._exact_for(model), model.hidden(self.windows, hooks))

    def _exact_for(self, model: StreamingModel) -> Float32:
        """With columns turned where the head of `model` wants that, and the one asked for does not, or the reverse."""
        turned = StreamingModel(self.source, self.plan.model).head.weight.fold.hadamard
        if model.head.weight.fold.hadamard == turned:
            return self.exact
        return np.asarray(hadamard.turn(self.exact), np.float32)
