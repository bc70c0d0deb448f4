"""Speculative decoding: the text is that of plain steps, whatever is guessed, and guessing that does not pay rests."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from gemma_edge.runtime.cli import run_main
from gemma_edge.runtime.config import Backend, ConfigError
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import KvSlot
from gemma_edge.runtime.kv.drafter import Drafter
from gemma_edge.runtime.kv.generate import Decoding, StopTokens, TurnTiming, draw
from gemma_edge.runtime.kv.prices import Prices
from gemma_edge.runtime.kv.speculation import Speculating, Speculation
from gemma_edge.runtime.litert_lm_engine import LitertLmEngine
from gemma_edge.runtime.text.constraints import ResponseFormat
from gemma_edge.runtime.text.penalties import NoRepeatNgramConfig, Penalties, RepetitionPenaltyConfig
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig, SamplerError

GREEDY = SamplerConfig(top_k=1)
SAMPLED = SamplerConfig(top_k=20, top_p=0.98, temperature=1.0, seed=7)


@dataclass
class Guesses:
    """A drafter that is told what to say: the text that follows, `right` tokens of it and then others."""

    text: Sequence[int]
    right: int

    def propose(self, history: Sequence[int], n: int, _slot: KvSlot) -> Sequence[int]:
        rest = self.text[len(history) : len(history) + n]
        return [token if i < self.right else (token + 1) % 100 for i, token in enumerate(rest)]


@dataclass
class Steps:
    """A slot that answers at once: after token t, the likeliest is t + 1 of 50. What it was asked is kept."""

    tokens: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        return len(self.tokens)

    def verify_tokens(self) -> Sequence[int]:
        return (4, 8)

    def decode(self, token_id: int) -> NDArray[np.float32]:
        return self._run([token_id]).reshape(-1)

    def verify(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return self._run(token_ids)

    def _run(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        self.calls.append(len(token_ids))
        self.tokens.extend(token_ids)
        logits: NDArray[np.float32] = np.eye(50, dtype=np.float32)[(np.asarray(token_ids) + 1) % 50]
        return logits

    def rewind(self, position: int) -> None:
        del self.tokens[position:]


def reply(slot: KvSlot, drafter: Drafter, prompt: list[int], count: int, how: Decoding) -> tuple[list[int], int]:
    """Drawn tokens, and how many of them came with an earlier call; as `reply_steps` draws them."""
    tokens, accepted = list(prompt), 0
    steps = Speculation([Speculating(lambda: drafter)], len(prompt) + count)
    for drawn in draw(lambda _: steps.decode(slot, tokens), prompt[-1], count, how):
        tokens.append(drawn.token_id)
        accepted += steps.last.is_accepted
    steps.settle(len(tokens) - 1)
    return tokens[len(prompt) :], accepted


def greedy() -> Decoding:
    return Decoding(Sampler(GREEDY), StopTokens([]))


@pytest.mark.parametrize("right", [0, 1, 2, 7])
def test_guesses_change_nothing_but_the_calls(right: int) -> None:
    slot, text = Steps([0, 1, 2]), [i % 50 for i in range(300)]
    drawn, accepted = reply(slot, Guesses(text, right), text[:4], 150, greedy())  # type: ignore[arg-type]
    assert drawn == text[4:154]
    assert slot.tokens == text[:153]  # the last one was not run, and nothing that was only guessed is held
    assert len(slot.calls) + accepted == 150
    if right == 0:
        # A call that verifies costs half a step here, and a step may be lost, and one more in a hundred.
        assert sum(rows > 1 for rows in slot.calls) <= 2 * (1 + 150 / 100) + 1
    if right == 7:
        assert slot.calls[:3] == [4, 8, 8]
        assert accepted > 100


@pytest.mark.parametrize("sampler", [GREEDY, SAMPLED])
def test_penalties_that_leave_no_token_are_named_beside_guesses(sampler: SamplerConfig) -> None:
    slot, text = Steps([]), [i % 50 for i in range(300)]
    how = Decoding(Sampler(sampler), StopTokens([]), Penalties(no_repeat_ngram=NoRepeatNgramConfig(1)))
    with pytest.raises(SamplerError) as caught:
        reply(slot, Guesses(text, 7), text[:1], 60, how)  # type: ignore[arg-type]
    assert str(caught.value) == "no_repeat_ngram_config forbids all 50 tokens; allow some of them"
    assert max(slot.calls) > 1


def test_guesses_that_a_slot_no_longer_holds_count_for_nothing() -> None:
    """Another model ran meanwhile, and the slot was brought back to what was drawn."""
    slot, text = Steps([]), [i % 50 for i in range(100)]
    steps = Speculation([Speculating(lambda: Guesses(text, 7))], 100)
    for length in range(1, 30):
        slot.rewind(length - 1)
        assert np.argmax(steps.decode(slot, text[:length])) == text[length]  # type: ignore[arg-type]
        assert slot.tokens[:length] == text[:length]
    assert not steps.last.is_accepted


@pytest.mark.parametrize(("known", "right"), [(100, 7), (300, 0)], ids=["falls silent", "is always wrong"])
def test_of_two_ways_the_second_guesses_where_the_first_does_not(known: int, right: int) -> None:
    slot, text, accepted = Steps([]), [i % 50 for i in range(300)], 0
    ways = [Speculating(lambda: Guesses(text[:known], right)), Speculating(lambda: Guesses(text, 7))]
    steps = Speculation(ways, 300)
    for length in range(1, 250):
        assert np.argmax(steps.decode(slot, text[:length])) == text[length]  # type: ignore[arg-type]
        accepted += steps.last.is_accepted
    assert accepted > 200  # of at most 7 in 8


def test_nothing_is_guessed_beyond_the_end() -> None:
    slot, text = Steps([]), [i % 50 for i in range(100)]
    drawn, _ = reply(slot, Guesses(text, 7), text[:1], 5, greedy())  # type: ignore[arg-type]
    assert (drawn, slot.calls) == (text[1:6], [4, 1])


@pytest.fixture(autouse=True)
def _price(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of tiny models take what Python takes: nothing shall depend on that here."""
    if "price" not in request.function.__name__:
        monkeypatch.setattr(Prices, "of", lambda _self, _tokens: 1.5)


def test_a_price_is_that_of_the_last_calls() -> None:
    prices = Prices()
    for seconds in (0.4, 0.1, 0.1, 0.1):
        prices.add(1, seconds)
    for seconds in (0.9, 0.9):
        prices.add(4, seconds)
    assert prices.of(4) == 1.5  # as usual, until it is known
    prices.add(4, 0.2)
    assert prices.of(4) == pytest.approx(2.0)
    for _ in range(9):
        prices.add(4, 0.13)
    assert prices.of(4) == pytest.approx(1.3)
    for _ in range(9):
        prices.add(4, 0.05)
    assert prices.of(4) == 1.0


def test_where_it_cannot_pay_nothing_is_guessed_price_or_no_price() -> None:
    slot, text = Steps([]), [i % 50 for i in range(100)]
    how = Speculating(lambda: Guesses(text, 7))
    for rows, seconds in ((1, 1.0), (4, 4.1), (8, 8.1)):
        for _ in range(3):
            how.prices.add(rows, seconds)
    steps = Speculation([how], 100)
    for length in range(1, 60):
        assert np.argmax(steps.decode(slot, text[:length])) == text[length]  # type: ignore[arg-type]
    assert set(slot.calls) == {1}


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def engine(
    request: pytest.FixtureRequest, drafting_bundle: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    with Engine(
        str(drafting_bundle(request.param)),
        Backend.CPU(thread_count=1),
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        enable_speculative_decoding=True,
    ) as made:
        yield made


def tokens_of(engine: Engine, sampler: SamplerConfig, prompt: list[int], is_on: bool, **how: object) -> list[int]:
    sequence = engine.new_sequence(enable_speculative_decoding=is_on)
    turn = sequence.reply(prompt, Decoding(Sampler(sampler), StopTokens([]), **how))  # type: ignore[arg-type]
    tokens = list(turn)
    timing = turn.timing
    assert timing.decode_tokens == len(tokens)
    if not is_on:
        assert (timing.drafted_tokens, timing.accepted_tokens, timing.verify_calls) == (0, 0, 0)
    else:
        assert timing.accepted_tokens <= timing.drafted_tokens
        assert timing.verify_calls <= timing.drafted_tokens
    return tokens


@pytest.mark.parametrize("sampler", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_text_is_that_of_plain_steps(engine: Engine, val_bin: Path, sampler: SamplerConfig) -> None:
    text = np.fromfile(val_bin, np.uint16).tolist()
    for start in range(0, 2500, 500):
        prompt = text[start : start + 60]
        prompt = [*prompt, *prompt[:20]]  # there is something to copy
        plain, guessed = (tokens_of(engine, sampler, prompt, is_on, max_output_tokens=150) for is_on in (False, True))
        assert plain == guessed


def test_it_saves_calls_and_says_so(engine: Engine, val_bin: Path) -> None:
    prompt = np.fromfile(val_bin, np.uint16)[:40].tolist()
    with engine.create_session(apply_prompt_template=False, sampler_config=GREEDY, max_output_tokens=300) as session:
        session.run_prefill([engine.detokenize(prompt * 3)])
        session.run_decode()
        timing, info = session.timing, session.get_benchmark_info()
    assert 0 < timing.accepted_tokens <= timing.drafted_tokens
    assert (info.last_drafted_token_count, info.last_accepted_token_count, info.last_verify_count) == (
        timing.drafted_tokens,
        timing.accepted_tokens,
        timing.verify_calls,
    )


def test_with_all_that_changes_logits(engine: Engine, val_bin: Path) -> None:
    prompt = np.fromfile(val_bin, np.uint16)[:30].tolist() * 3
    penalties = Penalties(
        RepetitionPenaltyConfig(1.2, 0.1, 0.1, 30), NoRepeatNgramConfig(4), bias={prompt[3]: 2.0, prompt[4]: -3.0}
    )
    for sampler in (GREEDY, SAMPLED):
        plain, guessed = (
            tokens_of(engine, sampler, prompt, is_on, penalties=penalties, max_output_tokens=100, best=3)
            for is_on in (False, True)
        )
        assert plain == guessed


def test_with_a_response_format(engine: Engine) -> None:
    wanted = ResponseFormat.json({"type": "array", "items": {"enum": ["once", "upon"]}, "minItems": 6, "maxItems": 6})
    replies = []
    for is_on in (False, True):
        with engine.create_conversation(
            enable_speculative_decoding=is_on, sampler_config=SAMPLED, max_output_tokens=200
        ) as conversation:
            replies.append(str(conversation.send_message('Say ["once", "upon", "once"].', response_format=wanted)))
            usage = conversation.usage
    assert replies[0] == replies[1]
    assert usage.generated > 10


@pytest.mark.parametrize("sampler", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_what_the_format_forces_needs_no_step(engine: Engine, sampler: SamplerConfig) -> None:
    """Tokens and log probabilities are those of plain steps, with penalties and up to a limit in the middle as well."""
    plain, fast = (_people(engine, sampler, is_on) for is_on in (False, True))
    assert [drawn for drawn, _ in plain] == [drawn for drawn, _ in fast]
    assert all(timing.forced_tokens == 0 for _, timing in plain)
    for drawn, timing in fast:
        assert 0 < timing.forced_tokens < len(drawn)
        assert timing.accepted_tokens <= timing.drafted_tokens


def _people(engine: Engine, sampler: SamplerConfig, is_on: bool) -> list[tuple[list[object], TurnTiming]]:
    """What was drawn with its log probabilities, and the timing: of three replies in one format."""
    keys = ("first_name", "date_of_birth")
    schema = {"type": "object", "properties": {key: {"enum": ["once", "upon"]} for key in keys}, "required": [*keys]}
    wanted = ResponseFormat.json({**schema, "additionalProperties": False})
    replies: list[tuple[list[object], TurnTiming]] = []
    repeating = Penalties(RepetitionPenaltyConfig(1.3, 0.2, 0.1))
    for penalties, limit in ((Penalties(), 60), (repeating, 60), (Penalties(), 7)):
        constraint = engine.text_model.constraint(wanted)
        how = Decoding(Sampler(sampler), engine.text_model.stop, penalties, constraint, limit, best=2)
        turn = engine.new_sequence(enable_speculative_decoding=is_on).reply(engine.tokenize("Who is it?"), how)
        replies.append(([(token, turn.drawn.scores if turn.drawn else None) for token in turn], turn.timing))
    return replies


def test_the_distribution_is_the_models(engine: Engine, val_bin: Path) -> None:
    """Chi-square of the second token, whose logits come from a guess that stood or from a step after one that did not.

    Given the first token, it is drawn from the model's distribution, which is computed from plain steps.
    """
    prompt = np.fromfile(val_bin, np.uint16)[200:230].tolist()
    slot = engine._decoder.new_slot()
    slot.prefill(prompt[:-1])
    start = slot.position
    after: dict[tuple[int, ...], NDArray[np.float32]] = {(): slot.decode(prompt[-1])}
    likely = np.argsort(-after[()])[:3].tolist()
    for first in likely:
        after[first,] = slot.decode(first)
        slot.rewind(start + 1)
    slot.rewind(start)
    sampler = Sampler(SamplerConfig(top_k=3, top_p=1.0, temperature=1.5, seed=11))
    guesses = Guesses([*prompt, likely[0], int(np.argmax(after[likely[0],])), 5, 5], 9)
    speculating = partial(Speculation, [Speculating(lambda: guesses)], len(prompt) + 4)
    counts: dict[tuple[int, int], int] = {}
    draws, accepted = 600, 0
    for _ in range(draws):
        steps, tokens = speculating(), list(prompt)
        how = Decoding(sampler, StopTokens([]))
        for drawn in draw(partial(lambda s, t, _: s.decode(slot, t), steps, tokens), prompt[-1], 2, how):
            tokens.append(drawn.token_id)
        accepted += steps.last.is_accepted
        steps.settle(start)
        pair = (tokens[-2], tokens[-1])
        counts[pair] = counts.get(pair, 0) + 1

    def probabilities(logits: NDArray[np.float32]) -> dict[int, float]:
        best = np.argsort(-logits)[:3]
        weights = np.exp((logits[best] - logits[best[0]]).astype(np.float64) / 1.5)
        return dict(zip(best.tolist(), weights / weights.sum(), strict=True))

    expected = {
        (first, second): p * q * draws
        for first, p in probabilities(after[()]).items()
        for second, q in probabilities(after[first,]).items()
    }
    assert counts.keys() <= expected.keys()
    statistic = sum((counts.get(pair, 0) - n) ** 2 / n for pair, n in expected.items())
    assert statistic < 26.1  # chi-square with 8 degrees of freedom exceeds it once in 1000
    assert 0 < accepted < draws  # both ways were taken


def test_it_is_refused_where_nothing_verifies(tiny_model: Path, tmp_path: Path) -> None:
    message = (
        "enable_speculative_decoding: .* cannot verify what is guessed; leave it out, or convert to .litertlm with"
    )
    cpu = Backend.CPU(thread_count=1)
    with pytest.raises(ConfigError, match=message):
        Engine(str(tiny_model), cpu, cache_dir=str(tmp_path), enable_speculative_decoding=True)
    with Engine(str(tiny_model), cpu, cache_dir=str(tmp_path)) as engine:
        with pytest.raises(ConfigError, match=message):
            engine.create_session(enable_speculative_decoding=True)
        slot = engine._decoder.new_slot()
        assert not slot.verify_tokens()


def test_litert_lm_runs_the_bundle_as_any_other(drafting_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    path = str(drafting_bundle("gemma3n"))
    cpu = Backend.CPU(thread_count=1)
    replies = []
    for engine in (Engine(path, cpu, cache_dir=str(tmp_path)), LitertLmEngine(path, cpu, cache_dir=str(tmp_path))):
        with engine, engine.create_conversation(sampler_config=GREEDY, max_output_tokens=60) as conversation:
            replies.append(str(conversation.send_message("And the LORD said unto")))
    assert replies[0] == replies[1]
    assert len(replies[0]) > 20


def test_the_command_line(drafting_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    arguments = [str(drafting_bundle("gemma3")), "--prompt", "And God said, And God said,", "--speculative-decoding"]
    arguments += ["--greedy", "--max-output-tokens", "80", "--threads", "1", "--stats", "--cache-dir", str(tmp_path)]
    shown = CliRunner().invoke(run_main, arguments)
    assert shown.exit_code == 0
    assert re.search(r"; guessed \d+ in \d+ calls, \d+ saved a call; ", shown.stderr)
    plain = CliRunner().invoke(run_main, [*arguments, "--no-speculative-decoding"])
    assert plain.stdout == shown.stdout
    assert "guessed" not in plain.stderr
    refused = CliRunner().invoke(run_main, [*arguments, "--executor", "litert-lm"])
    assert refused.exit_code == 2
    assert "our own executor alone is told how to guess; leave out --executor" in refused.stderr


def test_two_replies_at_once_are_each_as_alone(engine: Engine, val_bin: Path) -> None:
    text = np.fromfile(val_bin, np.uint16)[1000:1090].tolist()
    prompts = [text[:30] * 2, text[30:60] * 2]
    alone = [tokens_of(engine, GREEDY, prompt, False, max_output_tokens=60) for prompt in prompts]
    how = [Decoding(Sampler(GREEDY), StopTokens([]), max_output_tokens=60) for _ in prompts]
    sequences = [engine.new_sequence() for _ in prompts]
    turns = [sequence.reply(prompt, each) for sequence, prompt, each in zip(sequences, prompts, how, strict=True)]
    together: list[list[int]] = [[], []]
    for pair in zip(*turns, strict=True):
        for tokens, token in zip(together, pair, strict=True):
            tokens.append(token)
    assert together == alone
    assert [list(sequence.token_ids) for sequence in sequences] == [
        [*p, *t] for p, t in zip(prompts, alone, strict=True)
    ]
