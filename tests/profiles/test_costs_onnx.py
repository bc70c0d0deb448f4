"""The footprint of an ONNX run, against the measurements its constants were taken from."""

import dataclasses

import pytest

from gemma_edge.profiles.costs import ActivationShape
from gemma_edge.profiles.costs_onnx import PREFILL_TOKENS, onnx_footprint
from gemma_edge.profiles.footprint import Footprint
from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.executors.onnx import graph as onnx_graph

E2B = ActivationShape(
    context_tokens=4096,
    heads=8,
    kv_heads=2,
    model_width=2048,
    ffn_width=8192,
    altup_inputs=4,
    ple_values=7680,
    kv_values=20 * 2 * 512,
    vocab_size=262_400,
)
KV_BYTES = (15 * 640 + 5 * 4096) * 2 * 512 * 4  # 15 rings, 4 full layers, and one sliding layer that others share


def e2b(shape: ActivationShape = E2B, weights_bytes: int = 1466 * MIB, block: int = 256) -> Footprint:
    """weights_bytes: of int4 in blocks with a float32 scale each."""
    scales = weights_bytes // (block // 2 + 4)
    return onnx_footprint(
        values_bytes=weights_bytes - 4 * scales,
        scales=scales,
        embedder_bytes=540_000_000,
        ple_bytes=10**9,
        ring_bytes=0,
        kv_bytes=KV_BYTES,
        shape=shape,
    )


def test_anonymous_memory_is_the_measured_one() -> None:
    assert e2b().anon_bytes / MIB == pytest.approx(262 + 44, rel=0.02)  # measured without a tokenizer of full size


@pytest.mark.parametrize(("weights_mib", "measured_mib"), [(1466, 1578), (2471, 2620)])
def test_mapped_memory_is_the_measured_one(weights_mib: int, measured_mib: int) -> None:
    footprint = e2b(weights_bytes=weights_mib * MIB)
    read = [part.file_bytes for part in footprint.parts if part.name in ("decoder weights", "libraries")]
    assert sum(read) / MIB == pytest.approx(measured_mib, rel=0.02)


def test_small_blocks_take_more_when_packed() -> None:
    """1.28 times the weights as stored, measured in blocks of 32."""
    packed = e2b(block=32).parts[0]
    assert packed.file_bytes / (1466 * MIB) == pytest.approx(1.28, rel=0.02)


def test_activations_do_not_grow_with_the_context() -> None:
    longer = e2b(dataclasses.replace(E2B, context_tokens=32_768))
    assert longer.anon_bytes == e2b().anon_bytes
    assert longer.file_bytes > e2b().file_bytes


def test_prefill_is_as_long_as_the_executors() -> None:
    assert PREFILL_TOKENS == onnx_graph.PREFILL_TOKENS
