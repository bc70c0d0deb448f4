"""What the plugin's marker and fixture share: profile, method and baseline of a run, and the fixture's checks."""

from pathlib import Path

import pytest

from gemma_edge.profiles.device import DeviceProfile, load_profile
from gemma_edge.runtime.config import CPU
from gemma_edge.runtime.measure.bench import Benchmark
from gemma_edge.runtime.measure.budget_baseline import Baseline, BaselineError
from gemma_edge.runtime.measure.budget_report import LEAST_SPEED, BudgetReport
from gemma_edge.runtime.measure.budget_run import Method, measure_budget

_USAGE = 'the marker takes a profile: @pytest.mark.memory_budget("phone-2gb")'


def marked_profile(config: pytest.Config, marker: pytest.Mark | None) -> DeviceProfile | None:
    """The profile a marker names; None without a marker. Fails the test where the marker is misused."""
    if marker is None:
        return None
    if len(marker.args) != 1 or marker.kwargs:
        pytest.fail(_USAGE, pytrace=False)
    return find_profile(config, marker.args[0])


def find_profile(config: pytest.Config, name: str | Path) -> DeviceProfile:
    """By name, or by file relative to pytest's root directory."""
    return load_profile(config.rootpath / name if str(name).endswith(".toml") else name)


def method_of(config: pytest.Config) -> Method:
    return Method(config.getoption("memory_budget_method"))


def baseline_of(config: pytest.Config) -> Baseline | None:
    """None where no file is named: then only the budget counts."""
    named = config.getoption("memory_budget_baseline")
    path = config.invocation_params.dir / named if named else config.rootpath / config.getini("memory_budget_baseline")
    if path == config.rootpath:
        return None
    growth, setting = config.getoption("memory_budget_growth"), config.getini("memory_budget_growth")
    try:
        percent = float(setting) if growth is None else growth
    except ValueError as error:
        raise BaselineError(f"memory_budget_growth: found {setting!r}, expected a percentage such as 10") from error
    return Baseline(path, percent, config.getoption("memory_budget_update"))


def properties(profile: DeviceProfile, method: str, peak_bytes: int) -> list[tuple[str, object]]:
    """For JUnit's XML and other reports."""
    return [
        ("memory_budget.profile", profile.name),
        ("memory_budget.budget_bytes", profile.budget_bytes),
        ("memory_budget.method", method),
        ("memory_budget.peak_bytes", peak_bytes),
    ]


class BudgetChecker:
    """The fixture's value."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._marked = marked_profile(item.config, item.get_closest_marker("memory_budget"))

    def check(
        self,
        bundle: str | Path,
        profile: str | Path | None = None,
        *,
        prefill_tokens: int = 128,
        decode_tokens: int = 32,
        max_num_tokens: int | None = None,
        cache_dir: str | Path | None = None,
        speed: bool = False,
    ) -> BudgetReport:
        """Load, prefill and decode in a process of its own; fail the test where the budget or the baseline is exceeded.

        profile: the marker's if left out. speed: also run without a limit, and require the definition's 80 % of that
        speed; needs a quiet machine.
        """
        config = self._item.config
        device = self._marked if profile is None else find_profile(config, profile)
        if device is None:
            pytest.fail(f"memory_budget.check has no profile: pass one, or {_USAGE}", pytrace=False)
        benchmark = Benchmark(
            str(bundle),
            CPU(),
            prefill_tokens,
            decode_tokens,
            max_num_tokens=max_num_tokens,
            cache_dir=str(cache_dir) if cache_dir else None,
        )
        least_speed = LEAST_SPEED if speed else 0.0
        report = measure_budget(benchmark, device, method_of(config), least_speed=least_speed)
        method = "sampling" if report.limited is None else "cgroup"
        self._item.user_properties += properties(device, method, report.peak_bytes)
        if report.speed is not None:
            self._item.user_properties.append(("memory_budget.speed", round(report.speed, 3)))
        self._item.add_report_section("call", "memory budget", report.text())
        baseline = baseline_of(config)
        grown = baseline and report.passed and baseline.judge(f"{report.bundle} on {device.name}", report.peak_bytes)
        if failures := [*report.failures, *([grown] if grown else [])]:
            pytest.fail("\n".join(failures), pytrace=False)
        return report
