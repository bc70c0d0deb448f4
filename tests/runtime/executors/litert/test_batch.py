"""A step of several slots gives what a step of each gives, to the bit: across spans, rings, unequal positions."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.formats.litertlm import Bundle

CONTEXT_TOKENS, STREAMS = 512, 5


class Subject(NamedTuple):
    """A decoder, texts as long as its context, and the logits after each token, decoded one by one: [context, V]."""

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
    tokens = np.fromfile(val_bin, np.uint16)[: 2 * CONTEXT_TOKENS].reshape(2, -1).tolist()
    sections = DecoderSections.of(Bundle.open(batching_bundle(request.param)))
    decoder = LitertDecoder(sections, 1, tmp_path_factory.mktemp("cache"))
    slot, expected = decoder.new_slot(), []
    for text in tokens:
        slot.reset()
        expected.append(np.stack([slot.decode(token) for token in text]))
    yield Subject(decoder, tokens, expected)
    decoder.close()


def test_every_row_is_a_step(subject: Subject) -> None:
    """Slots at random positions, that join and leave, and steps alone in between."""
    decoder, texts, expected = subject
    random = np.random.default_rng(5)
    slots = [decoder.new_slot() for _ in range(STREAMS)]
    which = [index % 2 for index in range(STREAMS)]
    sizes: list[int] = []
    for at, slot in enumerate(slots):
        for token in texts[which[at]][: int(random.integers(0, 100)) * at]:  # by steps: a prefill rounds otherwise
            slot.decode(token)
    while any(slot.position < CONTEXT_TOKENS for slot in slots):
        live = [at for at, slot in enumerate(slots) if slot.position < CONTEXT_TOKENS and random.random() < 0.7]
        groups = decoder.batches([slots[at] for at in live])
        together = {id(slot) for group in groups for slot in group}
        assert sum(map(len, groups)) == len(together)
        for group in groups:
            members = [slots.index(slot) for slot in group]  # type: ignore[arg-type]
            starts = [slots[at].position for at in members]
            found = decoder.decode_batch(group, [texts[which[at]][p] for at, p in zip(members, starts, strict=True)])
            for row, at, start in zip(found, members, starts, strict=True):
                assert np.array_equal(row, expected[which[at]][start]), (at, start)
            sizes.append(len(group))
        for at in live:
            if id(slots[at]) not in together:
                start = slots[at].position
                assert np.array_equal(slots[at].decode(texts[which[at]][start]), expected[which[at]][start])
    assert {2, 3, 4} <= set(sizes)
    for at, slot in enumerate(slots):
        assert list(slot.token_ids) == texts[which[at]]
        slot.close()
