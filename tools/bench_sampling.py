"""What choosing a token takes, and decoding by a response format against decoding freely; as Markdown tables.

    python -m tools.bench_sampling [--rounds 3]                   # choosing alone, of 262,144 logits
    python -m tools.bench_sampling BUNDLE [--rounds 3]            # decoding, by several JSON schemas

Tokens are those of tools/real_model.py, also where a bundle of random weights has a smaller tokenizer. Every text is
written with and without its format: its next token is made the likeliest, so only the cost differs. It is processor
time, which other work on the machine changes little, and wall time. Where the bundle was converted with --draft, the
last columns have forced tokens run ahead. Exit status 1 where a text differs.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import click
import numpy as np

from gemma_edge.converter.tokenizer.tokenizer import sentencepiece_model
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.executors.base import Logits
from gemma_edge.runtime.executors.open import open_decoder
from gemma_edge.runtime.executors.placement import cache_folder
from gemma_edge.runtime.formats.model import open_model
from gemma_edge.runtime.kv.drafter import Forced
from gemma_edge.runtime.kv.generate import Decoding, StopTokens, draw
from gemma_edge.runtime.kv.prices import Prices
from gemma_edge.runtime.kv.speculation import Speculating, Speculation
from gemma_edge.runtime.text.constraints import ConstraintFactory, ResponseFormat
from gemma_edge.runtime.text.penalties import Penalties, RepetitionPenaltyConfig
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig
from gemma_edge.runtime.text.tokenizer import Tokenizer
from tools.real_model import real_model

VOCABULARY_TOKENS = 262_144
PROMPT_TOKENS = 256
MOST_TOKENS = 400
STOP = [1, 106]  # <eos>, <end_of_turn>
STOPS = StopTokens([[token_id] for token_id in STOP])
GREEDY = SamplerConfig(top_k=1)
SAMPLERS = {
    "greedy": GREEDY,
    "top-k 64, top-p 0.95, temperature 1": SamplerConfig(top_k=64, top_p=0.95, temperature=1.0, seed=1),
    "top-k 1024": SamplerConfig(top_k=1024, top_p=0.95, temperature=1.0, seed=1),
}
PENALTIES = Penalties(RepetitionPenaltyConfig(1.1, 0.1, 0.1))


def _object(**properties: Any) -> dict[str, Any]:
    names = list(properties)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


_TEXT, _NUMBER = {"type": "string"}, {"type": "number"}
_PERSON = _object(
    full_name=_TEXT,
    date_of_birth={"type": "string", "format": "date"},
    email_addresses={"type": "array", "items": {"type": "string", "format": "email"}},
)
_ITEM = _object(product_name=_TEXT, quantity={"type": "integer", "minimum": 1, "maximum": 99}, unit_price=_NUMBER)
_ORDER = _object(
    order_number={"type": "integer"},
    customer=_object(first_name=_TEXT, last_name=_TEXT, shipping_address=_TEXT),
    items={"type": "array", "items": _ITEM, "maxItems": 5},
)


def _summary(max_length: int) -> dict[str, Any]:
    return _object(summary={"type": "string", "maxLength": max_length})


_NOVEL = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families."
)
# fmt: off
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "a label": (
        _object(sentiment={"enum": ["positive", "negative", "neutral"]}, confidence=_NUMBER),
        {"sentiment": "positive", "confidence": 0.93},
    ),
    "a person": (_PERSON, {
        "full_name": "Ada Lovelace", "date_of_birth": "1815-12-10",
        "email_addresses": ["ada@example.org", "lovelace@example.com"],
    }),
    "an order": (_ORDER, {
        "order_number": 48213,
        "customer": {"first_name": "Jane", "last_name": "Austen", "shipping_address": "8 College Street"},
        "items": [
            {"product_name": "quill pens", "quantity": 12, "unit_price": 0.75},
            {"product_name": "black ink", "quantity": 2, "unit_price": 3.5},
        ],
    }),
    "a long text": (_summary(400), {"summary": _NOVEL}),
}
# fmt: on
IN_STRING = {"within a string": (400, 4, -3), "at the end of its maxLength": (len(_NOVEL), -7, -3)}
"""What of the long text is counted by itself: its maxLength, and from which to which token."""


@dataclass
class Written:
    """One text. choosing_s: processor time of each token, from its logits until it is drawn and accepted."""

    text: str = ""
    tokens: int = 0
    choosing_s: list[float] = field(default_factory=list)
    forced_tokens: int = 0
    processor_s: float = 0.0
    wall_s: float = 0.0


def write(tokenizer: Tokenizer, text: str, step: Callable[[list[int]], Logits], how: Decoding) -> Written:
    """Draw a text with `draw`, token by token. step: the model's logits [V] after these tokens of it."""
    found, written = Written(), list[int]()
    given = started = time.process_time()
    began = time.perf_counter()

    def decode(_last: int) -> Logits:
        nonlocal given
        if written:
            found.choosing_s.append(time.process_time() - given)
        logits = step(written).copy()
        rest = text[len(tokenizer.decode(written)) :]
        logits[tokenizer.encode(rest)[0] if rest else STOP[1]] = 1e4
        given = time.process_time()
        return logits

    for drawn in draw(decode, STOP[0], MOST_TOKENS, how):
        written.append(drawn.token_id)
    found.choosing_s.append(time.process_time() - given)
    found.processor_s, found.wall_s = time.process_time() - started, time.perf_counter() - began
    found.tokens, found.text = len(written), tokenizer.decode(written[:-1])
    return found


def choices(tokenizer: Tokenizer, rounds: int) -> Iterator[tuple[str, list[float]]]:
    """(what, processor seconds of each token); without a model."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(scale=4, size=VOCABULARY_TOKENS).astype(np.float32) for _ in range(8)]
    factory = ConstraintFactory(tokenizer, STOP)

    def seconds(config: SamplerConfig, penalties: Penalties, value: Any, schema: Any = None) -> list[float]:
        found = list[float]()
        for _ in range(rounds):
            constraint = None if schema is None else factory.create(ResponseFormat.json(schema))
            how = Decoding(Sampler(config), STOPS, penalties, constraint)
            written = write(tokenizer, json.dumps(value), lambda ids: arrays[len(ids) % len(arrays)], how)
            found += written.choosing_s
        return found

    for sampler, config in SAMPLERS.items():
        for name, penalties in ((sampler, Penalties()), (f"{sampler}, penalties", PENALTIES)):
            draw_all = partial(seconds, config, penalties)
            yield name, [s for schema, value in CASES.values() for s in draw_all(value)]
            yield f"{name}, JSON schema", [s for schema, value in CASES.values() for s in draw_all(value, schema)]
            for what, (most, begin, end) in IN_STRING.items():
                taken = draw_all({"summary": _NOVEL}, _summary(most))
                tokens = len(taken) // rounds
                within = [s for at in range(0, len(taken), tokens) for s in taken[at : at + tokens][begin:end]]
                yield f"{name}, {what}", within


class Model:
    """A bundle that writes texts. prices: of its verifying calls."""

    def __init__(self, bundle: Path, tokenizer: Tokenizer) -> None:
        self._slot = open_decoder(open_model(bundle), 1, cache_folder(None, bundle, prefer_disk=True)).new_slot()
        self._tokenizer = tokenizer
        self._factory = ConstraintFactory(tokenizer, STOP)
        self._prices = Prices()
        self.can_verify = bool(self._slot.verify_tokens())

    def write(self, text: str, schema: dict[str, Any] | None, is_ahead: bool = False) -> Written:
        """After a prompt that is not counted. is_ahead: forced tokens run in one call."""
        prompt = [5 + 7 * at % 1000 for at in range(PROMPT_TOKENS)]
        slot = self._slot
        slot.reset()
        slot.prefill(prompt[:-1])
        constraint = None if schema is None else self._factory.create(ResponseFormat.json(schema))
        ways = [Speculating(partial(Forced, constraint.forced), self._prices)] if constraint and is_ahead else []
        steps, forced = Speculation(ways, PROMPT_TOKENS + MOST_TOKENS), 0

        def step(written: list[int]) -> Logits:
            nonlocal forced
            logits = steps.decode(slot, [*prompt, *written])
            forced += steps.last.is_forced
            return logits

        found = write(self._tokenizer, text, step, Decoding(Sampler(GREEDY), STOPS, constraint=constraint))
        steps.settle(slot.position)
        found.forced_tokens = forced
        return found


def decoding(model: Model, rounds: int) -> Iterator[tuple[str, list[Written]]]:
    """(case, its text written freely, by its schema, and where the model can, with forced tokens ahead); the best of
    several rounds, which take turns."""
    model.write("warm up", None)
    for case, (schema, value) in CASES.items():
        ways = [partial(model.write, schema=None), partial(model.write, schema=schema)]
        if model.can_verify:
            ways.append(partial(model.write, schema=schema, is_ahead=True))
        taken = [[way(json.dumps(value)) for way in ways] for _ in range(rounds)]
        yield case, [min(of_way, key=lambda found: found.processor_s) for of_way in zip(*taken, strict=True)]


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _decoding_rows(model: Model, rounds: int) -> Iterator[tuple[str, bool]]:
    """(a row, whether its texts are equal)."""
    for case, (free, by_schema, *others) in decoding(model, rounds):
        milliseconds = [
            f"{1e3 * found.processor_s / found.tokens:.1f} ({1e3 * found.wall_s / found.tokens:.1f})"
            for found in (free, by_schema, *others)
        ]
        gains = [f"{free.processor_s / found.processor_s:.2f}" for found in (by_schema, *others)]
        forced = [str(found.forced_tokens) for found in others]
        is_equal = all(found.text == free.text for found in (by_schema, *others))
        columns = (case, free.tokens, *milliseconds, *gains, *forced, "equal" if is_equal else "DIFFERENT")
        yield _row(*columns), is_equal


@click.command()
@click.argument("bundle", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=3, show_default=True)
def main(bundle: Path | None, rounds: int) -> None:
    """Print a table."""
    try:
        tokenizer = Tokenizer(sentencepiece_model(real_model().checkpoint, VOCABULARY_TOKENS))
        click.echo(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
        if bundle is None:
            click.echo(_row("processor time of a token, ms", "median", "mean") + "\n" + _row(*["---"] * 3))
            for what, seconds in choices(tokenizer, rounds):
                click.echo(_row(what, f"{1e3 * median(seconds):.3f}", f"{1e3 * mean(seconds):.3f}"))
            return
        model = Model(bundle, tokenizer)
    except GemmaEdgeError as error:
        raise click.ClickException(str(error)) from error
    times = ["free", "by its schema", *(["forced ahead"] if model.can_verify else [])]
    gains = ["free / schema", *(["free / ahead", "forced"] if model.can_verify else [])]
    titles = ("ms a token, processor (wall)", "tokens", *times, *gains, "texts")
    click.echo(_row(*titles) + "\n" + _row(*["---"] * len(titles)))
    equal = []
    for row, is_equal in _decoding_rows(model, rounds):
        click.echo(row)
        equal.append(is_equal)
    if not all(equal):
        sys.exit(1)


if __name__ == "__main__":
    main()
