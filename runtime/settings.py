"""What an engine runs with: asked for, or what the device's profile says. Refuses what does not fit before loading."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from gemma_edge.profiles.budget import OverBudget
from gemma_edge.profiles.device import DeviceProfile, load_profile
from gemma_edge.runtime.config import CPU, ConfigError
from gemma_edge.runtime.executors.litert.footprint import plan_of
from gemma_edge.runtime.executors.placement import cache_folder, is_memory
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from gemma_edge.runtime.memory.watch import BudgetWarning, OverBudgetAction

_DEFAULT_THREADS = 4  # litert_lm's; more than the big cores of an edge device slow XNNPACK down


@dataclass(frozen=True)
class Settings:
    """`cache_dir` None: weights are packed into memory. `max_num_tokens` None: the bundle's own context."""

    threads: int
    cache_dir: Path | None
    max_num_tokens: int | None
    profile: DeviceProfile | None


def settle(
    bundle: Bundle | OnnxDirectory,
    backend: CPU,
    max_num_tokens: int | None,
    cache_dir: str | None,
    profile: str | os.PathLike[str] | DeviceProfile | None,
    over_budget: OverBudgetAction,
) -> Settings:
    """Decide everything. With a profile and no max_num_tokens, the context is the longest that fits.

    Raises:
        OverBudget: the bundle does not fit the profile; a warning where `over_budget` is "warn".
        ProfileError: no such profile, or it is not valid.
        ConfigError: another `over_budget`.
        BundleMismatchError: with a profile, a decoder whose memory cannot be computed.
    """
    if over_budget not in ("raise", "warn"):
        raise ConfigError(f'over_budget is "{over_budget}", expected "raise" or "warn"; leave it out to raise')
    device = load_profile(os.fspath(profile)) if isinstance(profile, str | os.PathLike) else profile
    folder = cache_folder(cache_dir, bundle.path, prefer_disk=device is not None)
    threads = backend.thread_count or default_threads(device)
    if device is not None:
        anonymous_weights = folder is None or is_memory(folder)
        max_num_tokens = _fit(bundle, device, max_num_tokens, anonymous_weights, over_budget)
    return Settings(threads, folder, max_num_tokens, device)


def _fit(
    bundle: Bundle | OnnxDirectory,
    device: DeviceProfile,
    max_num_tokens: int | None,
    anonymous_weights: bool,
    action: OverBudgetAction,
) -> int | None:
    """The context to run with. Raises OverBudget, with a weight cache and a shorter context as suggestions."""
    plan = plan_of(bundle)
    footprint = plan.footprint(max_num_tokens, anonymous_weights=anonymous_weights)
    if device.budget.fits(footprint):
        return max_num_tokens
    longest = plan.longest_context(device.budget, anonymous_weights=anonymous_weights)
    if max_num_tokens is None and longest is not None:
        warnings.warn(
            f"{bundle.path.name}: its context of {plan.context_tokens} tokens does not fit {device.name}; "
            f"runs with {longest}, or convert for this profile",
            BudgetWarning,
            stacklevel=4,
        )
        return longest
    suggestions = []
    if longest is not None:
        shorter = plan.footprint(longest, anonymous_weights=anonymous_weights)
        suggestions.append((f"max_num_tokens={longest}", shorter))
    if anonymous_weights:
        suggestions.append(("a cache_dir on a disk", plan.footprint(max_num_tokens)))
    context = max_num_tokens or plan.context_tokens
    try:
        device.budget.check(footprint, f"{bundle.path.name} at {context} tokens on {device.name}", suggestions)
    except OverBudget as error:
        if action == "raise":
            raise
        warnings.warn(str(error), BudgetWarning, stacklevel=4)
    return max_num_tokens


def default_threads(device: DeviceProfile | None) -> int:
    """The cores this process may use and the device has, at most 4."""
    return min(_DEFAULT_THREADS, usable_cores(), *([device.cores] if device else []))


def usable_cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
