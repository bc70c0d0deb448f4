"""The pytest plugin: memory budgets as tests. runtime/BUDGETS.md shows how to use it.

It is loaded into every pytest run of an environment that has gemma-edge, so it imports nothing until a test asks.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gemma_edge.runtime.measure.pytest_plugin.budget import BudgetChecker

MARKER = "memory_budget"
REPORTS = "GEMMA_EDGE_MEMORY_BUDGET_REPORTS"  # set in the process of an isolated test: where its reports go


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gemma_edge", "memory budgets (gemma-edge)")
    group.addoption(
        "--memory-budget-method",
        choices=("auto", "cgroup", "sampling"),
        default="auto",
        help="how a budget is tested: in a cgroup where that is permitted (auto), or one of the two",
    )
    group.addoption("--memory-budget-baseline", metavar="FILE", help="JSON file of accepted peaks")
    group.addoption(
        "--memory-budget-growth", type=float, metavar="PERCENT", help="what a peak may grow above its baseline"
    )
    group.addoption("--memory-budget-update", action="store_true", help="accept the peaks of this run as baseline")
    parser.addini("memory_budget_baseline", "JSON file of accepted peaks, relative to the root directory")
    parser.addini("memory_budget_growth", "what a peak may grow above its baseline, in percent", default="10")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "memory_budget(profile): run the test in a process of its own that may use no more memory than the profile's "
        "budget; with the fixture memory_budget, the profile of its checks",
    )
    for option in ("update", "growth"):
        is_given = config.getoption(f"memory_budget_{option}") not in (None, False)
        if is_given and not (config.getoption("memory_budget_baseline") or config.getini("memory_budget_baseline")):
            raise pytest.UsageError(
                f"--memory-budget-{option}: found no baseline file; name one with --memory-budget-baseline, or in the "
                "setting memory_budget_baseline"
            )
    if path := os.environ.get(REPORTS):
        config.pluginmanager.register(_ReportWriter(config, Path(path)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """A marked test runs elsewhere, unless this is elsewhere, or the test measures with the fixture."""
    marker = item.get_closest_marker(MARKER)
    if marker is None or REPORTS in os.environ or MARKER in getattr(item, "fixturenames", ()):
        return None
    from gemma_edge.runtime.measure.pytest_plugin.isolated import run_isolated

    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in run_isolated(item, marker, REPORTS):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # The test before this one left set up what they have in common; what the next one does not share ends here.
    item.session._setupstate.teardown_exact(nextitem)
    return True


@pytest.fixture
def memory_budget(request: pytest.FixtureRequest) -> "BudgetChecker":
    """`memory_budget.check("model.litertlm")` runs a bundle in processes of its own and fails over budget."""
    from gemma_edge.runtime.measure.pytest_plugin.budget import BudgetChecker

    return BudgetChecker(request.node)


class _ReportWriter:
    """In the process of an isolated test: hands its reports to the process that started it."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with self._path.open("a") as file:
            file.write(json.dumps(data) + "\n")
