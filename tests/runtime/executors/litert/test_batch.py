"""A step of several slots gives what a step of each gives, to the bit: across spans, rings, unequal positions."""

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.runtime.executors.base import BundleMismatchError, ClosedError, ContextOverflowError
from gemma_edge.runtime.executors.litert.batch import shares
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.executors.litert.library import Signature
from gemma_edge.runtime.executors.litert.models import ModelSection
from gemma_edge.runtime.formats.litertlm import Bundle

STREAMS = 5
LENGTH = 260  # past the end of a span, and twice that of a ring


class Subject(NamedTuple):
    """A decoder, texts, and the logits after each token, decoded one by one: [LENGTH, V]."""

    decoder: LitertDecoder
    texts: list[list[int]]
    expected: list[NDArray[np.float32]]


@pytest.fixture(scope="module", params=["gemma3", "gemma3n", "gemma4"])
def subject(
    request: pytest.FixtureRequest,
    batching_bundle: Callable[[str], Path],
    val_bin: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Subject]:
    tokens = np.fromfile(val_bin, np.uint16)[: 2 * LENGTH].reshape(2, -1).tolist()
    sections = DecoderSections.of(Bundle.open(batching_bundle(request.param)))
    decoder = LitertDecoder(sections, 1, tmp_path_factory.mktemp("cache"))
    slot, expected = decoder.new_slot(), []
    for text in tokens:
        slot.reset()
        expected.append(np.stack([slot.decode(token) for token in text]))
    yield Subject(decoder, tokens, expected)
    decoder.close()


def test_every_row_is_a_step(subject: Subject) -> None:
    """Slots at unequal positions, that join and leave, and steps alone in between."""
    decoder, texts, expected = subject
    random = np.random.default_rng(5)
    slots = [decoder.new_slot() for _ in range(STREAMS)]
    which = [index % 2 for index in range(STREAMS)]
    for at, slot in enumerate(slots):
        for token in texts[which[at]][: 25 * at]:  # by steps: a prefill rounds otherwise
            slot.decode(token)
    sizes: list[int] = []
    while live := [at for at, slot in enumerate(slots) if slot.position < LENGTH]:
        live = [at for at in live if random.random() < 0.8]
        groups = decoder.batches([slots[at] for at in live])
        taken = [slots.index(slot) for group in groups for slot in group]  # type: ignore[arg-type]
        assert len(set(taken)) == len(taken)
        for group in [*groups, *[[slots[at]] for at in set(live).difference(taken)]]:
            members = [slots.index(slot) for slot in group]  # type: ignore[arg-type]
            starts = [slots[at].position for at in members]
            tokens = [texts[which[at]][start] for at, start in zip(members, starts, strict=True)]
            rows = decoder.decode_batch(group, tokens) if len(group) > 1 else [slots[members[0]].decode(tokens[0])]
            for row, at, start in zip(rows, members, starts, strict=True):
                assert np.array_equal(row, expected[which[at]][start]), (at, start)
            sizes.append(len(group))
    assert {1, 2, 3, 4} == set(sizes)
    for at, slot in enumerate(slots):
        assert list(slot.token_ids) == texts[which[at]]
        slot.close()


def test_slots_in_different_spans_are_taken_apart(subject: Subject) -> None:
    decoder, texts, _ = subject
    slots = [decoder.new_slot() for _ in range(4)]
    for slot, count in zip(slots, (5, 192, 193, 250), strict=True):
        slot.prefill(texts[0][:count])
    assert decoder.batches(slots) == [slots[:2], slots[2:]]
    assert decoder.batches([slots[0], slots[3]]) == []
    for slot in slots:
        slot.close()


def test_a_row_that_does_not_fit_stops_all_before_any_ran(subject: Subject) -> None:
    decoder, texts, _ = subject
    slots = [decoder.new_slot(), decoder.new_slot(context_tokens=5)]
    for slot in slots:
        slot.prefill(texts[0][:5])
    with pytest.raises(ContextOverflowError, match="6 tokens asked, 5 allowed"):
        decoder.decode_batch(slots, [7, 7])
    assert [slot.position for slot in slots] == [5, 5]
    slots[0].close()
    with pytest.raises(ClosedError):
        decoder.decode_batch(slots, [7, 7])


def test_memory_goes_with_a_slot(subject: Subject) -> None:
    """Closed or lost: what was bound with others keeps nothing of it, and others go on."""
    decoder, texts, expected = subject
    slots = [decoder.new_slot() for _ in range(3)]
    gone = [weakref.ref(cache.base) for slot in slots[1:] for cache in slot.caches.values()]
    decoder.decode_batch(slots, [texts[0][0]] * 3)
    slots.pop().close()
    del slots[1]
    gc.collect()
    assert not any(ref() for ref in gone)
    slots.append(decoder.new_slot())
    slots[1].decode(texts[0][0])
    rows = decoder.decode_batch(slots, [texts[0][1]] * 2)
    assert all(np.array_equal(row, expected[0][1]) for row in rows)
    for slot in slots:
        slot.close()


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (1, [2, 4, 8], []),
        (3, [2, 4, 8], [3]),
        (5, [2, 4, 8], [5]),
        (9, [2, 4, 8], [8]),
        (10, [2, 4, 8], [8, 2]),
        (3, [8], []),
        (4, [8], [4]),
        (3, [2], [2]),
        (7, [4], [4, 3]),
        (3, [], []),
    ],
)
def test_calls_are_at_least_half_full(count: int, sizes: list[int], expected: list[int]) -> None:
    assert list(shares(count, sizes)) == expected


def test_a_bundle_without_such_signatures_takes_none_together(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    decoder = LitertDecoder(DecoderSections.of(Bundle.open(tiny_bundle("gemma3", "fp32"))), 1, tmp_path)
    assert not decoder.batch_rows
    assert not decoder.batches([decoder.new_slot(), decoder.new_slot()])
    decoder.close()


def test_other_inputs_and_outputs_are_refused(
    batching_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = DecoderSections.of(Bundle.open(batching_bundle("gemma3")))
    signatures = vars(ModelSection)["signatures"].func

    def changed(model: ModelSection) -> Mapping[str, Signature]:
        found: dict[str, Signature] = dict(signatures(model))
        found["decode_2"] = replace(found["decode_2"], outputs={})
        return found

    monkeypatch.setattr(ModelSection, "signatures", property(changed))
    with pytest.raises(BundleMismatchError, match="decode_2 does not give logits of 2 rows; convert"):
        LitertDecoder(sections, 1, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("gemma_edge.runtime.executors.litert.decoder.row_name", lambda name, row: f"{name}_{row}")
    with pytest.raises(BundleMismatchError, match="the inputs of decode_2 are not those of decode; convert"):
        LitertDecoder(sections, 1, tmp_path)
