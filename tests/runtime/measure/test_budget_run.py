"""Measuring tiny bundles against small budgets, in a cgroup and by sampling. What a report says is tested beside it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.profiles.device import DeviceProfile, load_profile
from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.executors.litert.footprint import BundlePlan
from gemma_edge.runtime.executors.onnx.footprint import OnnxPlan
from gemma_edge.runtime.executors.placement import NO_CACHE
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from gemma_edge.runtime.measure.bench import Benchmark, BenchmarkError
from gemma_edge.runtime.measure.budget_run import Method, measure_budget
from gemma_edge.runtime.memory.cgroup import CgroupUnavailable, MemoryCgroup, evict_from_page_cache
from tests.runtime.budget_files import write_profile

NO_SPEED = 1e-9  # judges that there is one; a tiny model's means nothing


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Callable[[str, str], Path]) -> Path:
    return tiny_bundle("gemma3n", "int4")


@pytest.fixture(scope="module")
def greedy_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_gemma3n: Path) -> Path:
    """A prefill of 1024 rows, whose activations alone are over 64 MiB."""
    path = tmp_path_factory.mktemp("greedy") / "greedy.litertlm"
    convert("custom-int4", tiny_gemma3n, path, context=2048, prefill=(1024,))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def profile(tmp_path: Path) -> DeviceProfile:
    return load_profile(write_profile(tmp_path, 64 * MIB))


def benchmark(bundle: Path, cache: str, prefill_tokens: int = 40) -> Benchmark:
    return Benchmark(str(bundle), Backend.CPU(thread_count=1), prefill_tokens, 4, cache_dir=cache)


@pytest.fixture
def _cgroup_rights() -> None:
    try:
        with MemoryCgroup(64 * MIB):
            pass
    except CgroupUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("_cgroup_rights")
def test_in_a_cgroup(bundle: Path, cache: str, profile: DeviceProfile) -> None:
    report = measure_budget(benchmark(bundle, cache), profile, Method.CGROUP, runs=2, least_speed=NO_SPEED)
    assert report.passed, report.text()
    assert report.limited is not None
    assert report.speed is not None
    assert report.no_cgroup == ""
    assert 10 * MIB < report.peak_bytes < 64 * MIB
    assert report.limited.charge_bytes is None or report.limited.charge_bytes <= 64 * MIB
    assert report.limited.parts["weight_cache"] > 0
    assert report.limited.parts["tf_lite_embedder"] == 0  # rows are read, not mapped
    assert list(report.limited.phase_s) == ["load", "prefill", "decode"]
    assert sorted(report.limited.phase_s.values()) == list(report.limited.phase_s.values())
    assert report.limited.samples[-1].at_s > report.limited.phase_s["load"]


READING = """
import sys
for _ in range(2):
    with open(sys.argv[1], "rb") as file:
        while file.read(1 << 20):
            pass
"""


@pytest.mark.usefixtures("_cgroup_rights")
@pytest.mark.parametrize(("limit_bytes", "twice"), [(64 * MIB, True), (512 * MIB, False)])
def test_pages_dropped_and_read_again_are_counted(limit_bytes: int, twice: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # on a disk; /tmp may be memory
        path = Path(folder, "weights.bin")
        path.write_bytes(bytes(128 * MIB))
        evict_from_page_cache(path)
        with MemoryCgroup(limit_bytes) as cgroup:
            subprocess.run(cgroup.command([sys.executable, "-c", READING, str(path)]), check=True)
            reread_bytes = cgroup.reread_bytes()
    if reread_bytes is None:
        pytest.skip("this kernel does not count them")
    assert (reread_bytes > 32 * MIB) is twice


@pytest.mark.usefixtures("_cgroup_rights")
def test_over_the_budget_in_a_cgroup(greedy_bundle: Path, cache: str, profile: DeviceProfile) -> None:
    report = measure_budget(benchmark(greedy_bundle, cache, 512), profile, Method.AUTO, least_speed=0)
    assert report.failures == ("did not complete in a cgroup of 64 MiB: the kernel killed it for memory",)
    assert report.free is None


def test_by_sampling(bundle: Path, greedy_bundle: Path, cache: str, profile: DeviceProfile) -> None:
    report = measure_budget(benchmark(bundle, cache), profile, Method.SAMPLING)
    assert report.passed, report.text()
    assert (report.limited, report.no_cgroup) == (None, "asked for")
    report = measure_budget(benchmark(greedy_bundle, cache, 512), profile, Method.SAMPLING)
    (failure,) = report.failures
    assert failure.startswith("peak anonymous memory ")


def test_without_a_weight_cache_the_plan_is_that_of_anonymous_weights(bundle: Path, profile: DeviceProfile) -> None:
    report = measure_budget(benchmark(bundle, NO_CACHE), profile, Method.SAMPLING)
    assert report.plan == BundlePlan.of(Bundle.open(bundle)).footprint(anonymous_weights=True)
    rows = {row.name: row for row in report.rows()}
    assert "decoder weights" not in rows  # what is mapped; they are among the rest
    assert all(row.planned_bytes >= 0 for row in rows.values())


@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
@pytest.mark.parametrize("method", [Method.CGROUP, Method.SAMPLING])
def test_an_onnx_directory(
    method: Method, family: str, cache: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if method is Method.CGROUP:
        request.getfixturevalue("_cgroup_rights")
    convert("custom-int4", request.getfixturevalue(f"tiny_{family}"), tmp_path / "model", format="onnx")
    profile = load_profile(write_profile(tmp_path, 256 * MIB))
    report = measure_budget(benchmark(tmp_path / "model", cache), profile, method, least_speed=NO_SPEED)
    assert report.passed, report.text()
    assert report.plan == OnnxPlan.of(OnnxDirectory.open(tmp_path / "model")).footprint()
    rows = {row.name: row for row in report.rows()}
    apart = {
        "gemma3": {"decoder weights, embedding rows"},
        "gemma3n": {"decoder weights", "embedding rows", "PLE rows"},
    }
    anonymous = {"tokenizer", "KV cache, activations, runtime"}
    assert rows.keys() == apart[family] | {"libraries and other files"} | anonymous
    # Rows that an embedder would look up are read, not mapped.
    assert [name for name in apart[family] if rows[name].measured_bytes] == [
        name for name in apart[family] if name.startswith("decoder weights")
    ]
    assert sum(row.planned_bytes for row in rows.values()) == report.plan.total_bytes
    small = load_profile(write_profile(tmp_path, 64 * MIB))
    assert not measure_budget(benchmark(tmp_path / "model", cache), small, method, least_speed=0).passed


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop its rights")
def test_without_rights_sampling_is_used_and_said() -> None:
    script = """
import os
from gemma_edge.runtime.measure.budget_run import CgroupUnavailable, Method, permitted
os.setuid(65534)
print(*permitted(Method.AUTO), sep=": ")
try:
    permitted(Method.CGROUP)
except CgroupUnavailable as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    automatic, refused = ran.stdout.splitlines()
    assert automatic.startswith("sampling: memory cgroup: ")
    assert refused.startswith("memory cgroup: ")


def test_what_is_refused(bundle: Path, cache: str, profile: DeviceProfile) -> None:
    with pytest.raises(BenchmarkError) as caught:
        measure_budget(Benchmark(str(bundle), Backend.CPU(), executor="litert-lm"), profile)
    assert str(caught.value) == (
        "a budget is measured with our executor, found litert-lm; leave out --executor, or measure that program with "
        "tools/cgroup_run.py"
    )
    with pytest.raises(BenchmarkError, match="the benchmark's process failed: context overflow: 600 tokens asked, 512"):
        measure_budget(benchmark(bundle, cache, 600), profile, Method.SAMPLING)


def gemma_edge(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = "from gemma_edge.converter.cli import main; main()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_running_within_a_budget(bundle: Path, cache: str, tmp_path: Path) -> None:
    options = ("run", bundle, "--cache-dir", cache, "--prompt", "In the beginning", "--max-output-tokens", 3)
    answered = gemma_edge(*options, "--profile", write_profile(tmp_path, 512 * MIB))
    assert answered.returncode == 0
    assert "BudgetWarning" not in answered.stderr
    refused = gemma_edge(*options, "--profile", write_profile(tmp_path, 64 * MIB))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "error: gemma3n-int4.litertlm at 512 tokens on small: needs " in refused.stderr
    misused = gemma_edge(*options, "--profile", "phone-2gb", "--executor", "litert-lm")
    assert misused.returncode == 2
    assert "--profile is kept by our executor; leave out --executor" in misused.stderr


def test_measuring_on_the_command_line(bundle: Path, greedy_bundle: Path, cache: str, tmp_path: Path) -> None:
    profile = write_profile(tmp_path, 64 * MIB)
    picture = tmp_path / "memory.svg"
    options = ("--cache-dir", cache, "--decode", 4, "--runs", 1, "--profile", profile, "--method", "sampling")
    kept = gemma_edge("bench", bundle, *options, "--prefill", 40, "--plot", picture)
    assert (kept.returncode, kept.stderr) == (0, "")
    assert kept.stdout.endswith("PASSED\n")
    assert picture.read_text().startswith("<?xml")
    crossed = gemma_edge("bench", greedy_bundle, *options, "--prefill", 512, "--json")
    assert crossed.returncode == 1
    assert json.loads(crossed.stdout)["failures"]
    misused = gemma_edge("bench", bundle, "--plot", picture)
    assert misused.returncode == 2
    assert "--plot shows a budget; add --profile" in misused.stderr
    misused = gemma_edge("bench", bundle, "--method", "sampling")
    assert misused.returncode == 2
    assert "--method is how a budget is tested; add --profile" in misused.stderr
