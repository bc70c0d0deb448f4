"""The litert executor against itself, token by token: chunks, rings, rewinds, snapshots and the end of the context."""

import dataclasses
import errno
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from gemma_edge.runtime.executors.base import BundleMismatchError, ContextOverflowError, ExecutorError, RewindError
from gemma_edge.runtime.executors.litert import library as liblitert
from gemma_edge.runtime.executors.litert.decoder import DecoderSections
from gemma_edge.runtime.executors.litert.library import BoundSignature
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.litertlm import Bundle
from tests.slots import litert_slot

CONTEXT_TOKENS = 512
# Two float32 computations of one value, in chunks and alone. Logits span about 20.
TOLERANCE = 5e-5

TinyBundle = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def text(val_bin: Path) -> list[int]:
    """Held-out text, one token more than the context holds."""
    tokens: list[int] = np.fromfile(val_bin, np.uint16)[: CONTEXT_TOKENS + 1].tolist()
    return tokens


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def sections(tiny_bundle: TinyBundle) -> DecoderSections:
    return DecoderSections.of(Bundle.open(tiny_bundle("gemma3n", "fp32")))


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def shared(request: pytest.FixtureRequest, tiny_bundle: TinyBundle, cache_dir: Path) -> Iterator[LitertSlot]:
    executor = litert_slot(DecoderSections.of(Bundle.open(tiny_bundle(request.param, "fp32"))), 2, cache_dir)
    yield executor
    executor.close()


@pytest.fixture
def executor(shared: LitertSlot) -> LitertSlot:
    shared.reset()
    return shared


@pytest.fixture(scope="module")
def expected(shared: LitertSlot, text: list[int]) -> NDArray[np.float32]:
    """Logits after each token of the text, decoded one by one: [context, V]."""
    shared.reset()
    return np.stack([shared.decode(token) for token in text[:CONTEXT_TOKENS]])


def check_next(executor: LitertSlot, text: list[int], expected: NDArray[np.float32]) -> None:
    position = executor.position
    assert list(executor.token_ids) == text[:position]
    np.testing.assert_allclose(executor.decode(text[position]), expected[position], rtol=0, atol=TOLERANCE)


def test_the_fixtures_exercise_rings(executor: LitertSlot) -> None:
    assert executor.context_tokens == CONTEXT_TOKENS
    executor.prefill([2] * 300)
    assert 0 < executor.earliest_rewind < 300, "the bundle has no ring caches"


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 9, 31, 32, 33, 100, 250, 511])
def test_a_prompt_in_pieces_of_any_length(
    executor: LitertSlot, text: list[int], expected: NDArray[np.float32], chunk: int
) -> None:
    for start in range(0, CONTEXT_TOKENS - 1, chunk):
        executor.prefill(text[start : min(start + chunk, CONTEXT_TOKENS - 1)])
    check_next(executor, text, expected)


def test_prefill_and_decode_in_turns_to_the_last_position(
    executor: LitertSlot, text: list[int], expected: NDArray[np.float32]
) -> None:
    for turn in range(1, 100):
        executor.prefill(text[executor.position : min(executor.position + turn, CONTEXT_TOKENS - 1)])
        check_next(executor, text, expected)
        if executor.position == CONTEXT_TOKENS:
            return
    pytest.fail("never reached the end of the context")


def test_overflow_says_how_many_and_leaves_everything_usable(
    executor: LitertSlot, text: list[int], expected: NDArray[np.float32]
) -> None:
    executor.prefill(text[:500])
    with pytest.raises(
        ContextOverflowError, match="context overflow: 513 tokens asked, 512 allowed; shorten"
    ) as caught:
        executor.prefill(text[500:513])
    assert (caught.value.asked_tokens, caught.value.allowed_tokens) == (513, 512)
    check_next(executor, text, expected)
    executor.prefill(text[501:512])
    with pytest.raises(ContextOverflowError, match="513 tokens asked"):
        executor.decode(text[512])


@pytest.mark.parametrize("reached", [20, 95, 96, 97, 300, 512])
@pytest.mark.parametrize("back", [1, 8, 31, 32, 33])
def test_a_near_rewind_is_exact(
    executor: LitertSlot, text: list[int], expected: NDArray[np.float32], reached: int, back: int
) -> None:
    executor.prefill(text[:reached])
    if back > reached:
        return
    assert executor.earliest_rewind <= reached - back
    executor.rewind(reached - back)
    check_next(executor, text, expected)


def test_the_earliest_rewind_is_exact_whatever_was_written(
    executor: LitertSlot, text: list[int], expected: NDArray[np.float32]
) -> None:
    """Other tokens are written above, then forgotten: what is left of them in the rings must never show."""
    generator = np.random.default_rng(1)
    for _ in range(60):
        if executor.position > CONTEXT_TOKENS - 60:
            executor.reset()
        executor.prefill(text[executor.position : executor.position + int(generator.integers(1, 40))])
        kept = executor.position
        executor.prefill(generator.integers(3, 2000, int(generator.integers(1, 20))).tolist())
        if kept < executor.earliest_rewind:
            with pytest.raises(RewindError):
                executor.rewind(kept)
            executor.reset()
            continue
        executor.rewind(kept)
        earliest = executor.earliest_rewind
        if earliest < kept and generator.random() < 0.5:
            executor.rewind(int(generator.integers(earliest, kept)))
        check_next(executor, text, expected)


def test_a_far_rewind_is_refused_and_changes_nothing(
    executor: LitertSlot, text: list[int], expected: NDArray[np.float32]
) -> None:
    executor.prefill(text[:300])
    low = executor.earliest_rewind
    with pytest.raises(
        RewindError, match=f"cannot rewind to position {low - 1}; {low} to 300 are in the cache; restore"
    ):
        executor.rewind(low - 1)
    with pytest.raises(RewindError, match="cannot rewind to position 301"):
        executor.rewind(301)
    check_next(executor, text, expected)


def test_a_snapshot_brings_a_far_position_back(
    executor: LitertSlot, text: list[int], expected: NDArray[np.float32]
) -> None:
    executor.prefill(text[:150])
    snapshot = executor.snapshot()
    assert snapshot.nbytes > 0
    executor.prefill(text[150:400])
    executor.restore(snapshot)
    assert executor.position == 150
    executor.prefill([5] * 100)
    executor.restore(snapshot)
    check_next(executor, text, expected)


def test_a_snapshot_of_replaced_tokens_is_refused(executor: LitertSlot, text: list[int]) -> None:
    executor.prefill(text[:50])
    snapshot = executor.snapshot()
    executor.rewind(40)
    executor.decode(text[40] + 1)
    with pytest.raises(RewindError, match="cannot restore the snapshot at position 50: tokens before it were replaced"):
        executor.restore(snapshot)


def test_reset_forgets_everything(executor: LitertSlot, text: list[int], expected: NDArray[np.float32]) -> None:
    executor.prefill([7] * 400)
    executor.reset()
    assert (executor.position, executor.earliest_rewind, list(executor.token_ids)) == (0, 0, [])
    check_next(executor, text, expected)


def test_reset_clears_what_a_broken_run_left(
    executor: LitertSlot, text: list[int], expected: NDArray[np.float32]
) -> None:
    executor.prefill(text[:200])
    for name, cache in executor._caches.items():
        (cache[:, :, :200] if name.startswith("kv_cache_k") else cache[..., :200]).fill(np.nan)
    assert np.isnan(executor.decode(text[200])).any()
    executor.reset()
    check_next(executor, text, expected)
    assert not any(np.isnan(cache).any() for cache in executor._caches.values())


def test_stopping_between_chunks_keeps_what_was_done(
    executor: LitertSlot, text: list[int], expected: NDArray[np.float32]
) -> None:
    seen = []
    for position in executor.chunks(text[:300]):
        seen.append(position)
        if position >= 96:
            break
    assert seen == [0, 32, 64, 96]
    assert executor.position == 96
    check_next(executor, text, expected)


def test_logits_are_the_callers_own(executor: LitertSlot, expected: NDArray[np.float32], text: list[int]) -> None:
    first = executor.decode(text[0])
    executor.decode(text[1])
    np.testing.assert_array_equal(first, expected[0])


def test_a_token_outside_the_vocabulary(executor: LitertSlot) -> None:
    vocab_size = len(executor._shared.logits.reshape(-1))
    for token in (-1, vocab_size):
        with pytest.raises(ExecutorError, match=f"token id {token} is outside the vocabulary of {vocab_size}"):
            executor.decode(token)
    assert executor.position == 0


def test_a_shorter_context(sections: DecoderSections, cache_dir: Path) -> None:
    executor = litert_slot(sections, 1, cache_dir, context_tokens=100)
    executor.prefill([2] * 100)
    with pytest.raises(ContextOverflowError, match="101 tokens asked, 100 allowed"):
        executor.decode(2)
    executor.close()
    for wrong in (0, 513):
        with pytest.raises(ExecutorError, match=f"max_num_tokens is {wrong}, the KV cache of .* holds 512; ask for 1"):
            litert_slot(sections, 1, cache_dir, context_tokens=wrong)


def test_closing_twice_is_fine_and_using_it_after_is_not(sections: DecoderSections, cache_dir: Path) -> None:
    executor = litert_slot(sections, 1, cache_dir)
    snapshot = executor.snapshot()
    executor.close()
    executor.close()
    for use in (
        lambda: executor.decode(2),
        lambda: executor.prefill([2]),
        lambda: executor.rewind(0),
        executor.reset,
        executor.snapshot,
        lambda: executor.restore(snapshot),
    ):
        with pytest.raises(ExecutorError, match="the executor is closed; create a new engine"):
            use()


def test_without_a_weight_cache_the_answer_is_the_same(sections: DecoderSections, cache_dir: Path) -> None:
    logits = []
    for cache in (None, cache_dir):
        executor = litert_slot(sections, 1, cache)
        logits.append(executor.decode(2).copy())
        executor.close()
    np.testing.assert_array_equal(logits[0], logits[1])


def test_a_section_that_is_no_decoder(sections: DecoderSections) -> None:
    swapped = dataclasses.replace(sections, decoder=sections.embedder)
    with pytest.raises(BundleMismatchError, match=r"found signatures \['embedder'\], expected decode with logits"):
        litert_slot(swapped, 1, None)


def test_a_section_that_is_no_model(sections: DecoderSections, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"no model" * 1000)
    swapped = dataclasses.replace(sections, decoder=FileRange(junk, 0, 8000))
    with pytest.raises(BundleMismatchError, match="begins with b'odel', expected b'TFL3'; copy the file again"):
        litert_slot(swapped, 1, None)


def test_tables_that_do_not_fit_the_decoder(sections: DecoderSections) -> None:
    for swapped, found in (
        (dataclasses.replace(sections, per_layer_embedder=None), 0),
        (dataclasses.replace(sections, per_layer_embedder=sections.embedder), 128),
    ):
        with pytest.raises(
            BundleMismatchError,
            match=rf"takes per_layer_embeddings of 256 values a token, the bundle's table gives {found}; convert",
        ):
            litert_slot(swapped, 1, None)


def test_no_memory(sections: DecoderSections, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    litert_slot(sections, 1, cache_dir).close()
    monkeypatch.setattr(liblitert.mmap, "mmap", full)  # type: ignore[attr-defined]
    with pytest.raises(ExecutorError, match=r"no memory for a tensor of \d+ bytes \(Cannot allocate memory\); close"):
        liblitert.aligned_zeros(liblitert.TensorType((1, 100_000), np.dtype(np.float32)))


def test_an_operator_litert_does_not_have(sections: DecoderSections, tmp_path: Path) -> None:
    """The decoder's soft-cap, TANH, becomes an operator without a kernel."""
    place = sections.decoder
    data = bytearray(place.path.read_bytes()[place.offset : place.offset + place.nbytes])
    model = schema.Model.GetRootAs(data, 0)
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        if code.BuiltinCode() == schema.BuiltinOperator.TANH:
            for offset in (4, 10):  # deprecated_builtin_code, builtin_code
                field = code._tab.Offset(offset)
                if field:
                    data[code._tab.Pos + field] = schema.BuiltinOperator.CONCAT_EMBEDDINGS
    changed = tmp_path / "changed.tflite"
    changed.write_bytes(data)
    swapped = dataclasses.replace(sections, decoder=FileRange(changed, 0, len(data)))
    with pytest.raises(ExecutorError, match=r"status 1 \(.*CONCAT_EMBEDDINGS.*; convert the checkpoint again"):
        litert_slot(swapped, 1, None)
    with pytest.raises(ExecutorError, match=r"packing the weights .* Didn't find op for builtin opcode 'CONCAT_EMB"):
        litert_slot(swapped, 1, tmp_path / "cache")


@pytest.mark.parametrize("start", [0, 63, 64, 65, 192, 193])
def test_a_call_reads_no_more_than_its_span(
    executor: LitertSlot, text: list[int], expected: NDArray[np.float32], start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    run = BoundSignature.__call__

    def noted(self: BoundSignature) -> None:
        called.append(next(e.call.name for e in (*executor._decodes, *executor._prefills) if e.run is self))
        run(self)

    executor.prefill(text[:start])
    monkeypatch.setattr(BoundSignature, "__call__", noted)
    check_next(executor, text, expected)
    executor.prefill(text[start + 1 : start + 33])
    executor.prefill(text[start + 33 : start + 41])
    spans = [next((f"until_{n}_" for n in (64, 192) if at <= n), "") for at in (start, start + 1)]
    assert called == [f"{spans[0]}decode", f"{spans[1]}prefill_32", "prefill_8"]


@pytest.mark.parametrize(
    ("found", "message"),
    [("2.4.0", "ai-edge-litert 2.4.0 is installed, expected 2.3.0; pip install"), (None, "is not")],
)
def test_another_wheel_is_refused(
    sections: DecoderSections, monkeypatch: pytest.MonkeyPatch, found: str | None, message: str
) -> None:
    def version(name: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ExecutorError, match=message):
        litert_slot(sections, 1, None)
