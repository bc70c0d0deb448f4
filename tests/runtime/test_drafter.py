"""A bundle's drafter guesses for our own runtime: what transformers' assistant guesses, and the text stays the same."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_edge.converter.calibrate.planning import plan_for
from gemma_edge.converter.convert import convert
from gemma_edge.converter.plan.target import Target
from gemma_edge.profiles.costs import CALL_ANON_BYTES
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import BundleMismatchError, KvSlot
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.executors.litert.footprint import BundlePlan
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.kv.drafter import BundledDrafter
from gemma_edge.runtime.kv.generate import Decoding, StopTokens, TurnTiming
from gemma_edge.runtime.kv.prices import Prices
from gemma_edge.runtime.kv.speculation import Speculating
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig
from tests.drafters import DRAFTS, NAME, OPTIONS, PROMPTS, Pair, expected, made
from tools.tiny_drafter import write_drafter

GREEDY = SamplerConfig(top_k=1)
SAMPLED = SamplerConfig(top_k=20, top_p=0.98, temperature=0.5, seed=7)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return made(tmp_path_factory.mktemp("drafter"), None)


@pytest.fixture(scope="module")
def echoing(pair: Pair) -> Callable[[str], Path]:
    """By precision: with an assistant that is often right, in int4 by clusters; a span, and no --draft."""

    def bundle(precision: str) -> Path:
        path = pair.folder / f"echo-{precision}.litertlm"
        if not path.exists():
            table = pair.model.get_input_embeddings().weight
            clusters = (64, 48) if precision == "int4" else None
            drafter = pair.folder / f"echo-{precision}"
            write_drafter(NAME, drafter, echoed=table, clusters=clusters)
            convert(f"custom-{precision}", pair.folder / "model", path, measure=False, **asked(precision, drafter))
        return path

    return bundle


@pytest.fixture(autouse=True)
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a tiny model takes no longer than Python does: guessing would rest."""
    monkeypatch.setattr(Prices, "of", lambda _self, _tokens: 1.0)


def asked(precision: str, drafter: Path) -> dict[str, Any]:
    kv = "fp16" if precision == "int4" else "fp32"
    return {"context": 128, "prefill": (8, 32), "spans": (40,), "kv": kv, "drafter": drafter}


def opened(bundle: Path, is_on: bool | None = None) -> Engine:
    cache_dir = str(bundle.parent / "cache")
    return Engine(str(bundle), Backend.CPU(thread_count=1), cache_dir=cache_dir, enable_speculative_decoding=is_on)


@pytest.fixture(params=["fp32", "int4"])
def engine(echoing: Callable[[str], Path], request: pytest.FixtureRequest) -> Iterator[Engine]:
    with opened(echoing(request.param)) as made:
        yield made


def written(engine: Engine, prompt: str, sampler: SamplerConfig, is_on: bool) -> tuple[list[int], TurnTiming]:
    """Until the context is full: past the span, and round the rings."""
    sequence = engine.new_sequence(enable_speculative_decoding=is_on)
    turn = sequence.reply([2, *engine.tokenize(prompt)], Decoding(Sampler(sampler), StopTokens([])))
    return list(turn), turn.timing


def test_the_text_is_that_of_plain_steps(engine: Engine) -> None:
    """Greedy by the drafter alone; sampled, where the text is looked up first."""
    first = (GREEDY, [Speculating(BundledDrafter)], PROMPTS)
    for sampler, ways, prompts in (first, (SAMPLED, engine._speculating, PROMPTS[:2])):
        engine._speculating = ways
        drafted = accepted = 0
        for prompt in prompts:
            plain, nothing = written(engine, prompt, sampler, False)
            guessed, timing = written(engine, prompt, sampler, True)
            assert guessed == plain
            assert nothing.drafted_tokens == 0
            drafted, accepted = drafted + timing.drafted_tokens, accepted + timing.accepted_tokens
        print(f"{accepted} of {drafted} stood")
        assert drafted > accepted > drafted / 25


def test_turns_of_two_conversations_are_each_as_alone(engine: Engine) -> None:
    how = [Decoding(Sampler(GREEDY), StopTokens([]), max_output_tokens=50) for _ in range(4)]
    alone = [written(engine, prompt, GREEDY, False)[0][:50] for prompt in PROMPTS[:4]]
    turns = [
        engine.new_sequence().reply([2, *engine.tokenize(prompt)], each)
        for prompt, each in zip(PROMPTS, how, strict=False)
    ]
    together = [list(tokens) for tokens in zip(*zip(*turns, strict=True), strict=True)]
    assert together == alone
    assert all(turn.timing.accepted_tokens for turn in turns)


def test_a_conversation_goes_on(engine: Engine) -> None:
    said = []
    for is_on in (False, True):
        with engine.create_conversation(
            sampler_config=GREEDY, max_output_tokens=12, enable_speculative_decoding=is_on
        ) as conversation:
            said.append([str(conversation.send_message(prompt)) for prompt in PROMPTS[1:4]])
    assert said[0] == said[1]


def slot_of(pair: Pair) -> KvSlot:
    sections = DecoderSections.of(Bundle.open(pair.bundle), with_drafter=True)
    return LitertDecoder(sections, 1, pair.folder / "cache").new_slot()


@pytest.mark.parametrize("count", [5, 17, 18, 71])  # within a window, at its edges, rings that have wrapped
def test_it_guesses_what_transformers_guesses(pair: Pair, count: int) -> None:
    """In a step's place and behind a verification, of which a part was taken back."""
    ids = np.random.default_rng(count).integers(0, 2048, count + 2).tolist()
    slot = slot_of(pair)
    slot.prefill(ids[: count - 2])
    assert not slot.draft(ids[count - 2], DRAFTS)  # a prefill gives no hidden state
    slot.decode(ids[count - 2])
    assert slot.draft(ids[count - 1], DRAFTS) == expected(pair, ids[:count]).tokens
    assert list(slot.token_ids) == ids[: count - 1]
    slot.verify([ids[count - 1], ids[count], 7, 8])
    slot.rewind(count + 1)
    assert slot.draft(ids[count + 1], DRAFTS) == expected(pair, ids).tokens
    slot.rewind(count)
    assert slot.draft(ids[count], DRAFTS) == expected(pair, ids[: count + 1]).tokens


def test_it_guesses_after_a_step_of_several_slots(pair: Pair) -> None:
    """Each from its own row's state, as after a step alone."""
    path = pair.folder / "batched.litertlm"
    options = {**OPTIONS, "drafter": pair.folder / "assistant", "batch": (2,)}
    convert("custom-fp32", pair.folder / "model", path, **options)
    decoder = LitertDecoder(DecoderSections.of(Bundle.open(path), with_drafter=True), 1, pair.folder / "cache")
    together, alone = ([decoder.new_slot() for _ in range(2)] for _ in range(2))
    for slots in (together, alone):
        slots[0].prefill([2, 3, 4])
        slots[1].prefill([5, 6, 7, 8, 9])
    assert decoder.batches(together) == [together]
    logits = decoder.decode_batch(together, [10, 11])
    for row, token_id in enumerate((10, 11)):
        assert np.array_equal(logits[row], alone[row].decode(token_id))
        assert together[row].draft(12, DRAFTS) == alone[row].draft(12, DRAFTS) != ()


def test_nothing_is_guessed_from_a_state_that_is_gone(pair: Pair) -> None:
    slot = slot_of(pair)
    slot.prefill([2, 3, 4])
    slot.decode(5)
    before = slot.snapshot()
    slot.decode(6)
    slot.restore(before)
    assert not slot.draft(6, DRAFTS)  # the state of 5 was lost with the step after it
    slot.decode(6)
    state = slot.state()
    other = slot_of(pair)
    other.decode(9)
    other.set_state(replace(state, arrays={name: array.copy() for name, array in state.arrays.items()}))
    assert not other.draft(7, DRAFTS)
    assert np.array_equal(other.decode(7), slot.decode(7))
    assert other.draft(8, DRAFTS) == slot.draft(8, DRAFTS) != ()
    slot.reset()
    assert not slot.draft(2, DRAFTS)


def test_it_is_loaded_only_where_it_may_guess(echoing: Callable[[str], Path]) -> None:
    bundle = echoing("fp32")
    with opened(bundle) as engine, opened(bundle, is_on=False) as without:
        assert engine._decoder.can_draft
        assert not without._decoder.can_draft
        assert written(without, "hello hello hello hello", GREEDY, True)[1].drafted_tokens > 0  # from the text
        loaded, left = (len(each._decoder.mapped_ranges().weights) for each in (engine, without))
        assert (loaded, left) == (4, 2)  # sections and packed weights


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_plan_of_the_bundle_counts_it(pair: Pair, echoing: Callable[[str], Path], precision: str) -> None:
    bundle = BundlePlan.of(Bundle.open(echoing(precision)))
    found = bundle.footprint()
    options: Any = asked(precision, pair.folder / f"echo-{precision}")
    planned = plan_for(Target.parse(f"custom-{precision}", **options), pair.folder / "model")[1].footprint
    assert [part.name for part in found.parts] == [part.name for part in planned.parts]
    drafter, plan = ({part.name: part for part in each.parts}["drafter"] for each in (found, planned))
    assert 0 <= drafter.file_bytes - plan.file_bytes < 1 << 20  # the graph's
    assert drafter.anon_bytes == plan.anon_bytes
    [without_cache] = [part for part in bundle.footprint(anonymous_weights=True).parts if part.name == "drafter"]
    assert (without_cache.total_bytes, without_cache.file_bytes) == (drafter.total_bytes, 0)
    rows, copies = (11, 2 * (48 * 32 + 128 * 64) * 4) if precision == "int4" else (1, 0)  # of a ring and of all tokens
    assert drafter.anon_bytes == CALL_ANON_BYTES + rows * 2048 * 4 + copies


def test_another_models_drafter_is_refused(pair: Pair, tmp_path: Path) -> None:
    own = DecoderSections.of(Bundle.open(pair.bundle), with_drafter=True)
    with pytest.raises(BundleMismatchError, match="its drafter takes or gives other tensors than this decoder's; conv"):
        LitertDecoder(replace(own, drafter=own.embedder), 1, tmp_path)
    convert("custom-fp32", pair.folder / "model", tmp_path / "without", format="litertlm", **OPTIONS)
    without = DecoderSections.of(Bundle.open(tmp_path / "without"))
    with pytest.raises(BundleMismatchError, match=r"decode does not give activations of \(1, 1, 96\), which a"):
        LitertDecoder(replace(without, drafter=own.drafter), 1, tmp_path)
