"""Engines with a profile: what is refused, what is set, and what happens when memory grows beyond the budget."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.profiles.budget import OverBudget
from gemma_edge.profiles.device import load_profile
from gemma_edge.profiles.schema import ProfileError
from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime import engine as module
from gemma_edge.runtime.config import Backend, ConfigError
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.litert.footprint import BundlePlan
from gemma_edge.runtime.executors.open import open_decoder
from gemma_edge.runtime.executors.placement import NO_CACHE
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.memory.cgroup import CgroupUnavailable, MemoryCgroup
from gemma_edge.runtime.memory.reading import read_memory
from gemma_edge.runtime.memory.watch import BudgetWarning, BudgetWatch
from tests.runtime.budget_files import leak, write_profile

ROOMY_BYTES = 512 * MIB


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bundle(tiny_bundle: Callable[[str, str], Path]) -> Path:
    return tiny_bundle("gemma3n", "int4")


@pytest.fixture
def plan(bundle: Path) -> BundlePlan:
    return BundlePlan.of(Bundle.open(bundle))


@pytest.fixture
def open_engine(bundle: Path, cache_dir: Path) -> Callable[..., Engine]:
    return lambda **options: Engine(str(bundle), **({"cache_dir": str(cache_dir)} | options))


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments that decoders are opened with."""
    seen: list[tuple[Any, ...]] = []

    def record(*arguments: Any, **options: Any) -> Any:
        seen.append(arguments)
        return open_decoder(*arguments, **options)

    monkeypatch.setattr(module, "open_decoder", record)
    return seen


def test_a_bundle_that_does_not_fit_is_refused_before_it_is_loaded(
    open_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = write_profile(tmp_path, 64 * MIB)
    executors = recorded(monkeypatch)
    with pytest.raises(OverBudget) as caught:
        open_engine(profile=profile)
    message = str(caught.value)
    assert message.startswith("gemma3n-int4.litertlm at 512 tokens on small: needs ")
    assert "the budget is 64 MiB" in message
    assert {"tokenizer", "KV cache"} <= {part.name for part in caught.value.footprint.parts}
    assert not executors


@pytest.mark.filterwarnings("ignore:.*, measured")  # what this process really holds is another test's business
def test_going_on_over_budget_is_loud(open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    profile = write_profile(tmp_path, 64 * MIB)
    with (
        pytest.warns(BudgetWarning, match=r"gemma3n-int4\.litertlm at 512 tokens on small: needs .* too much"),
        open_engine(profile=profile, over_budget="warn") as engine,
    ):
        assert engine.max_num_tokens == 512
    with pytest.raises(ConfigError, match='over_budget is "ignore", expected "raise", "warn" or "switch"'):
        open_engine(profile=profile, over_budget="ignore")


def test_the_context_is_the_longest_that_fits(
    open_engine: Callable[..., Engine], plan: BundlePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BudgetWatch, "check", lambda _: None)  # this process holds the whole test suite
    profile = write_profile(tmp_path, plan.footprint().total_bytes - 1)
    with pytest.warns(BudgetWarning, match="its context of 512 tokens does not fit small; runs with 256, or convert"):
        engine = open_engine(profile=profile)
    with engine:
        assert engine.max_num_tokens == 256
    with pytest.raises(OverBudget) as caught:
        open_engine(profile=profile, max_num_tokens=512)
    assert caught.value.suggestions[0].label == "max_num_tokens=256"
    assert "; max_num_tokens=256 would need" in str(caught.value)


def test_weights_packed_into_memory_count(open_engine: Callable[..., Engine], plan: BundlePlan, tmp_path: Path) -> None:
    profile = write_profile(tmp_path, 64 * MIB)
    with pytest.raises(OverBudget) as caught:
        open_engine(profile=profile, cache_dir=NO_CACHE)
    assert caught.value.footprint == plan.footprint(anonymous_weights=True)


def test_threads_follow_the_device(
    open_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BudgetWatch, "check", lambda _: None)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    executors = recorded(monkeypatch)
    open_engine(profile=write_profile(tmp_path, ROOMY_BYTES, cores=3)).close()
    open_engine(profile=load_profile("phone-3gb")).close()  # a value does as well
    open_engine(profile="phone-3gb", backend=Backend.CPU(thread_count=1)).close()
    assert [threads for _, threads, *_ in executors] == [3, 4, 1]


def test_no_such_profile(open_engine: Callable[..., Engine]) -> None:
    with pytest.raises(ProfileError, match="did you mean phone-2gb"):
        open_engine(profile="phone-2g")


def test_a_leak_raises_with_the_breakdown(bundle: Path, cache_dir: Path, tmp_path: Path) -> None:
    profile = write_profile(tmp_path, ROOMY_BYTES)
    (message, parts, steps), _ = leak(bundle, cache_dir, profile, "raise")
    assert message.startswith("gemma3n-int4.litertlm on small, measured: needs 5")
    assert "the budget is 512 MiB" in message
    assert parts == "process before the engine, tokenizer, decoder, since loading"
    assert 20 < int(steps) < ROOMY_BYTES // (8 * MIB)


def test_a_leak_warns_once_where_asked_to(bundle: Path, cache_dir: Path, tmp_path: Path) -> None:
    lines, errors = leak(bundle, cache_dir, write_profile(tmp_path, ROOMY_BYTES), "warn")
    assert lines == ["99"]
    assert errors.count("BudgetWarning: gemma3n-int4.litertlm on small, measured") == 1


def test_a_conversation_goes_on_when_memory_is_there_again(
    open_engine: Callable[..., Engine], plan: BundlePlan, tmp_path: Path
) -> None:
    budget_bytes = max(plan.footprint().total_bytes, read_memory().hard_bytes + 256 * MIB)
    with open_engine(profile=write_profile(tmp_path, budget_bytes)) as engine:
        conversation = engine.create_conversation(max_output_tokens=3)
        block = bytearray(b"x") * (budget_bytes - read_memory().hard_bytes + 16 * MIB)
        with pytest.raises(OverBudget, match="on small, measured: needs"):
            conversation.send_message("In the beginning")
        assert not conversation.history
        assert conversation.finish_reason == "budget"
        del block
        assert str(conversation.send_message("In the beginning"))


def test_in_a_cgroup_a_leak_raises_before_the_kernel_kills(bundle: Path, cache_dir: Path, tmp_path: Path) -> None:
    """The profile allows more than the group: the group's limit is the one that holds."""
    profile = write_profile(tmp_path, 2 * ROOMY_BYTES)
    try:
        with MemoryCgroup(ROOMY_BYTES) as cgroup:
            (message, parts, steps), _ = leak(bundle, cache_dir, profile, "raise", cgroup)
            assert cgroup.oom_kills() == 0
    except CgroupUnavailable as error:
        pytest.skip(str(error))
    assert message.startswith("gemma3n-int4.litertlm on small, measured: needs ")
    assert "the budget is 496 MiB" in message
    assert "since loading" in parts
    assert int(steps) < ROOMY_BYTES // (8 * MIB)


def test_pages_are_given_back_when_they_and_the_rest_exceed_the_budget(
    bundle: Path, cache_dir: Path, tmp_path: Path
) -> None:
    """A copy of the bundle on a disk, so that no other test's mapping is counted."""
    copy = shutil.copy(bundle, tmp_path / "copy.litertlm")
    anonymous_bytes = read_memory().hard_bytes
    profile = write_profile(tmp_path, max(64 * MIB, anonymous_bytes // 2))
    with pytest.warns(BudgetWarning):
        engine = Engine(str(copy), cache_dir=str(cache_dir), profile=profile, over_budget="warn")
    with engine:
        mapped = engine.memory().mapped_bytes
        # The check at the end of loading found the process over its budget.
        assert set(mapped.values()) == {0}
        sequence = engine.new_sequence()
        sequence.append([2, 10, 20])
        sequence.logits()
        assert engine.memory().mapped_bytes["weight_cache"] > 0


def test_a_profile_pays_for_as_many_slots_as_fit(
    open_engine: Callable[..., Engine], plan: BundlePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BudgetWatch, "check", lambda _: None)  # this process holds the whole test suite
    for slots, spare in ((1, 0), (2, 0), (3, -1), (4, 0), (9, 0)):
        budget_bytes = plan.footprint(slots=slots).total_bytes + spare
        with open_engine(profile=write_profile(tmp_path, budget_bytes)) as engine:
            assert engine._pool.count == min(4, slots + spare)
    with open_engine() as engine:
        assert engine._pool.count == 4


def test_slots_that_were_asked_for_have_to_fit(
    open_engine: Callable[..., Engine], plan: BundlePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BudgetWatch, "check", lambda _: None)
    profile = write_profile(tmp_path, plan.footprint(slots=6).total_bytes)
    with open_engine(profile=profile, slots=6) as engine:
        assert engine._pool.count == 6
    with pytest.raises(OverBudget, match=r"at 512 tokens on small: needs .*") as caught:
        open_engine(profile=profile, slots=7, max_num_tokens=512)
    assert caught.value.footprint == plan.footprint(512, slots=7)
    assert "slots=1" in [suggestion.label for suggestion in caught.value.suggestions]
    for wrong in (0, -3):
        with pytest.raises(ConfigError) as refused:
            open_engine(slots=wrong)
        assert str(refused.value) == f"slots is {wrong}, expected at least 1; leave it out for the default"
