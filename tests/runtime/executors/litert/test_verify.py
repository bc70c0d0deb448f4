"""Verifying several tokens gives what as many decode steps give, to the bit: across spans, rings, refused guesses."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.profiles.signatures import Call
from gemma_edge.runtime.executors.base import BundleMismatchError, ContextOverflowError
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.executors.litert.slot import LitertSlot, slots_of
from gemma_edge.runtime.formats.litertlm import Bundle
from tests.slots import litert_slot

CONTEXT_TOKENS, SPANS, SIZES = 512, (64, 192), (4, 8)


class Subject(NamedTuple):
    """A slot, a text as long as its context, and the logits after each token, decoded one by one: [context, V]."""

    slot: LitertSlot
    text: list[int]
    expected: NDArray[np.float32]


@pytest.fixture(scope="module", params=["gemma3", "gemma3n", "gemma4"])
def subject(
    request: pytest.FixtureRequest,
    drafting_bundle: Callable[[str], Path],
    val_bin: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Subject]:
    text = np.fromfile(val_bin, np.uint16)[:CONTEXT_TOKENS].tolist()
    cache_dir = tmp_path_factory.mktemp("cache")
    slot = litert_slot(DecoderSections.of(Bundle.open(drafting_bundle(request.param))), 1, cache_dir)
    yield Subject(slot, text, np.stack([slot.decode(token) for token in text]))
    slot.close()


@pytest.mark.parametrize("seed", [0, 1])
def test_every_row_is_a_step_whatever_was_refused_before(subject: Subject, seed: int) -> None:
    slot, text, expected = subject
    random = np.random.default_rng(seed)
    slot.reset()
    verified = refused = 0
    while (position := slot.position) < CONTEXT_TOKENS:
        sizes = slot.verify_tokens()
        if not sizes or random.random() < 0.1:
            assert np.array_equal(slot.decode(text[position]), expected[position]), position
            continue
        count = int(random.integers(2, sizes[-1] + 1))  # of 8 rows, some may be padding
        right = int(random.integers(1, count + 1))
        wrong = random.integers(10, 200, count - right).tolist()
        found = slot.verify([*text[position : position + right], *wrong])
        assert found.shape == (count, expected.shape[1])
        assert np.array_equal(found[:right], expected[position : position + right]), position
        slot.rewind(position + right)
        verified, refused = verified + right, refused + len(wrong)
    assert verified > 300
    assert refused > 100


def test_it_begins_nowhere_that_a_step_would_add_otherwise(subject: Subject) -> None:
    slot, text, _ = subject
    slot.reset()
    rings = {slots_of(name, ring.shape) for name, ring in slot.snapshot().rings.items()}
    assert rings
    for position in range(CONTEXT_TOKENS):
        span = next((n for n in SPANS if position <= n), CONTEXT_TOKENS)
        last_rows = [position + rows - 1 for rows in SIZES]
        assert slot.verify_tokens() == [
            rows
            for rows, last in zip(SIZES, last_rows, strict=True)
            if last <= span and last < CONTEXT_TOKENS and all(position % ring + rows <= ring for ring in rings)
        ]
        slot.decode(text[position])


def test_what_was_refused_is_not_held(subject: Subject) -> None:
    slot, text, _ = subject
    slot.reset()
    slot.prefill(text[:100])
    slot.verify([text[100], 11, 12, 13])
    assert list(slot.token_ids) == [*text[:101], 11, 12, 13]
    slot.rewind(101)
    assert list(slot.token_ids) == text[:101]
    state = slot.state()
    state = replace(state, arrays={name: array.copy() for name, array in state.arrays.items()})
    slot.reset()
    slot.set_state(state)
    again = slot.decode(text[101])
    slot.reset()
    slot.prefill(text[:100])
    slot.decode(text[100])
    assert np.array_equal(again, slot.decode(text[101]))


def test_a_full_context_takes_no_more(subject: Subject) -> None:
    slot, text, _ = subject
    slot.reset()
    slot.prefill(text[: CONTEXT_TOKENS - 2])
    with pytest.raises(ContextOverflowError, match="514 tokens asked, 512 allowed"):
        slot.verify([5, 6, 7, 8])


def test_a_bundle_without_such_signatures_verifies_nothing(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    decoder = LitertDecoder(DecoderSections.of(Bundle.open(tiny_bundle("gemma3", "fp32"))), 1, tmp_path)
    assert not decoder.can_verify
    assert decoder.new_slot().verify_tokens() == []
    decoder.close()


def test_more_rows_than_a_ring_keeps_are_refused(
    drafting_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_name = Call.of_name

    def without_prefills(name: str) -> Call | None:
        return None if "prefill" in name else of_name(name)

    monkeypatch.setattr(Call, "of_name", staticmethod(without_prefills))
    sections = DecoderSections.of(Bundle.open(drafting_bundle("gemma3")))
    message = (
        "verify_4 cannot be taken back, expected logits, and no more rows than the longest prefill has, 1; convert"
    )
    with pytest.raises(BundleMismatchError, match=message):
        LitertDecoder(sections, 1, tmp_path)
