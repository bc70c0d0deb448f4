"""The footprint of a LiteRT run, against the measurements its constants were taken from."""

import dataclasses

import pytest

from gemma_edge.profiles.costs import (
    ALTUP_CALL_ANON_BYTES,
    BATCH_ROW_ANON_BYTES,
    CALL_ANON_BYTES,
    CALL_FILE_BYTES,
    ActivationShape,
    litert_footprint,
    predicted_decode_tokens_per_s,
)
from gemma_edge.profiles.device import Footprint, load_profile
from gemma_edge.profiles.signatures import calls
from gemma_edge.profiles.sizes import MIB

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
RING_BYTES = 16 * 640 * 2 * 512 * 4  # 16 sliding layers of 640 slots, K and V of 2 heads x 256, float32
LARGEST_RING_BYTES = RING_BYTES // 16
E2B_KV_BYTES = RING_BYTES + 4 * 4096 * 2 * 512 * 4


def e2b(
    shape: ActivationShape = E2B,
    prefill_tokens: tuple[int, ...] = (16, 128),
    ple_bytes: int = 10**9,
    half: bool = False,
    spans: tuple[int, ...] = (),
    draft: tuple[int, ...] = (),
    batch: tuple[int, ...] = (),
) -> Footprint:
    return litert_footprint(
        weights_bytes=1_500_000_000,
        embedder_bytes=540_000_000,
        ple_bytes=ple_bytes,
        kv_bytes=E2B_KV_BYTES // 2 if half else E2B_KV_BYTES,
        ring_bytes=RING_BYTES // 2 if half else RING_BYTES,
        kv_is_half=half,
        largest_ring_bytes=LARGEST_RING_BYTES,
        calls=tuple(calls(prefill_tokens, spans, draft, batch)),
        shape=shape,
    )


def part_bytes(footprint: Footprint, name: str) -> int:
    return next((part.total_bytes for part in footprint.parts if part.name == name), 0)


def test_the_arena_is_the_measured_one() -> None:
    # RssAnon grew by 15.7 MiB in the first prefill of 16 tokens and by 63.7 MiB in the first of 128, after it.
    alone = [part_bytes(e2b(prefill_tokens=(n,)), "activations") - E2B.run_bytes(1) for n in (16, 128)]
    assert [(nbytes + LARGEST_RING_BYTES) / MIB for nbytes in alone] == pytest.approx([15.7, 63.7], abs=8)


def test_every_prefill_that_can_wrap_around_copies_a_ring() -> None:
    for prefill_tokens, copies in (((128,), 1), ((16, 128), 2), ((1, 16, 128), 2), ((1,), 0)):
        assert part_bytes(e2b(prefill_tokens=prefill_tokens), "KV rings being written") == copies * LARGEST_RING_BYTES


def test_spans_add_their_signatures_what_these_write_and_the_largest_run() -> None:
    one, two = (e2b(spans=spans) for spans in ((1024,), (1024, 4096)))
    added = 2 * ALTUP_CALL_ANON_BYTES + (1 + 128) * E2B.kv_values * 4 + LARGEST_RING_BYTES
    runs = [E2B.run_bytes(128, past) for past in (1024, 4096)]
    assert one.anon_bytes - e2b().anon_bytes == added + runs[0]
    assert two.anon_bytes - one.anon_bytes == added + runs[1] - runs[0]
    assert runs[0] / MIB == pytest.approx(32, abs=4)
    assert one.file_bytes - e2b().file_bytes == 2 * CALL_FILE_BYTES
    without = dataclasses.replace(E2B, altup_inputs=1)
    parts = [part_bytes(e2b(shape, spans=(1024,)), "signatures of spans") for shape in (E2B, without)]
    assert parts[0] - parts[1] == 2 * (ALTUP_CALL_ANON_BYTES - CALL_ANON_BYTES)


def test_what_verifies_adds_its_signatures_and_the_logits_of_its_rows() -> None:
    for spans, count in (((), 1), ((1024, 4096), 3)):
        with_it, without = e2b(spans=spans, draft=(4,)), e2b(spans=spans)
        added = ALTUP_CALL_ANON_BYTES + 4 * (E2B.kv_values + 262_400) * 4
        assert with_it.anon_bytes - without.anon_bytes == count * added
        assert with_it.file_bytes - without.file_bytes == count * CALL_FILE_BYTES
    small = dataclasses.replace(E2B, altup_inputs=1, kv_values=18 * 512, vocab_size=262_144)
    part = part_bytes(e2b(small, spans=(1024,), draft=(4,)), "signatures that verify") - 2 * CALL_FILE_BYTES
    assert part / MIB == pytest.approx(19.7, abs=4)  # measured of Gemma 3 270M: 14 opened and 6 run


def test_a_batch_adds_its_signatures_and_its_conversations() -> None:
    one, two = (e2b(spans=(1024,), batch=batch) for batch in ((4,), (4, 8)))
    added = 2 * (ALTUP_CALL_ANON_BYTES + 8 * (BATCH_ROW_ANON_BYTES + E2B.kv_values * 4)) + 8 * 262_400 * 4
    assert two.anon_bytes - one.anon_bytes == added
    assert two.file_bytes - one.file_bytes == 2 * CALL_FILE_BYTES
    assert part_bytes(two, "activations") == part_bytes(e2b(spans=(1024,)), "activations")
    small = dataclasses.replace(E2B, altup_inputs=1, kv_values=26 * 512, vocab_size=262_144)
    for shape, measured in ((small, 92 + 12), (E2B, 146 + 14)):  # MiB of Gemma 3 1B, of E2B: opened, and run
        part = part_bytes(e2b(shape, spans=(1024,), batch=(2, 4, 8)), "signatures of batches") - 6 * CALL_FILE_BYTES
        assert part / MIB == pytest.approx(measured, rel=0.1)


def test_float16_keys_and_values_cost_more_than_they_save() -> None:
    assert e2b(half=True, spans=(1024,)).anon_bytes / MIB == pytest.approx(668, rel=0.05)  # measured; 355 with float32
    assert e2b(half=True).anon_bytes > e2b().anon_bytes
    assert part_bytes(e2b(), "KV cache as float32") == 0


def test_e2b_int4_fits_a_2_gib_phone_as_measured_in_a_cgroup() -> None:
    load_profile("phone-2gb").budget.check(e2b(), "e2b-int4")


def test_rows_count_no_more_than_their_table() -> None:
    assert part_bytes(e2b(ple_bytes=1_000_000), "PLE rows") == 1_000_000
    assert part_bytes(e2b(), "PLE rows") < 10**9 // 10
    assert "PLE rows" not in [part.name for part in e2b(ple_bytes=0).parts]


def test_activations_grow_with_prefill_and_context() -> None:
    shorter = dataclasses.replace(E2B, context_tokens=1024)
    assert part_bytes(e2b(shorter), "activations") < part_bytes(e2b(), "activations") * 0.6
    assert part_bytes(e2b(prefill_tokens=(16,)), "activations") < part_bytes(e2b(), "activations") / 8


def test_a_wide_mlp_decides_where_the_context_is_short() -> None:
    short = dataclasses.replace(E2B, context_tokens=512)
    wide = dataclasses.replace(short, ffn_width=16_384)
    assert wide.run_bytes(128) - short.run_bytes(128) == 128 * 2 * (16_384 - 8192) * 4
    assert dataclasses.replace(E2B, ffn_width=16_384).run_bytes(128) == E2B.run_bytes(128)


def test_speed_is_bandwidth_over_bytes() -> None:
    # llama.cpp decodes 0.531 GB of weights at 19.9 tokens/s on this board
    assert predicted_decode_tokens_per_s(load_profile("raspberry-pi-5-4gb"), 531_000_000) == pytest.approx(
        19.9, rel=0.1
    )


def test_a_token_reads_something() -> None:
    with pytest.raises(ValueError, match="bytes_per_token: found 0; expected a positive number"):
        predicted_decode_tokens_per_s(load_profile("phone-2gb"), 0)
