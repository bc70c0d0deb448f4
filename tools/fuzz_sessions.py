"""Use slots of random conversions in random order: each says what plain decode steps say, to the bit.

    python -m tools.fuzz_sessions [--cases 200] [--seed 0] [--first 0]

A case converts a tiny model with spans, prefills, --draft, --batch, float16 caches and a recipe as they fall, and runs
prefills up to around every boundary, steps, verifications that are taken back, steps of several slots, copies, files,
snapshots and wrong calls. A slot of the same conversion without --draft and --batch stands beside each and takes a step
for each token. In float32 the logits are also those of transformers for the whole text.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.executors.base import ExecutorError, Logits
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.kv.saved import opened_state, save_state
from tools.fuzzing import WrongError, fuzz, options, report
from tools.tiny import TINY, write_tiny

_TOLERANCE = 0.02  # of logits over about +-12; transformers in float32 is off by 0.002 itself


@dataclass(eq=False)
class _Pair:
    """A slot, and the plain one beside it. tokens: what both hold. said: logits [V] after the token at a position."""

    slot: LitertSlot
    plain: LitertSlot
    tokens: list[int] = field(default_factory=list)
    said: dict[int, Logits] = field(default_factory=dict)

    @property
    def room(self) -> int:
        return self.slot.context_tokens - len(self.tokens)

    def ran(self, token_ids: Sequence[int], logits: Logits) -> None:
        """Compares logits [n, V] with those of steps."""
        off = np.abs(logits - np.stack([self.plain.decode(token_id) for token_id in token_ids])).max(axis=1)
        if off.any():
            raise WrongError(f"{len(token_ids)} tokens at {len(self.tokens)}: off by {off}")
        self.said |= dict(enumerate(logits, len(self.tokens)))
        self.tokens += token_ids


class _Game:
    """model: transformers'; None where it rounds otherwise. bounds: positions to go to. file: for what is saved."""

    def __init__(
        self, rng: random.Random, decoders: Sequence[LitertDecoder], model: Any, bounds: Sequence[int], file: Path
    ) -> None:
        self._rng, self._decoder, self._model, self._bounds, self._file = rng, decoders[0], model, bounds, file
        contexts = (None, None, None, rng.randint(1, decoders[0].context_tokens))
        self._pairs = [_Pair(decoders[0].new_slot(n), decoders[1].new_slot(n)) for n in contexts]

    def play(self) -> None:
        often = (self._prefill, self._steps, self._verify, self._batch, self._back)
        moves = (*often, *often, self._copy, self._return, self._wrong)
        for _ in range(120):
            self._rng.choice(moves)(self._rng.choice(self._pairs))
            if any(list(pair.slot.token_ids) != pair.tokens for pair in self._pairs):
                raise WrongError(f"holds {[(pair.slot.token_ids, pair.tokens) for pair in self._pairs]}")
        for pair in self._pairs:
            self._check(pair)

    def _check(self, pair: _Pair) -> None:
        """With transformers, before the text is another."""
        if pair.said and self._model is not None:
            with torch.no_grad():
                expected = self._model(torch.tensor([pair.tokens])).logits[0].numpy()
            off = {at: float(np.abs(logits - expected[at]).max()) for at, logits in pair.said.items()}
            if max(off.values()) > _TOLERANCE:
                raise WrongError(f"of {len(pair.tokens)} tokens, by position: off by {off}")
        pair.said.clear()

    def _tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(self._decoder.vocab_size) for _ in range(count)]

    def _prefill(self, pair: _Pair) -> None:
        """To a boundary or beside it, or stopped between two calls; and what is verified there."""
        to = self._rng.choice([*self._bounds, len(pair.tokens) + self._rng.randint(0, 20)]) + self._rng.randint(-2, 2)
        token_ids = self._tokens(min(pair.room, max(0, to - len(pair.tokens))))
        for _ in islice(pair.slot.chunks(token_ids), self._rng.choice((1, 2, 99, 99))):
            pass
        pair.tokens += token_ids[: pair.slot.position - len(pair.tokens)]
        pair.plain.set_state(pair.slot.state())  # steps would round otherwise
        self._verify(pair)

    def _steps(self, pair: _Pair) -> None:
        for token_id in self._tokens(min(pair.room, self._rng.choice((1, 1, 2, 9)))):
            pair.ran([token_id], pair.slot.decode(token_id)[np.newaxis])

    def _verify(self, pair: _Pair) -> None:
        if sizes := pair.slot.verify_tokens():
            token_ids = self._tokens(self._rng.randint(2, sizes[-1]))
            pair.ran(token_ids, pair.slot.verify(token_ids))
            self._rewind(pair, len(pair.tokens) - self._rng.randrange(len(token_ids)))

    def _batch(self, _pair: _Pair) -> None:
        by_slot = {id(pair.slot): pair for pair in self._pairs if pair.room and self._rng.random() < 0.7}
        for slots in self._decoder.batches([pair.slot for pair in by_slot.values()]):
            token_ids = self._tokens(len(slots))
            rows = self._decoder.decode_batch(slots, token_ids)
            for slot, token_id, row in zip(slots, token_ids, rows, strict=True):
                by_slot[id(slot)].ran([token_id], row[np.newaxis])

    def _back(self, pair: _Pair) -> None:
        lowest, position = pair.slot.earliest_rewind, len(pair.tokens)
        self._rewind(pair, self._rng.choice((lowest, max(lowest, position - 1), self._rng.randint(lowest, position))))

    def _rewind(self, pair: _Pair, position: int) -> None:
        self._check(pair)
        pair.slot.rewind(position)
        pair.plain.rewind(position)
        del pair.tokens[position:]

    def _copy(self, pair: _Pair) -> None:
        """To another slot, or through a file, to the same one as well."""
        other = self._rng.choice([each for each in self._pairs if each.slot.context_tokens >= len(pair.tokens)])
        self._check(other)
        if other is not pair:
            other.slot.set_state(pair.slot.state())
            other.plain.set_state(pair.plain.state())
            other.tokens = list(pair.tokens)
        if self._rng.random() < 0.5:
            save_state(pair.slot.state(), "", self._file)
            other.slot.reset()
            with opened_state(self._file, "") as state:
                other.slot.set_state(state)

    def _return(self, pair: _Pair) -> None:
        """To a snapshot, after something else."""
        mark, plain_mark, held = pair.slot.snapshot(), pair.plain.snapshot(), len(pair.tokens)
        for move in self._rng.choices((self._prefill, self._steps), k=3):
            move(pair)
        self._check(pair)
        pair.slot.restore(mark)
        pair.plain.restore(plain_mark)
        del pair.tokens[held:]

    def _wrong(self, pair: _Pair) -> None:
        """A call that is refused changes nothing."""
        slot = pair.slot
        calls: Sequence[Callable[[], None]] = (
            lambda: slot.prefill(self._tokens(pair.room + 1)),
            lambda: slot.prefill([self._decoder.vocab_size]),
            lambda: slot.rewind(len(pair.tokens) + 1),
            lambda: slot.rewind(slot.earliest_rewind - 1),
            lambda: slot.set_state(replace(slot.state(), arrays={})),
        )
        with suppress(ExecutorError):
            self._rng.choice(calls)()
            raise WrongError("a call that cannot be was taken")


def case(rng: random.Random, folder: Path) -> Callable[[], None]:
    """A conversion, and what is done with it."""
    name, recipe, context = rng.choice(list(TINY)), rng.choice(("fp32", "fp32", "int8", "int4")), rng.randint(24, 160)
    prefill = sorted(rng.sample(range(1, 25), rng.randint(1, 3)))
    spans = sorted(rng.sample(range(1, 100), rng.randint(0, 2)))
    draft, batch = (sorted(rng.sample(range(2, 9), rng.randint(0, 2))) for _ in range(2))
    asked: dict[str, Any] = {"context": context, "prefill": prefill, "spans": spans, "measure": False}
    asked["kv"] = rng.choice(("fp32", "fp32", "fp16"))

    def work() -> None:
        torch.set_num_threads(1)  # a fork has no others
        model = write_tiny(name, folder / "checkpoint")
        decoders: list[LitertDecoder] = []
        for more in ({"draft": [n for n in draft if n <= prefill[-1]], "batch": batch}, {}):
            out = folder / f"{len(decoders)}.litertlm"
            convert(f"custom-{recipe}", folder / "checkpoint", out, **{**asked, **more})
            decoders.append(LitertDecoder(DecoderSections.of(Bundle.open(out)), 1, None))
        window = TINY[name].config["sliding_window"]
        bounds = [*prefill, *spans, window, window + prefill[-1], 2 * (window + prefill[-1]), context]
        _Game(rng, decoders, model if recipe == asked["kv"] == "fp32" else None, bounds, folder / "saved.kv").play()

    return work


@click.command()
@options
def main(cases: int, seed: int, first: int) -> None:
    """Try random conversions."""
    report(fuzz(case, cases=cases, seed=seed, first=first, limit_s=120.0))


if __name__ == "__main__":
    main()
