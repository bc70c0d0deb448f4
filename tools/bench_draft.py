"""What guessing gains, by prompt lookup, a bundle's drafter or a draft model: decode with it and without, on text that
repeats and other.

    python -m tools.bench_draft BUNDLE [--tokens 150] [--rounds 1] [--sampled] [--draft-model NAME] [--json]
    python -m tools.bench_draft BUNDLE --costs  # what drafting and verifying take, whatever the text

The bundle is converted with --draft or --drafter. Each of 50 prompts (tools/draft_prompts.toml) is answered both ways,
in turns, on one thread; what is compared is processor time, which other work on the machine changes little. Exit status
1 where a text differs.
"""

import json
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click

from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.open import open_decoder, several_models
from gemma_edge.runtime.executors.placement import cache_folder
from gemma_edge.runtime.formats.model import open_model
from gemma_edge.runtime.text.sampler import SamplerConfig

PROMPTS = Path(__file__).parent / "draft_prompts.toml"
GREEDY = SamplerConfig(top_k=1)
SAMPLED = SamplerConfig(top_k=64, top_p=0.95, temperature=1.0, seed=1)


@dataclass
class Figures:
    """Of all prompts of a kind. Seconds of processor time, of decoding alone."""

    prompts: int = 0
    equal_texts: int = 0
    tokens: int = 0
    plain_s: float = 0.0
    guessed_s: float = 0.0
    drafted: int = 0
    accepted: int = 0
    verify_calls: int = 0
    gains: list[float] = field(default_factory=list)  # of each prompt

    @property
    def gain(self) -> float:
        """How many times as fast."""
        return self.plain_s / self.guessed_s


def prompts() -> Iterator[tuple[str, str]]:
    """(kind, prompt)."""
    found = tomllib.loads(PROMPTS.read_text())
    for form in found["copy"]:
        for document in found["documents"]:
            yield "copy", form.format(document.strip())
    yield from (("other", prompt) for prompt in found["other"])


def decode(
    engine: Engine, prompt: str, sampler: SamplerConfig, tokens: int, is_on: bool
) -> tuple[list[int], Any, float]:
    """The tokens, the timing of the turn, and the processor time of decoding."""
    with engine.create_session(
        apply_prompt_template=False,
        sampler_config=sampler,
        max_output_tokens=tokens,
        enable_speculative_decoding=is_on,
    ) as session:
        session.run_prefill([prompt])
        started = time.process_time()
        session.run_decode()
        return list(session.token_ids), session.timing, time.process_time() - started


def measure(engine: Engine, sampler: SamplerConfig, tokens: int, rounds: int) -> dict[str, Figures]:
    """By kind."""
    kinds: dict[str, Figures] = {}
    for kind, prompt in prompts():
        figures = kinds.setdefault(kind, Figures())
        seconds: dict[bool, list[float]] = {False: [], True: []}
        texts = []
        for _ in range(rounds):
            for is_on in (False, True):
                token_ids, timing, took_s = decode(engine, prompt, sampler, tokens, is_on)
                seconds[is_on].append(took_s)
                texts.append(token_ids)
        plain_s, guessed_s = min(seconds[False]), min(seconds[True])
        figures.prompts += 1
        figures.equal_texts += all(text == texts[0] for text in texts)
        figures.tokens += timing.decode_tokens
        figures.plain_s += plain_s
        figures.guessed_s += guessed_s
        figures.drafted += timing.drafted_tokens
        figures.accepted += timing.accepted_tokens
        figures.verify_calls += timing.verify_calls
        figures.gains.append(plain_s / guessed_s)
    return kinds


def costs(bundle: Path, threads: int, steps: int = 16) -> Iterator[tuple[str, float]]:
    """(what, processor time of one call in decode steps of the large model) at position 256; medians, in turns."""
    decoder = open_decoder(open_model(bundle), threads, cache_folder(None, bundle, prefer_disk=True), with_drafter=True)
    several = several_models(decoder)
    slots = {"decode": decoder.new_slot()}
    if several is not None:
        slots[f"decode {several.models[1]}"] = several.switched(decoder.new_slot(), several.models[1])
    prompt = [5 + 7 * at % 1000 for at in range(256)]
    for slot in slots.values():
        slot.prefill(prompt)
    large = slots["decode"]
    calls: dict[str, Callable[[], object]] = {name: partial(slot.decode, 9) for name, slot in slots.items()}
    for rows in large.verify_tokens():
        calls[f"verify {rows}"] = partial(large.verify, [9] * rows)
    if decoder.can_draft:
        drafting = decoder.new_slot()
        drafting.prefill(prompt[:-1])
        drafting.decode(prompt[-1])
        calls["draft"] = partial(drafting.draft, 9, 1)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(steps):
        for name, call in calls.items():
            started = time.process_time()
            call()
            seconds[name].append(time.process_time() - started)
            for slot in slots.values():
                slot.rewind(len(prompt))
    for name, taken in seconds.items():
        yield name, median(taken) / median(seconds["decode"])


@click.command()
@click.argument("bundle", type=click.Path(exists=True))
@click.option("--tokens", default=150, show_default=True, help="Of each reply, at most.")
@click.option("--rounds", default=1, show_default=True, help="Of each prompt; the best time of each way counts.")
@click.option("--sampled", is_flag=True, help="Sample, with a seed, instead of greedy.")
@click.option("--draft-model", help="The small one of two models in the bundle, in place of prompt lookup.")
@click.option("--costs", "only_costs", is_flag=True, help="Print what one call of each kind takes, in decode steps.")
@click.option("--json", "as_json", is_flag=True)
def main(
    bundle: str, tokens: int, rounds: int, sampled: bool, draft_model: str | None, only_costs: bool, as_json: bool
) -> None:
    """Print a table, or JSON."""
    if only_costs:
        for name, ratio in costs(Path(bundle), 1):
            click.echo(f"{name:16}{ratio:6.2f}")
        return
    one = Backend.CPU(thread_count=1)
    with Engine(bundle, one, enable_speculative_decoding=True, draft_model=draft_model) as engine:
        decode(engine, "A first one, to warm up:", GREEDY, 20, False)
        kinds = measure(engine, SAMPLED if sampled else GREEDY, tokens, rounds)
    if as_json:
        click.echo(json.dumps({kind: {**asdict(found), "gain": found.gain} for kind, found in kinds.items()}, indent=2))
    else:
        titles = ("prompts", "equal", "tokens", "drafted", "stood", "calls", "gain", "least")
        click.echo(f"{'':8}{''.join(f'{title:>8}' for title in titles)}")
        for kind, f in kinds.items():
            counts = (f.prompts, f.equal_texts, f.tokens, f.drafted, f.accepted, f.verify_calls)
            click.echo(f"{kind:8}{''.join(f'{count:8}' for count in counts)}{f.gain:8.2f}{min(f.gains):8.2f}")
    if any(figures.equal_texts < figures.prompts for figures in kinds.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
