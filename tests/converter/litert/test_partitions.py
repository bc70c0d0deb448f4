"""What XNNPACK takes of each signature. Whatever it leaves runs in LiteRT's slower kernels, and every border between
the two costs a copy: so one partition, and outside it only ops that are listed here with their reason.

    Phase.PROLOGUE  input_pos is an integer and XNNPACK computes floats: start, ring ages, slots and write indices are
                    a few integer ops on at most S values each, and CAST makes floats of two of them
    Phase.EPILOGUE  the cache writes: XNNPACK has no kernel that writes into a given place. DYNAMIC_UPDATE_SLICE at the
                    very end is what lets LiteRT keep one copy of a cache; a prefill that may wrap gathers instead, from
                    rows joined outside XNNPACK, so that one ring at a time is in memory twice
"""

from pathlib import Path

import numpy as np
import pytest

from gemma_edge.converter.calibrate.planning import plan_for
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize import stored
from tests.converter.litert.tflite_runs import Delegation, fill

# Of tiny-gemma3n: 5 layers own KV, 4 sliding ones with rings of 96 slots and 1 full one with 512.
PROLOGUE = {"RESHAPE": 4, "SUB": 1, "FLOOR_MOD": 2, "PACK": 4, "CAST": 2}
WRITES = {"DYNAMIC_UPDATE_SLICE": 10}
# A prefill has one more: which slot takes which row. SLICE: only the first entry of input_pos counts.
RING_PROLOGUE = {"SLICE": 1, "RESHAPE": 3, "SUB": 2, "FLOOR_MOD": 2, "LESS": 1, "ADD": 1, "SELECT_V2": 1, "PACK": 2}
RING_WRITES = {"CONCATENATION": 8, "GATHER": 8, "DYNAMIC_UPDATE_SLICE": 2}
LOOKUP = {"RESHAPE": 1, "LESS": 1, "SELECT_V2": 1, "MAXIMUM": 1}  # ids that are no row become 0


def delegations(plan: Plan) -> dict[str, Delegation]:
    """By signature; the weights' values don't matter, their encodings do."""
    weights = {name: np.ones(spec.shape, np.float32) for name, spec in plan.model.tensors.items()}
    encodings = {name: storage.encoding.name for name, storage in plan.storages.items()}
    return {
        graph.name: Delegation.of(fill([graph], weights, encodings, plan.cache_layout).content)
        for graphs in plan.graphs.values()
        for graph in graphs
    }


def plan_of(
    checkpoint: Path,
    precision: str = "int4",
    kv: str = "fp32",
    spans: tuple[int, ...] = (),
    batch: tuple[int, ...] = (),
) -> Plan:
    target = Target.parse(f"custom-{precision}", context=512, prefill=(8, 32), spans=spans, kv=kv, batch=batch)
    return plan_for(target, checkpoint)[1]


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32"])
def test_gemma3n_is_one_partition(precision: str, tiny_gemma3n: Path) -> None:
    found = delegations(plan_of(tiny_gemma3n, precision))
    assert {name: delegation.partitions for name, delegation in found.items()} == dict.fromkeys(found, 1)
    assert dict(found["decode"].outside) == PROLOGUE | WRITES
    for prefill in ("prefill_8", "prefill_32"):
        assert dict(found[prefill].outside) == RING_PROLOGUE | {"CAST": 2} | RING_WRITES
    assert found["decode"].inside.total() > 1000
    assert found["decode"].inside.total() > found["prefill_8"].inside.total() > 600  # 5 layers of 8, no head


def test_a_batch_is_one_partition_too(tiny_gemma3n: Path) -> None:
    found = delegations(plan_of(tiny_gemma3n, batch=(2,)))["decode_2"]
    assert found.partitions == 1
    each = {name: 2 * count for name, count in (PROLOGUE | WRITES).items()}
    assert dict(found.outside) == each | {"SLICE": 2}  # the position of each row


def test_a_span_is_one_partition_too(tiny_gemma3n: Path) -> None:
    found = delegations(plan_of(tiny_gemma3n, spans=(64,)))
    assert "until_64_prefill_8" not in found
    for name in ("decode", "prefill_32"):
        assert found[f"until_64_{name}"].partitions == 1
        assert found[f"until_64_{name}"].outside == found[name].outside
        assert found[f"until_64_{name}"].inside["SLICE"] == found[name].inside["SLICE"] + 2  # of 1 layer, k and v


def test_a_head_in_many_slices_does_not_cut_the_partition(tiny_gemma3n: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XNNPACK joins at most five tensors at a time; the logits of E2B come from 17 slices."""
    monkeypatch.setattr(stored, "SPLIT_BYTES", 16 << 10)
    found = delegations(plan_of(tiny_gemma3n))
    assert found["decode"].partitions == 1
    assert dict(found["decode"].outside) == PROLOGUE | WRITES
    assert found["decode"].inside["FULLY_CONNECTED"] > 100 + 17


def test_gemma3_is_one_partition(tiny_gemma3: Path) -> None:
    found = delegations(plan_of(tiny_gemma3))
    assert {name: delegation.partitions for name, delegation in found.items()} == dict.fromkeys(found, 1)
    assert dict(found["decode"].outside) == PROLOGUE | {"DYNAMIC_UPDATE_SLICE": 12}
    assert found["prefill_8"].outside["GATHER"] == 10


@pytest.mark.parametrize("precision", ["int4", "int8", "fp32"])
def test_tables_are_looked_up_by_litert(precision: str, tiny_gemma3n: Path) -> None:
    """XNNPACK would pack a copy of a table; EMBEDDING_LOOKUP and GATHER read rows where they lie in the file."""
    found = delegations(plan_of(tiny_gemma3n, precision))
    scales = ({"GATHER": 1, "CAST": 1}, {"MUL"}) if precision == "int4" else ({}, set())  # of each layer's part
    turned: tuple[dict[str, int], set[str]] = (
        {},
        set() if precision == "fp32" else {"FULLY_CONNECTED"},
    )  # back, 64 columns at a time
    if precision == "int4":  # the head's integers, their scales, and three bits more of each
        looked_up = {"EMBEDDING_LOOKUP": 2, "GATHER": 1, "CAST": 1}
        put_together = {"FLOOR", "SLICE", "CONCATENATION", "MAXIMUM", "MINIMUM", "ADD", "SUB", "MUL"}
        turned = looked_up, put_together | {"FULLY_CONNECTED"}
    for name, (looked_up, multiplied) in {"embedder": turned, "per_layer_embedder": scales}.items():
        assert dict(found[name].outside) == LOOKUP | {"EMBEDDING_LOOKUP": 1} | looked_up
        assert set(found[name].inside) == {"RESHAPE"} | multiplied


def test_float16_tables_are_gathered(tiny_gemma3n: Path) -> None:
    found = delegations(plan_of(tiny_gemma3n, "fp16"))
    assert dict(found["embedder"].outside) == LOOKUP | {"GATHER": 1, "CAST": 1}


def test_float16_caches_are_converted_outside(tiny_gemma3n: Path) -> None:
    """LiteRT's DEQUANTIZE and CAST, one per cache and way."""
    found = delegations(plan_of(tiny_gemma3n, kv="fp16"))
    assert dict(found["decode"].outside) == PROLOGUE | {"CAST": 12, "DEQUANTIZE": 10} | WRITES
    assert dict(found["prefill_8"].outside) == RING_PROLOGUE | {"CAST": 12, "DEQUANTIZE": 8} | RING_WRITES
    assert (found["decode"].partitions, found["prefill_8"].partitions) == (1, 1)
