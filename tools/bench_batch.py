"""What a step of several conversations at once takes, in steps of one, and whether its logits are equal to the bit.

    python -m tools.bench_batch model.litertlm --threads 1

The bundle is converted with --batch. Slots hold random keys and values, at positions from 5 to the end of the context,
some just before the end of a ring or of a span. Processor time, which other work on the machine changes little. Exit
status 1 where a logit differs.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click
import numpy as np

from gemma_edge.runtime.executors.base import Decoder, KvSlot
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from gemma_edge.runtime.executors.open import open_decoder
from gemma_edge.runtime.executors.placement import cache_folder
from gemma_edge.runtime.formats.model import open_model

STEPS = 12
"""Of each slot, to compare: past the end of a ring, and of a span."""


def filled(decoder: Decoder, position: int, seed: int) -> LitertSlot:
    """A slot with random keys and values before `position`."""
    slot, random = decoder.new_slot(), np.random.default_rng(seed)
    assert isinstance(slot, LitertSlot)
    for cache in slot.caches.values():
        cache[...] = random.standard_normal(cache.shape, np.float32)
    vars(slot).update(_tokens=[0] * position, _position=position, _high_water=position, _written=decoder.context_tokens)
    return slot


def differing(decoder: Decoder, slots: Sequence[KvSlot]) -> tuple[int, int]:
    """(rows compared, rows that differ) of steps taken together and alone; the slots are then where they were."""
    starts = [slot.position for slot in slots]
    alone = [[slot.decode(10 + step) for step in range(STEPS)] for slot in slots]
    for slot, start in zip(slots, starts, strict=True):
        slot.rewind(start)
    compared = wrong = 0
    for step in range(STEPS):
        groups = decoder.batches(slots)
        for group in groups:
            for slot, row in zip(group, decoder.decode_batch(group, [10 + step] * len(group)), strict=True):
                compared += 1
                wrong += not np.array_equal(row, alone[slots.index(slot)][step])
        for slot in {*slots}.difference(*groups):
            slot.decode(10 + step)
    for slot, start in zip(slots, starts, strict=True):
        slot.rewind(start)
    return compared, wrong


def step_s(decoder: Decoder, slots: Sequence[KvSlot]) -> float:
    """Processor time of a step of these; they are then where they were."""
    position, started = slots[0].position, time.process_time()
    if len(slots) == 1:
        slots[0].decode(9)
    else:
        decoder.decode_batch(slots, [9] * len(slots))
    seconds = time.process_time() - started
    for slot in slots:
        slot.rewind(position)
    return seconds


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=12, show_default=True)
@click.option("--position", default=256, show_default=True, help="Where steps are timed.")
def main(bundle: Path, threads: int, rounds: int, position: int) -> None:
    """Print what each size takes, and how many rows were compared."""
    decoder = open_decoder(open_model(bundle), threads, cache_folder(None, bundle, prefer_disk=True))
    if not decoder.batch_rows:
        raise click.UsageError(f"{bundle}: converted without --batch")
    context = decoder.context_tokens
    ends = [5, 60, 636, 1020, 1100, 1916, 3000, context - STEPS - 1]
    places = [place for place in ends if place < context - STEPS]
    slots = [filled(decoder, place, seed) for seed, place in enumerate(places)]
    compared, wrong = differing(decoder, slots)
    click.echo(f"{compared} rows compared, at positions from {min(places)} to {max(places) + STEPS}; {wrong} differ")
    for slot in slots:
        slot.close()

    most = decoder.batch_rows[-1]
    timed = [filled(decoder, position, seed) for seed in range(most)]
    taken: dict[int, list[float]] = {rows: [] for rows in (1, *decoder.batch_rows)}
    for _ in range(rounds):
        for rows, found in taken.items():
            found.append(step_s(decoder, timed[:rows]))
    one = median(taken[1])
    for rows, found in taken.items():
        steps = median(found) / one
        click.echo(
            f"{rows} at once {1000 * median(found):8.1f} ms, {steps:5.2f} steps, {rows / steps:5.2f} times as fast"
        )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
