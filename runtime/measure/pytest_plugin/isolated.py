"""A marked test in a process of its own: a fresh pytest that runs this one test, in a cgroup where permitted."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest

from gemma_edge.profiles.device import DeviceProfile
from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.measure.budget_run import Method, permitted
from gemma_edge.runtime.measure.pytest_plugin.budget import baseline_of, marked_profile, method_of, properties
from gemma_edge.runtime.memory.cgroup import MemoryCgroup
from gemma_edge.runtime.memory.reading import PeakSampler, process_tree

_SHOWN_LINES = 30


def run_isolated(item: pytest.Item, marker: pytest.Mark, reports: str) -> list[pytest.TestReport]:
    """The reports of the test's set-up, call and tear-down, the call's failed where the budget is crossed.

    reports: the environment variable by which the process knows where its reports go.
    """
    try:
        profile = marked_profile(item.config, marker)
        assert profile is not None
        return _judged(item, profile, reports)
    except Exception as error:  # a plugin that raises here would end the whole session
        return _closed(item, [_failed(item, str(error))])
    except pytest.fail.Exception as failure:
        return _closed(item, [_failed(item, str(failure))])


def _judged(item: pytest.Item, profile: DeviceProfile, variable: str) -> list[pytest.TestReport]:
    method, _ = permitted(method_of(item.config))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cgroup = stack.enter_context(MemoryCgroup(profile.budget_bytes)) if method is Method.CGROUP else None
        command = _command(item)
        child = subprocess.Popen(
            cgroup.command(command) if cgroup else command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=item.config.invocation_params.dir,
            env=_environment(variable, folder / "reports"),
        )
        with PeakSampler(cgroup.pids if cgroup else lambda: process_tree(child.pid)) as sampler:
            output, _ = child.communicate()
        killed = cgroup is not None and cgroup.oom_kills() > 0
        reports = _read(item.config, folder / "reports")
    peak_bytes = sampler.peak.hard_bytes
    limit = format_bytes(profile.budget_bytes)
    problems = []
    if killed:
        problems.append(f"the kernel killed a process of this test at the limit of {profile.name}, {limit}")
    elif peak_bytes > profile.budget_bytes:
        problems.append(f"peak anonymous memory {format_bytes(peak_bytes)}, the budget of {profile.name} is {limit}")
    elif not any(report.when == "call" or not report.passed for report in reports):
        tail = "\n".join(output.splitlines()[-_SHOWN_LINES:])
        problems.append(f"the process of this test ended with status {child.returncode} and no result\n{tail}")
    elif (baseline := baseline_of(item.config)) and all(report.passed for report in reports):
        problems += filter(None, [baseline.judge(item.nodeid, peak_bytes)])
    if problems:
        reports = _with_failure(item, reports, "\n".join(problems))
    for report in reports:
        report.user_properties += properties(profile, method.value, peak_bytes)
    return _closed(item, reports)


def _command(item: pytest.Item) -> list[str]:
    """Only what decides how the test is found is passed on: addopts may write reports, or start more processes."""
    config = item.config
    test = f"{item.path}::{item.nodeid.partition('::')[2]}"
    plugins = [word for name in config.getoption("plugins") or () for word in ("-p", name)]
    overrides = [word for name in config.getoption("override_ini") or () for word in ("-o", name)]
    file = ["-c", str(config.inipath)] if config.inipath else []
    # As this process found its tests: with `python -m pytest` in the folder where one stands, too.
    is_here = any(Path(entry).resolve() == config.invocation_params.dir for entry in sys.path if Path(entry).is_dir())
    python = [sys.executable] if is_here else [sys.executable, "-P"]
    return [
        *python, "-m", "pytest", *file, f"--rootdir={config.rootpath}", *plugins, *overrides, "-o", "addopts=",
        f"--import-mode={config.getoption('importmode')}", "-p", "no:cacheprovider", "-q", test,
    ]  # fmt: skip


def _environment(variable: str, reports: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_XDIST", "PYTEST_ADD"))}
    return kept | {variable: str(reports)}


def _read(config: pytest.Config, path: Path) -> list[pytest.TestReport]:
    reports = []
    for line in path.read_text().splitlines() if path.exists() else ():
        report = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
        if report.skipped and isinstance(report.longrepr, list):
            report.longrepr = tuple(report.longrepr)  # (path, line, reason), which JSON makes a list
        reports.append(report)
    return reports


def _failed(item: pytest.Item, text: str) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, _keywords(item), "failed", text, "call")


def _keywords(item: pytest.Item) -> dict[str, Literal[1]]:
    return dict.fromkeys(item.keywords, 1)  # as pytest makes them: without values, which may not be portable


def _with_failure(item: pytest.Item, reports: Sequence[pytest.TestReport], text: str) -> list[pytest.TestReport]:
    """The call's report failed by `text`, in front of what failed by itself; one of our own where it never came."""
    kept = list(reports)
    for i, report in enumerate(kept):
        if report.when == "call":
            own = "" if report.longrepr is None else f"\n\n{report.longrepr}"
            kept[i] = _failed(item, text + own)
            kept[i].sections = list(report.sections)
            kept[i].duration = report.duration
            return kept
    return [*kept, _failed(item, text)]


def _closed(item: pytest.Item, reports: list[pytest.TestReport]) -> list[pytest.TestReport]:
    """Report writers finish a test with its tear-down, which a killed process did not reach."""
    if any(report.when == "teardown" for report in reports):
        return reports
    end = pytest.TestReport(item.nodeid, item.location, _keywords(item), "passed", None, "teardown")
    end.user_properties += reports[-1].user_properties
    return [*reports, end]
