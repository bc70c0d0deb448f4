"""A bundle's footprint against the plan it was converted by."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.converter.calibrate.planning import plan_for
from gemma_edge.converter.plan.target import Target
from gemma_edge.profiles.budget import MemoryBudget
from gemma_edge.profiles.footprint import Footprint
from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.litert.footprint import BundlePlan
from gemma_edge.runtime.formats.litertlm import Bundle, BundleLayout, ModelType, SectionKind, SectionSpec
from tests.runtime.conftest import CONTEXT_TOKENS, PREFILL_TOKENS, SPANS_TOKENS

TinyBundle = Callable[[str, str], Path]
GRAPH_BYTES = 3 << 20  # a section holds its graphs, seven of them, beside the weights


def planned(checkpoint: Path, precision: str) -> Footprint:
    target = Target.parse(f"custom-{precision}", context=CONTEXT_TOKENS, prefill=PREFILL_TOKENS, spans=SPANS_TOKENS)
    return plan_for(target, checkpoint)[1].footprint


@pytest.mark.parametrize("precision", ["int4", "fp32"])
@pytest.mark.parametrize("family", ["gemma3", "gemma3n", "gemma4"])
def test_the_bundle_says_what_the_plan_said(
    tiny_bundle: TinyBundle, family: str, precision: str, request: pytest.FixtureRequest
) -> None:
    plan = planned(request.getfixturevalue(f"tiny_{family}"), precision)
    found = BundlePlan.of(Bundle.open(tiny_bundle(family, precision))).footprint()
    assert [part.name for part in found.parts] == [part.name for part in plan.parts]
    assert found.anon_bytes == plan.anon_bytes
    for ours, theirs in zip(found.parts, plan.parts, strict=True):
        assert 0 <= ours.file_bytes - theirs.file_bytes < GRAPH_BYTES, ours.name


def test_a_shorter_context_needs_less_for_the_caches_of_full_attention(tiny_bundle: TinyBundle) -> None:
    plan = BundlePlan.of(Bundle.open(tiny_bundle("gemma3n", "int4")))
    # 5 layers own a cache of 2 heads x 32: 4 rings of 96 slots, 1 full one with 512; keys and values; float32.
    row_bytes = 2 * 2 * 32 * 4
    assert plan.context_tokens == 512
    assert plan.footprint().anon_bytes - plan.footprint(256).anon_bytes == 256 * row_bytes
    assert plan.footprint(256).anon_bytes - plan.footprint(64).anon_bytes == (192 + 4 * (96 - 64)) * row_bytes


def test_the_longest_context_that_fits(tiny_bundle: TinyBundle) -> None:
    plan = BundlePlan.of(Bundle.open(tiny_bundle("gemma3n", "int4")))
    assert plan.longest_context(MemoryBudget(plan.footprint().total_bytes)) == 512
    assert plan.longest_context(MemoryBudget(plan.footprint().total_bytes - 1)) == 256
    assert plan.longest_context(MemoryBudget(plan.footprint(256).total_bytes - 1)) is None


def test_weights_without_a_cache_are_anonymous(tiny_bundle: TinyBundle) -> None:
    plan = BundlePlan.of(Bundle.open(tiny_bundle("gemma3n", "int4")))
    mapped, packed = plan.footprint(), plan.footprint(anonymous_weights=True)
    assert packed.total_bytes == mapped.total_bytes
    assert packed.anon_bytes - mapped.anon_bytes == plan.weights_bytes


def test_a_decoder_that_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "other.litertlm"
    layout = BundleLayout.of([SectionSpec(SectionKind.TFLITE_MODEL, 64, ModelType.PREFILL_DECODE)], "x")
    path.write_bytes(layout.header.ljust(layout.nbytes, b"\0"))
    with pytest.raises(BundleMismatchError) as caught:
        BundlePlan.of(Bundle.open(path))
    assert str(caught.value) == (
        f"{path}: found no decoder with kv_cache_* and prefill_* signatures, its memory cannot be computed; "
        "convert the checkpoint with gemma-edge"
    )
