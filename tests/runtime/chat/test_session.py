"""Sessions against litert_lm (text), against transformers (logits and scores), and against themselves."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.runtime.chat.session import Session, SessionError
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import ContextOverflowError, ExecutorError
from gemma_edge.runtime.text.sampler import SamplerConfig
from tests.near_ties import NEAR_TIE, check_same_greedy_text

TinyBundle = Callable[[str, str], Path]
GREEDY = SamplerConfig(top_k=1)
# transformers computes in another order; the logits span about 20.
HF_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(family: str, tiny_bundle: TinyBundle, cache_dir: Path) -> Iterator[Engine]:
    with Engine(str(tiny_bundle(family, "fp32")), Backend.CPU(thread_count=2), cache_dir=str(cache_dir)) as engine:
        yield engine


@pytest.fixture(scope="module")
def google(family: str, tiny_bundle: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """litert_lm itself on the same bundle."""
    import litert_lm

    cache = str(tmp_path_factory.mktemp("litert_lm"))
    with litert_lm.Engine(str(tiny_bundle(family, "fp32")), litert_lm.Backend.CPU(), cache_dir=cache) as engine:
        yield engine


@pytest.fixture
def session(engine: Engine) -> Session:
    return engine.create_session(sampler_config=GREEDY, max_output_tokens=30)


PROMPTS = [
    ["In the beginning"],
    ["In the beginning", " God created"],
    ["<end_of_turn>"],
    ["It is a truth universally acknowledged, that a single man in possession " * 6],  # beyond the window
    ["And it came to pass in those days, " * 20],  # several times around the rings
]


def check_decoded(engine: Engine, ours: Session, theirs: Any) -> None:
    prompt = list(ours.token_ids)
    [text], [their_text] = ours.run_decode().texts, theirs.run_decode().texts
    check_same_greedy_text(engine, prompt, list(ours.token_ids)[len(prompt) :], their_text, text, NEAR_TIE["fp32"])


# One turn only: litert_lm 0.18.1 runs the last token of a reply with an embedding of zeros (test_litert_lm_parity.py).
# Our later turns are compared with transformers below.
@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("contents", PROMPTS)
def test_the_text_is_litert_lms(engine: Engine, google: Any, contents: list[str], template: bool) -> None:
    import litert_lm

    greedy = litert_lm.SamplerConfig(top_k=1)
    ours = engine.create_session(apply_prompt_template=template, sampler_config=GREEDY, max_output_tokens=40)
    with google.create_session(apply_prompt_template=template, sampler_config=greedy, max_output_tokens=40) as theirs:
        ours.run_prefill(contents)
        theirs.run_prefill(contents)
        check_decoded(engine, ours, theirs)


def test_prefill_in_several_calls_is_one_turn(engine: Engine, google: Any) -> None:
    import litert_lm

    ours = engine.create_session(sampler_config=GREEDY, max_output_tokens=40)
    with google.create_session(sampler_config=litert_lm.SamplerConfig(top_k=1), max_output_tokens=40) as theirs:
        for text in ("And it came", " to pass", " in those days"):
            ours.run_prefill([text])
            theirs.run_prefill([text])
        check_decoded(engine, ours, theirs)


@pytest.fixture(scope="module")
def hugging_face(family: str, request: pytest.FixtureRequest) -> Callable[[list[int]], NDArray[np.float32]]:
    """Logits of transformers in float32 for a token sequence: [tokens, V]."""
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = request.getfixturevalue(f"tiny_{family}")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def logits(token_ids: list[int]) -> NDArray[np.float32]:
        with torch.no_grad():
            result: NDArray[np.float32] = model(torch.tensor([token_ids])).logits[0].numpy()
        return result

    return logits


def test_logits_and_scores_agree_with_transformers(
    engine: Engine, hugging_face: Callable[[list[int]], NDArray[np.float32]], val_bin: Path
) -> None:
    text = engine.detokenize(np.fromfile(val_bin, np.uint16)[1000:1300].tolist())
    target = engine.detokenize(np.fromfile(val_bin, np.uint16)[1300:1340].tolist())
    session = engine.create_session(apply_prompt_template=False)
    session.run_prefill([text])
    prompt, target_ids = list(session.token_ids), engine.tokenize(target)
    expected = hugging_face(prompt + target_ids).astype(np.float64)  # [prompt + target, V]
    np.testing.assert_allclose(session.logits, expected[len(prompt) - 1], rtol=0, atol=HF_TOLERANCE)
    log_probabilities = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
    scores = [log_probabilities[len(prompt) - 1 + i, token] for i, token in enumerate(target_ids)]
    responses = session.run_text_scoring([target], store_token_lengths=True)
    np.testing.assert_allclose(responses.token_scores[0], scores, rtol=0, atol=HF_TOLERANCE)
    assert responses.scores[0] == pytest.approx(sum(scores), abs=HF_TOLERANCE * len(scores))
    assert (responses.texts, responses.token_lengths) == ([target], [len(target_ids)])


def test_later_turns_agree_with_transformers(
    engine: Engine, hugging_face: Callable[[list[int]], NDArray[np.float32]]
) -> None:
    session = engine.create_session(sampler_config=GREEDY, max_output_tokens=25)
    for text in ("In the beginning", "x", "And they answered, saying", "It is a truth universally acknowledged"):
        session.run_prefill([text])
        session.run_decode()
        expected = hugging_face(list(session.token_ids))[-1]
        np.testing.assert_allclose(session.logits, expected, rtol=0, atol=HF_TOLERANCE)


def test_scoring_leaves_the_session_as_it_was(engine: Engine) -> None:
    session = engine.create_session(sampler_config=GREEDY, max_output_tokens=20)
    session.run_prefill(["In the beginning"])
    before = session.token_ids
    first = session.run_text_scoring([" God created", " the heaven"])
    assert session.token_ids == before
    assert session.run_text_scoring([" the heaven"]).scores == [first.scores[1]]
    assert first.token_lengths == []
    other = engine.create_session(sampler_config=GREEDY, max_output_tokens=20)
    other.run_prefill(["In the beginning"])
    assert session.run_decode() == other.run_decode()


def test_a_stream_adds_up_to_the_blocking_reply(engine: Engine) -> None:
    replies = []
    for _ in range(3):
        session = engine.create_session(sampler_config=SamplerConfig(top_k=40, temperature=1.5, seed=3))
        session.run_prefill(["In the beginning"])
        replies.append(session)
    blocking = replies[0].run_decode().texts[0]
    streamed = [response.texts[0] for response in replies[1].run_decode_async()]

    async def collect() -> list[str]:
        return [response.texts[0] async for response in replies[2].stream_decode()]

    assert len(streamed) > 1
    assert "".join(streamed) == blocking
    assert "".join(asyncio.run(collect())) == blocking
    assert replies[0].token_ids == replies[1].token_ids == replies[2].token_ids


def test_the_same_seed_gives_the_same_text_and_another_seed_another(engine: Engine) -> None:
    texts = []
    for seed in (5, 5, 6):
        session = engine.create_session(
            sampler_config=SamplerConfig(top_k=40, temperature=1.5, seed=seed), max_output_tokens=30
        )
        session.run_prefill(["In the beginning"])
        texts.append(session.run_decode().texts)
    assert texts[0] == texts[1] != texts[2]


def test_sessions_taking_turns_say_what_they_say_alone(engine: Engine) -> None:
    prompts = ["In the beginning", "In the midst of the sea", "It is a truth"]

    def fresh(prompt: str) -> Session:
        session = engine.create_session(sampler_config=GREEDY, max_output_tokens=10)
        session.run_prefill([prompt])
        return session

    alone = ["".join(fresh(prompt).run_decode().texts) for prompt in prompts]
    streams = [fresh(prompt).run_decode_async() for prompt in prompts]
    together = ["", "", ""]
    for responses in itertools.zip_longest(*streams):
        for index, response in enumerate(responses):
            together[index] += response.texts[0] if response else ""
    assert together == alone


def test_max_output_tokens_and_the_end_of_the_context(engine: Engine) -> None:
    session = engine.create_session(sampler_config=GREEDY, max_output_tokens=7, apply_prompt_template=False)
    session.run_prefill(["In the"])
    before = len(session.token_ids)
    session.run_decode()
    assert len(session.token_ids) == before + 7
    endless = engine.create_session(sampler_config=GREEDY, apply_prompt_template=False)
    endless.run_prefill([engine.detokenize([500] * 500)])
    endless.run_decode()
    assert len(endless.token_ids) <= engine.max_num_tokens


def test_overflow_names_the_numbers_and_leaves_the_session_usable(engine: Engine) -> None:
    session = engine.create_session(sampler_config=GREEDY, apply_prompt_template=False, max_output_tokens=5)
    session.run_prefill(["In the beginning"])
    before = session.token_ids
    with pytest.raises(ContextOverflowError, match=r"context overflow: \d+ tokens asked, 512 allowed; shorten"):
        session.run_prefill(["and it came to pass " * 200])
    assert session.token_ids == before
    with pytest.raises(ContextOverflowError, match="tokens asked, 512 allowed"):
        session.run_text_scoring(["and it came to pass " * 200])
    assert session.token_ids == before
    assert session.run_decode().texts[0]


def test_cancelling_from_another_thread_ends_within_a_token(engine: Engine) -> None:
    session = engine.create_session(sampler_config=GREEDY, apply_prompt_template=False)
    session.run_prefill(["In the beginning"])
    before = len(session.token_ids)
    cancelled_at = 0
    for count, _ in enumerate(session.run_decode_async(), 1):
        if count == 3:
            worker = threading.Thread(target=session.cancel_process)
            worker.start()
            worker.join()
            cancelled_at = len(session.token_ids)
    assert len(session.token_ids) == cancelled_at < engine.max_num_tokens
    assert cancelled_at > before
    session.run_prefill([" and"])  # and the session goes on
    assert next(session.run_decode_async()).texts[0]


def test_cancelling_a_blocking_reply(engine: Engine) -> None:
    session = engine.create_session(sampler_config=SamplerConfig(top_k=1000, temperature=9.0))
    session.run_prefill(["In the beginning"])
    before = len(session.token_ids)

    def cancel_when_running() -> None:
        while len(session.token_ids) < before + 10:
            time.sleep(0.0001)
        session.cancel_process()

    worker = threading.Thread(target=cancel_when_running)
    worker.start()
    session.run_decode()
    worker.join()
    assert before + 10 <= len(session.token_ids) < engine.max_num_tokens


def test_cancelling_a_prefill_leaves_the_session_as_it_was(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = engine.create_session(sampler_config=GREEDY, max_output_tokens=5)
    sequence = session._open()
    monkeypatch.setattr(sequence, "_before_call", sequence.cancel)
    with pytest.raises(SessionError, match="the prefill was cancelled; run it again to continue"):
        session.run_prefill(["Nobody asked this before"])
    assert session.token_ids == ()
    monkeypatch.undo()
    session.run_prefill(["Nobody asked this before"])
    monkeypatch.setattr(sequence, "_before_call", sequence.cancel)
    with pytest.raises(SessionError, match="the scoring was cancelled; run it again"):
        session.run_text_scoring([" God"])
    with pytest.raises(SessionError, match="reading the logits was cancelled; ask for them again"):
        _ = session.logits
    monkeypatch.undo()
    assert session.run_decode().texts[0]


def test_a_reply_cancelled_before_its_first_token_leaves_the_turn_open(engine: Engine) -> None:
    """The end of the template's turn is in the prompt once, however often the reply was asked for."""
    expected = engine.create_session(sampler_config=GREEDY, max_output_tokens=5)
    expected.run_prefill(["In the beginning"])
    session = engine.create_session(sampler_config=GREEDY, max_output_tokens=5)
    session.run_prefill(["In the beginning"])
    before = session.token_ids
    stream = session.run_decode_async()
    session.cancel_process()
    assert list(stream) == []
    assert session.token_ids == before
    assert session.run_decode() == expected.run_decode()
    assert session.token_ids == expected.token_ids


def test_a_cancelled_task_stops_the_model(engine: Engine) -> None:
    session = engine.create_session(sampler_config=GREEDY, apply_prompt_template=False)
    session.run_prefill(["In the beginning"])
    seen = asyncio.Event()

    async def read() -> None:
        async for _ in session.stream_decode():
            seen.set()

    async def main() -> int:
        task = asyncio.create_task(read())
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stopped = len(session.token_ids)
        await asyncio.sleep(0.05)
        return stopped

    assert asyncio.run(main()) == len(session.token_ids) < engine.max_num_tokens


def test_what_a_session_refuses(engine: Engine, session: Session) -> None:
    with pytest.raises(SessionError, match="nothing to answer: the session is fresh; call run_prefill first"):
        session.run_decode()
    with pytest.raises(SessionError, match="nothing to continue: the session is fresh; call run_prefill first"):
        session.run_text_scoring(["a"])
    with pytest.raises(SessionError, match="no logits: the session is fresh; call run_prefill first"):
        _ = session.logits
    for nothing in ([], [""]):
        with pytest.raises(SessionError, match="run_prefill got no text; pass at least one string that is not empty"):
            session.run_prefill(nothing)
    with pytest.raises(SessionError, match="the text begins with <bos>, which the template adds; leave it out"):
        session.run_prefill(["<bos>In the beginning"])
    session.run_prefill(["In the beginning"])
    session.run_decode()
    with pytest.raises(SessionError, match="nothing to answer: the session is decoded; call run_prefill first"):
        session.run_decode_async()
    session.close()
    session.close()
    with pytest.raises(SessionError, match="the session is closed; create a new one"):
        session.run_prefill(["a"])
    raw = engine.create_session(apply_prompt_template=False)
    raw.run_prefill(["a"])
    with_start = engine.create_session(apply_prompt_template=False)
    with_start.run_prefill(["<bos>"])
    assert with_start.token_ids == (2, 2)  # as litert_lm: its own start token, then the text's


def test_timing_counts_every_token(engine: Engine) -> None:
    session = engine.create_session(sampler_config=GREEDY, max_output_tokens=10, apply_prompt_template=False)
    for _ in range(2):
        before = len(session.token_ids)
        session.run_prefill(["In the"])
        session.run_prefill([" beginning"])
        prompt = len(session.token_ids) - before
        session.run_decode()
        timing = session.timing
        assert (timing.prefill_tokens, timing.decode_tokens) == (prompt, 10)
        assert timing.time_to_first_token_s > 0
        assert len(timing.token_s) == 9
        info = session.get_benchmark_info()
        assert (info.last_prefill_token_count, info.last_decode_token_count) == (prompt, 10)
        assert info.init_time_in_second == engine.init_s


def test_closing_in_any_order(tiny_bundle: TinyBundle, cache_dir: Path) -> None:
    engine = Engine(str(tiny_bundle("gemma3", "fp32")), cache_dir=str(cache_dir))
    session = engine.create_session(sampler_config=GREEDY)
    session.run_prefill(["In the beginning"])
    stream = session.run_decode_async()
    next(stream)
    engine.close()
    with pytest.raises(ExecutorError, match="the executor is closed; create a new engine"):
        next(stream)
    session.close()
    engine.close()
    assert engine.memory().kv_cache_bytes == 0


def test_a_reply_that_was_cut_is_closed_before_the_next_prompt(engine: Engine) -> None:
    for limit, is_templated in ((1, True), (3, True), (3, False)):
        with engine.create_session(
            sampler_config=GREEDY, max_output_tokens=limit, apply_prompt_template=is_templated
        ) as session:
            for _ in range(2):
                session.run_prefill(["In the beginning"])
                session.run_decode()
            text = engine.detokenize(list(session.token_ids)[1:])
        assert text.count("<start_of_turn>") == (4 if is_templated else 0)
        assert text.count("<end_of_turn>\n<start_of_turn>") == (3 if is_templated else 0)
