"""Search for the variants closest to a request that exceeds its memory budget: every one computed, cheapest loss first.

Changes in the order of what they cost a user: without signatures for spans of the context each token waits as if it
were full, a smaller prefill chunk costs time to the first token, a shorter context costs length of conversation, fewer
bits cost quality (quantize/recipe_data/int4.toml has the measurements), fewer modalities cost uses, a smaller slice of
the model costs more, as its published MMLU says, a smaller model costs most: at equal bytes more parameters in four
bits beat fewer in eight (arXiv 2212.09720).
"""

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field, replace
from itertools import product
from typing import Any

from gemma_edge.converter.models.encoders import Modality
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.matformer.slices import WHOLE_MMLU, smaller_slices
from gemma_edge.converter.models.official import OFFICIAL
from gemma_edge.converter.plan.door import planning
from gemma_edge.converter.plan.footprint import ModelSizes, Needs
from gemma_edge.converter.plan.format import KVType
from gemma_edge.converter.plan.target import WHOLE_OF_SLICES, Target
from gemma_edge.converter.quantize.recipes import NAMES as PRECISIONS
from gemma_edge.converter.quantize.recipes import Recipe
from gemma_edge.profiles.budget import MemoryBudget, OverBudget, Suggestion

SHORTEST_CONTEXT_TOKENS = 1024
"""What is suggested at least: a few turns of chat."""
SMALLEST_PREFILL = (16,)
FEWER_BITS = ("attention=int4", "embedding=int4")
"""On top of the recipe with the fewest bits, in this order."""


@dataclass(frozen=True, order=True)
class Distance:
    """How many steps a request is from the one asked for. Compares the gravest change first."""

    model: int = 0
    slice: int = 0
    modalities: int = 0
    weights: int = 0
    context: int = 0
    kv: int = 0
    prefill: int = 0
    spans: int = 0

    def covers(self, other: "Distance") -> bool:
        """Whether it gives up at least as much in every respect."""
        return all(mine >= theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))


@dataclass(frozen=True)
class Alternative:
    """A request that fits. model: as far as it is cut. options: what to append to the command line to ask for it."""

    target: Target
    model: Model
    needs: Needs
    distance: Distance
    options: str

    @property
    def can_be_chosen(self) -> bool:
        """Whether `--fit` may take it: the checkpoint and what the model takes stay."""
        return not (self.distance.model or self.distance.modalities)


@dataclass(frozen=True)
class Fitted:
    """A request that fits its profile, or has none, with its modalities chosen.

    model: with the encoders of these modalities. changes: what `--fit` chose, as options; "" if it is as asked.
    """

    target: Target
    model: Model
    needs: Needs
    changes: str = ""


def fit_target(target: Target, model: Model) -> Fitted:
    """The request as it is if it fits, or, where it says so, the best one that does.

    Raises OverBudget with what would fit.
    """
    sizes, needs_of = ModelSizes.of(model), planning(target.format).needs
    for modalities in _modalities(target, model):
        target = replace(target, modalities=modalities)
        needs = needs_of(sizes, target)
        if target.profile is None or target.profile.budget.fits(needs.footprint):
            return Fitted(target, model.with_modalities(modalities), needs)
    assert target.profile is not None
    budget = target.profile.budget
    found = alternatives(target, model, budget)
    best = next((alternative for alternative in found if alternative.can_be_chosen), None)
    if target.fit and best is not None:
        return Fitted(best.target, best.model.with_modalities(best.target.modalities or ()), best.needs, best.options)
    subject = f"{target.name} at {target.context_for(model)} tokens on {target.profile.name}"
    suggestions = tuple(
        Suggestion(alternative.options, alternative.needs.footprint, _note(target, alternative))
        for alternative in found
    )
    raise OverBudget(subject, needs.footprint, budget, suggestions)


def _note(target: Target, alternative: Alternative) -> str:
    """What a slice scores, or what of the request is another model's."""
    if target.drafter is not None and alternative.target.drafter is None:
        return "without --drafter"
    cut = alternative.target.slice if alternative.distance.slice else None
    return "" if cut is None else f"MMLU {cut.mmlu}, the whole {WHOLE_MMLU}"


def _modalities(target: Target, model: Model) -> Iterator[tuple[Modality, ...]]:
    """Those asked for; where none were, all that the model has, then fewer, down to text.

    Encoders are in memory one at a time, so of two the larger one goes first: that of sound.
    """
    if target.modalities is not None or not target.format.encoders:
        yield target.modalities or (Modality.TEXT,)
        return
    fewer = ((Modality.TEXT, encoder.modality) for encoder in model.encoders)
    yield from dict.fromkeys([model.modalities, *fewer, (Modality.TEXT,)])


def alternatives(target: Target, model: Model, budget: MemoryBudget) -> list[Alternative]:
    """Requests that fit, cheapest loss first, without those that give up more than another one does."""
    fitting = (found for found in _combinations(target, model) if budget.fits(found.needs.footprint))
    nearest: list[Alternative] = []
    for found in sorted(fitting, key=lambda alternative: alternative.distance):
        if not any(found.distance.covers(kept.distance) for kept in nearest):
            nearest.append(found)
    return nearest


@dataclass(frozen=True)
class _Step:
    """Fields of a Target to replace, what that gives up, and the option that asks for it; nothing by default."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    distance: Distance = Distance()
    option: str = ""


AS_ASKED = _Step()


def _combinations(target: Target, model: Model) -> Iterator[Alternative]:
    """Every request with one step of each kind."""
    needs_of = planning(target.format).needs
    for size in _sizes(target):
        resized = model if size is AS_ASKED else replace(target, **size.fields).official_model()
        sizes = ModelSizes.of(resized)
        axes = (
            _fewer_modalities(target),
            _weights(target),
            _contexts(target, resized),
            _kv_types(target),
            _prefills(target),
            _spans(target),
        )
        for steps in product([size], *axes):
            changed = replace(target, **{name: value for step in steps for name, value in step.fields.items()})
            if not target.format.any_prefill and changed.prefill_tokens[-1] > changed.context_for(resized):
                continue
            if not set(changed.modalities or ()) <= set(resized.modalities):
                continue
            name = "" if changed.name == target.name else f"--target {changed.name}"
            options = " ".join(filter(None, (name, *(step.option for step in steps))))
            distance = Distance(*map(sum, zip(*(astuple(step.distance) for step in steps), strict=True)))
            yield Alternative(changed, resized, needs_of(sizes, changed), distance, options)


def _sizes(target: Target) -> Iterator[_Step]:
    """The model asked for, then slices of it that no smaller one equals, then the smaller official ones.

    A model of the user's own has no smaller ones.
    """
    yield AS_ASKED
    if target.size == WHOLE_OF_SLICES and target.beside is None:
        for steps, cut in enumerate(smaller_slices(target.slice), start=1):
            yield _Step({"slice": cut}, Distance(slice=steps))
    ladder = list(OFFICIAL)
    smaller = ladder[ladder.index(target.size) + 1 :] if target.size in ladder else []
    for steps, size in enumerate(smaller, start=1):
        yield _Step(
            {"size": size, "slice": None, "beside": None, "drafter": None},
            Distance(model=steps),
            f"--checkpoint {OFFICIAL[size].repository}",
        )


def _fewer_modalities(target: Target) -> Iterator[_Step]:
    """Those asked for, then text with one other, then text."""
    yield AS_ASKED
    asked = target.modalities or (Modality.TEXT,)
    fewer = [(Modality.TEXT, other) for other in asked[1:] if len(asked) > 2] + [(Modality.TEXT,)] * (len(asked) > 1)
    for steps, modalities in enumerate(fewer, start=1):
        yield _Step({"modalities": modalities}, Distance(modalities=steps), f"--modalities {','.join(modalities)}")


def _weights(target: Target) -> Iterator[_Step]:
    """The recipe asked for, then built-in ones with fewer bits, then int4 where it hurts more."""
    yield AS_ASKED
    recipe, steps = target.recipe, 0
    if recipe == Recipe.named(target.precision):  # a recipe of the user's own is not replaced
        for precision in PRECISIONS[PRECISIONS.index(target.precision) + 1 :]:
            recipe, steps = Recipe.named(precision), steps + 1
            yield _Step({"precision": precision, "recipe": recipe}, Distance(weights=steps))
    fields: dict[str, Any] = {"precision": precision} if steps else {}
    options: list[str] = []
    for override in FEWER_BITS:
        recipe, steps, options = recipe.overridden(override), steps + 1, [*options, f"--encoding {override}"]
        yield _Step(fields | {"recipe": recipe}, Distance(weights=steps), " ".join(options))


def _contexts(target: Target, model: Model) -> Iterator[_Step]:
    """The context asked for, then powers of two below it; of a smaller model, as far as it takes them."""
    longest = model.config.max_context_tokens
    asked = target.context_tokens or target.context_for(model)
    if asked <= longest:
        yield AS_ASKED
    context, steps = 1 << (asked - 1).bit_length() - 1, 1
    while context >= SHORTEST_CONTEXT_TOKENS:
        if context <= longest:
            yield _Step({"context_tokens": context}, Distance(context=steps), f"--context {context}")
        context, steps = context // 2, steps + 1


def _kv_types(target: Target) -> Iterator[_Step]:
    """fp16 rarely helps: LiteRT keeps a float32 copy beside it."""
    yield AS_ASKED
    if len(target.format.kv_types) < 2:
        return
    other = KVType.FP32 if target.kv is KVType.FP16 else KVType.FP16
    yield _Step({"kv": other}, Distance(kv=int(other is KVType.FP16)), f"--kv {other}")


def _prefills(target: Target) -> Iterator[_Step]:
    """The chunks asked for, then without the largest, and so on down to one of 16, or what is verified at once."""
    yield AS_ASKED
    verified = max(target.draft_tokens, default=1 if target.drafter is None else 2)
    shorter = [target.prefill_tokens[:count] for count in range(len(target.prefill_tokens) - 1, 0, -1)]
    if target.prefill_tokens[0] > SMALLEST_PREFILL[0]:
        shorter.append(SMALLEST_PREFILL)
    for steps, chunks in enumerate(shorter, start=1):
        if chunks[-1] >= verified:
            yield _Step({"prefill_tokens": chunks}, Distance(prefill=steps), f"--prefill {','.join(map(str, chunks))}")


def _spans(target: Target) -> Iterator[_Step]:
    """Those asked for, then none."""
    yield AS_ASKED
    if not target.format.any_prefill and target.spans != ():
        yield _Step({"spans": ()}, Distance(spans=1), "--spans none")
