"""What an engine runs with: asked for, or what the device's profile says. Refuses what does not fit before loading."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_edge.profiles.budget import OverBudget
from gemma_edge.profiles.device import DeviceProfile, load_profile
from gemma_edge.profiles.footprint import Footprint
from gemma_edge.runtime.config import CPU, ConfigError
from gemma_edge.runtime.executors.open import plan_of
from gemma_edge.runtime.executors.placement import cache_folder, is_memory
from gemma_edge.runtime.executors.run_plan import RunPlan
from gemma_edge.runtime.formats.model import Model
from gemma_edge.runtime.memory.watch import BudgetWarning, OverBudgetAction

DEFAULT_SLOTS = 4
"""Conversations whose keys and values are kept, where memory allows."""
_DEFAULT_THREADS = 4  # litert_lm's; more than the big cores of an edge device slow XNNPACK down


@dataclass(frozen=True)
class Settings:
    """`cache_dir` None: weights are packed into memory. `max_num_tokens` None: the bundle's own context.

    spare_bytes: what the profile's budget leaves beside the plan; None without a profile.
    """

    threads: int
    cache_dir: Path | None
    max_num_tokens: int | None
    profile: DeviceProfile | None
    slots: int
    spare_bytes: int | None = None


def choose_settings(
    bundle: Model,
    backend: CPU,
    max_num_tokens: int | None,
    cache_dir: str | None,
    profile: str | os.PathLike[str] | DeviceProfile | None,
    over_budget: OverBudgetAction,
    slots: int | None = None,
    draft_slots: int = 0,
) -> Settings:
    """Decide everything. With a profile and no max_num_tokens, the context is the longest that fits.

    With a profile and no number of slots, there are as many as fit beside one another, up to 4. draft_slots: what is
    beside them for a model that guesses.

    Raises:
        OverBudget: the bundle does not fit the profile; a warning where `over_budget` is "warn".
        ProfileError: no such profile, or it is not valid.
        ConfigError: another `over_budget`, or no slot.
        BundleMismatchError: with a profile, a decoder whose memory cannot be computed.
    """
    if over_budget not in ("raise", "warn", "switch"):
        raise ConfigError(f'over_budget is "{over_budget}", expected "raise", "warn" or "switch"; leave it out')
    if slots is not None and slots < 1:
        raise ConfigError(f"slots is {slots}, expected at least 1; leave it out for the default")
    device = load_profile(os.fspath(profile)) if isinstance(profile, str | os.PathLike) else profile
    folder = cache_folder(cache_dir, bundle.path, prefer_disk=device is not None)
    threads = backend.thread_count or default_threads(device)
    spare_bytes = None
    if device is not None:
        anonymous_weights = folder is None or is_memory(folder)
        fit = _Fit(plan_of(bundle), device, anonymous_weights, slots, draft_slots)
        max_num_tokens = fit.context(bundle.path.name, max_num_tokens, over_budget)
        slots = slots or fit.slots(max_num_tokens)
        spare_bytes = max(0, device.budget_bytes - fit.footprint(max_num_tokens, slots).total_bytes)
    return Settings(threads, folder, max_num_tokens, device, slots or DEFAULT_SLOTS, spare_bytes)


@dataclass(frozen=True)
class _Fit:
    """What of a plan fits a device. asked_slots: None for as many as fit."""

    plan: RunPlan
    device: DeviceProfile
    anonymous_weights: bool
    asked_slots: int | None
    draft_slots: int

    def footprint(self, context_tokens: int | None, slots: int, *, anonymous_weights: bool | None = None) -> Footprint:
        """Of a run with these, and what guesses."""
        in_memory = self.anonymous_weights if anonymous_weights is None else anonymous_weights
        return self.plan.footprint(context_tokens, anonymous_weights=in_memory, slots=slots + self.draft_slots)

    def slots(self, context_tokens: int | None) -> int:
        """As many as fit, at least one and no more than the default."""
        counts = range(DEFAULT_SLOTS, 1, -1)
        return next((n for n in counts if self.device.budget.fits(self.footprint(context_tokens, n))), 1)

    def context(self, name: str, asked_tokens: int | None, action: OverBudgetAction) -> int | None:
        """The context to run with. Raises OverBudget, with what would fit as suggestions."""
        budget, slots = self.device.budget, self.asked_slots or 1
        footprint = self.footprint(asked_tokens, slots)
        if budget.fits(footprint):
            return asked_tokens
        longest = self.plan.longest_context(
            budget, anonymous_weights=self.anonymous_weights, slots=slots + self.draft_slots
        )
        if asked_tokens is None and longest is not None:
            warnings.warn(
                f"{name}: its context of {self.plan.context_tokens} tokens does not fit {self.device.name}; "
                f"runs with {longest}, or convert for this profile",
                BudgetWarning,
                stacklevel=4,
            )
            return longest
        suggestions = []
        if longest is not None:
            suggestions.append((f"max_num_tokens={longest}", self.footprint(longest, slots)))
        if slots > 1:
            suggestions.append(("slots=1", self.footprint(asked_tokens, 1)))
        if self.anonymous_weights:
            suggestions.append(("a cache_dir on a disk", self.footprint(asked_tokens, slots, anonymous_weights=False)))
        context = asked_tokens or self.plan.context_tokens
        try:
            budget.check(footprint, f"{name} at {context} tokens on {self.device.name}", suggestions)
        except OverBudget as error:
            if action != "warn":
                raise
            warnings.warn(str(error), BudgetWarning, stacklevel=4)
        return asked_tokens


def default_threads(device: DeviceProfile | None) -> int:
    """The cores this process may use and the device has, at most 4."""
    return min(_DEFAULT_THREADS, usable_cores(), *([device.cores] if device else []))


def usable_cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_model(name: str, models: Sequence[str], model: str | None, over_budget: OverBudgetAction = "raise") -> None:
    """Whether a bundle of these models, the large one first, or of a single one, can run what is asked for.

    Raises ConfigError.
    """
    if model is not None and model not in models:
        held = f"holds {' and '.join(models)}" if models else "holds one model"
        raise ConfigError(f"model is {model!r}, {name} {held}; leave it out, or convert with --with-slice")
    if over_budget == "switch" and not models:
        raise ConfigError(
            f'over_budget is "switch", {name} holds one model; leave it out, or convert with --with-slice'
        )


def check_draft_model(name: str, models: Sequence[str], model: str | None, is_speculating: bool | None) -> None:
    """As `check_model`. is_speculating: what is asked for. Raises ConfigError."""
    if model is None:
        return
    if model not in models[1:]:
        found = f"drafts with {models[1]}" if models else "holds one model"
        raise ConfigError(f"draft_model is {model!r}, {name} {found}; leave it out, or convert with --with-slice")
    if is_speculating is False:
        raise ConfigError(f"draft_model is {model!r}, enable_speculative_decoding False; leave one of them out")
