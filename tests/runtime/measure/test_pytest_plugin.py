"""The pytest plugin as users meet it: honest, leaking and careless engines, in a cgroup and by sampling.

Each test runs pytest in a process of its own, on a folder with one test module.
"""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma_edge.converter.convert import convert
from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.memory.cgroup import CgroupUnavailable, MemoryCgroup
from tests.runtime.budget_files import write_profile

pytest_plugins = ["pytester"]

BUDGET_BYTES = 160 * MIB  # pytest with an engine of the tiny bundle takes about half of it
PLE_ROWS = 131_072  # times 256 values: 32 MiB as int8, 128 MiB as float32

ENGINE_TEST = """
import numpy as np
import pytest
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.litert import decoder as litert
from gemma_edge.runtime.executors.litert.tables import EmbeddingTable

def decode(engine, tokens, after_token=lambda: None):
    sequence = engine.new_sequence()
    for token_id in range(2, 2 + tokens):
        sequence.append([token_id])
        sequence.logits()
        after_token()

@pytest.mark.memory_budget("small.toml")
def test_honest():
    with Engine({bundle!r}, cache_dir={cache!r}) as engine:
        decode(engine, 40)

@pytest.mark.memory_budget("small.toml")
def test_leaking():
    leak = []
    with Engine({bundle!r}, cache_dir={cache!r}) as engine:
        decode(engine, 40, lambda: leak.append(np.ones(1 << 19)))

class ResidentTable(EmbeddingTable):
    def __init__(self, section):
        super().__init__(section)
        values = np.empty((self.rows, self.width), np.float32)
        for row in range(0, self.rows, 1024):
            self.lookup(range(row, row + 1024), values[row : row + 1024])
        self._table, self._scales, self._is_int4 = values, None, False

@pytest.mark.memory_budget("small.toml")
def test_resident_ple(monkeypatch):
    monkeypatch.setattr(litert, "EmbeddingTable", ResidentTable)
    with Engine({bundle!r}, cache_dir={cache!r}) as engine:
        decode(engine, 40)
"""


@pytest.fixture(params=["cgroup", "sampling"])
def method(request: pytest.FixtureRequest) -> str:
    if request.param == "cgroup":
        try:
            with MemoryCgroup(64 * MIB):
                pass
        except CgroupUnavailable as error:
            pytest.skip(str(error))
    return str(request.param)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def ple_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_gemma3n: Path) -> Path:
    """The trained Gemma 3n, its per-layer embeddings lengthened to Gemma's proportions."""
    folder = tmp_path_factory.mktemp("ple")
    for file in tiny_gemma3n.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = config["vocab_size_per_layer_input"] = PLE_ROWS
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "embed_tokens" in name]:
        tensors[name] = torch.ones(PLE_ROWS, tensors[name].shape[1], dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    bundle = folder / "ple.litertlm"
    convert("custom-int8", folder, bundle, context=512, prefill=(8, 32))
    return bundle


@pytest.fixture(autouse=True)
def _only_this_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the packages that the suite needs: each start of pytest with them takes seconds."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin,gemma_edge.runtime.measure.pytest_plugin.plugin")


Run = Callable[..., pytest.RunResult]


@pytest.fixture
def sampled(pytester: pytest.Pytester) -> Run:
    """Runs pytest in the test's folder, budgets tested by sampling."""
    write_profile(pytester.path, BUDGET_BYTES)
    return lambda *arguments: pytester.runpytest_subprocess("--memory-budget-method=sampling", *map(str, arguments))


@pytest.fixture
def run(sampled: Run, method: str) -> Run:
    """The same by each method."""
    return lambda *arguments: sampled(f"--memory-budget-method={method}", *arguments)


def test_the_honest_engine_passes_and_the_others_fail(
    pytester: pytest.Pytester, run: Run, method: str, ple_bundle: Path, cache: Path
) -> None:
    pytester.makepyfile(ENGINE_TEST.format(bundle=str(ple_bundle), cache=str(cache)))
    result = run("-v")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*::test_honest PASSED*", "*::test_leaking FAILED*", "*::test_resident_ple FAILED*"])
    crossed = (
        "the kernel killed a process of this test at the limit of small, 160 MiB"
        if method == "cgroup"
        else "peak anonymous memory * MiB, the budget of small is 160 MiB"
    )
    result.stdout.fnmatch_lines(["*_ test_leaking _*", crossed, "*_ test_resident_ple _*", crossed])


def test_the_fixture_measures_a_bundle(
    pytester: pytest.Pytester, run: Run, method: str, ple_bundle: Path, cache: Path
) -> None:
    """The same bundle with a long prefill needs more; the fixture's profile is the marker's or its own."""
    pytester.makepyfile(f"""
        import pytest
        from gemma_edge.runtime.executors.base import ContextOverflowError
        OPTIONS = dict(decode_tokens=4, cache_dir={str(cache)!r})

        @pytest.mark.memory_budget("small.toml")
        def test_marked(memory_budget):
            report = memory_budget.check({str(ple_bundle)!r}, prefill_tokens=40, **OPTIONS)
            assert report.passed
            assert (report.limited is not None) == ({method!r} == "cgroup")

        def test_named(memory_budget):
            memory_budget.check({str(ple_bundle)!r}, "small.toml", prefill_tokens=40, **OPTIONS)

        def test_nothing_named(memory_budget):
            memory_budget.check({str(ple_bundle)!r})
    """)
    junit = pytester.path / "junit.xml"
    result = run(f"--junitxml={junit}")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["memory_budget.check has no profile: pass one, or the marker takes a profile: @pytest.mark.memory_budget*"]
    )
    cases = {case.get("name"): case for case in ElementTree.parse(junit).iter("testcase")}
    found = {entry.get("name"): entry.get("value") for entry in cases["test_marked"].iter("property")}
    assert found["memory_budget.profile"] == "small"
    assert found["memory_budget.budget_bytes"] == str(BUDGET_BYTES)
    assert found["memory_budget.method"] == method
    assert 10 * MIB < int(str(found["memory_budget.peak_bytes"])) < BUDGET_BYTES


def test_speed_inside_the_limit_can_be_asked_for(
    pytester: pytest.Pytester, run: Run, method: str, ple_bundle: Path, cache: Path
) -> None:
    pytester.makepyfile(f"""
        def test_speed(memory_budget, monkeypatch):
            # no timing in a test
            monkeypatch.setattr("gemma_edge.runtime.measure.pytest_plugin.budget.LEAST_SPEED", 0.01)
            report = memory_budget.check({str(ple_bundle)!r}, "small.toml", cache_dir={str(cache)!r}, speed=True)
            assert (report.speed is not None) == ({method!r} == "cgroup")
    """)
    run().assert_outcomes(passed=1)


BIG = """
import pytest
SIZE = {size}

@pytest.mark.memory_budget("small.toml")
def test_block():
    block = bytearray(b"x") * SIZE
"""


def test_growth_over_the_baseline_fails(pytester: pytest.Pytester, sampled: Run) -> None:
    pytester.makeini("[pytest]\nmemory_budget_baseline = peaks.json\nmemory_budget_growth = 20\n")
    test = pytester.makepyfile(BIG.format(size=32 * MIB))
    result = sampled("--memory-budget-baseline=none.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*none.json has no baseline of *::test_block; run once with --memory-budget-update and commit the file"]
    )
    sampled("--memory-budget-update").assert_outcomes(passed=1)
    test.write_text(BIG.format(size=72 * MIB))
    result = sampled()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["peak anonymous memory of *::test_block grew by *%, from * MiB to * MiB; 20 % are allowed, *"]
    )
    sampled("--memory-budget-growth=500").assert_outcomes(passed=1)


def test_options_of_a_baseline_without_one_are_refused(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): ...")
    for option in ("--memory-budget-update", "--memory-budget-growth=5"):
        result = pytester.runpytest_subprocess(option)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(
            [f"ERROR: {option.partition('=')[0]}: found no baseline file; name one with --memory-budget-baseline, or *"]
        )


def test_a_growth_that_is_no_number(pytester: pytest.Pytester, sampled: Run) -> None:
    pytester.makeini("[pytest]\nmemory_budget_baseline = peaks.json\nmemory_budget_growth = ten\n")
    pytester.makepyfile(BIG.format(size=MIB))
    result = sampled()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["memory_budget_growth: found 'ten', expected a percentage such as 10"])


def test_every_property_reaches_junit_even_from_a_killed_test(pytester: pytest.Pytester, run: Run, method: str) -> None:
    pytester.makepyfile(BIG.format(size=2 * BUDGET_BYTES))
    junit = pytester.path / "junit.xml"
    run(f"--junitxml={junit}").assert_outcomes(failed=1)
    (case,) = ElementTree.parse(junit).iter("testcase")
    found = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
    assert found["memory_budget.method"] == method
    assert len(list(case.iter("failure"))) == 1


def test_an_isolated_test_keeps_its_outcome(pytester: pytest.Pytester, sampled: Run) -> None:
    """Its skip, failure, set-up error, parameters and output, beside other tests that share fixtures with it."""
    pytester.makeini("[pytest]\naddopts = --strict-markers -n2 --junitxml=all.xml\n")
    for name in ("test_a", "test_b"):
        pytester.makepyfile(
            **{
                name: """
            import os
            import pytest

            @pytest.fixture(scope="module")
            def shared():
                yield os.getpid()

            def test_before(shared): ...

            @pytest.mark.memory_budget("small.toml")
            class TestIsolated:
                @pytest.mark.parametrize("number", [1, 2])
                def test_number(self, shared, number):
                    print("seen", number)
                    assert number == 1, "not one"

                def test_skipped(self):
                    pytest.skip("no reason")

                def test_broken(self, missing): ...

                def test_crash(self):
                    os._exit(7)

            def test_after(shared): ...
        """
            }
        )
    result = sampled()
    result.assert_outcomes(passed=6, failed=4, skipped=2, errors=2)
    result.stdout.fnmatch_lines_random(
        [
            "*AssertionError: not one",
            "*seen 2",
            "*fixture 'missing' not found",
            "the process of this test ended with status 7 and no result",
        ]
    )
    assert len(list(ElementTree.parse(pytester.path / "all.xml").iter("testcase"))) == 14


def test_misuse_is_said(pytester: pytest.Pytester, sampled: Run) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.memory_budget
        def test_no_profile(): ...

        @pytest.mark.memory_budget("phone-2g")
        def test_unknown(): ...

        @pytest.mark.memory_budget("none.toml")
        def test_no_file(): ...
    """)
    result = sampled()
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            'the marker takes a profile: @pytest.mark.memory_budget("phone-2gb")',
            'profile: found "phone-2g"; expected *; did you mean phone-2gb?*',
            "*none.toml profile: found No such file or directory; expected a readable TOML file",
        ]
    )


def test_a_run_that_does_not_use_the_plugin_loads_nothing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As installed: pytest finds it by its entry point."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    monkeypatch.delenv("PYTEST_PLUGINS")
    pytester.makepyfile("""
        import sys

        def test_modules():
            assert "gemma_edge.runtime.measure.pytest_plugin.plugin" in sys.modules
            loaded = [name for name in sys.modules if name.startswith("gemma_edge.")]
            packages = ["gemma_edge.runtime", "gemma_edge.runtime.measure", "gemma_edge.runtime.measure.pytest_plugin"]
            assert loaded == [*packages, "gemma_edge.runtime.measure.pytest_plugin.plugin"], loaded
            assert "numpy" not in sys.modules
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_every_documented_option_exists(pytester: pytest.Pytester, repository: Path) -> None:
    text = (repository / "runtime" / "BUDGETS.md").read_text()
    options = set(re.findall(r"--memory-budget-\w+", text))
    settings = set(re.findall(r"`(memory_budget_\w+)`", text))
    helped = pytester.runpytest_subprocess("--help").stdout.str()
    assert (len(options), len(settings)) == (4, 2)
    assert all(option in helped for option in options | settings)
