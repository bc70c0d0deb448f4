"""Programs written for litert_lm see the same when only the import is changed (the sixth: media/test_end_to_end.py)."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import litert_lm
import pytest
import sentencepiece

from gemma_edge import runtime
from gemma_edge.converter.convert import convert
from gemma_edge.runtime.chat.prompt import Preface, PromptRenderer, as_received
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.formats.litertlm import Bundle
from tests.converter.verify.prompts.tuned import write
from tests.runtime import programs
from tools.litert_lm_writer import checkpoint_with

MODULES = (runtime, litert_lm)
END = "<end_of_turn>"


def seen(program: Callable[..., programs.Seen], bundle: Path, cache: Path, *arguments: Any) -> list[programs.Seen]:
    """What a program sees of ours and of litert_lm."""
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    found = []
    for module in MODULES:
        directory = cache / module.__name__
        directory.mkdir(exist_ok=True)
        with module.Engine(
            str(bundle), module.Backend.CPU(thread_count=1), cache_dir=str(directory), enable_benchmark=True
        ) as engine:
            found.append(program(module, engine, *arguments))
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Callable[[str, str], Path]) -> Path:
    return tiny_bundle("gemma3", "fp32")


@pytest.mark.parametrize("program", [programs.chat, programs.streaming_handler])
def test_a_program_sees_the_same(program: Callable[..., programs.Seen], bundle: Path, cache: Path) -> None:
    ours, theirs = seen(program, bundle, cache)
    assert ours == theirs


def test_scoring(bundle: Path, cache: Path) -> None:
    """Scores are near, no more: litert_lm slips behind a prompt (test_litert_lm_parity.py). Ours are transformers'."""
    ours, theirs = seen(programs.scoring, bundle, cache)
    our_scores, their_scores = ours.pop("scores"), theirs.pop("scores")
    assert ours == theirs
    assert our_scores.keys() == their_scores.keys()
    for target, scores in our_scores.items():
        assert scores == pytest.approx(their_scores[target], abs=0.5)


# ---------------------------------------------------------------- a model that has learnt to call a tool


@pytest.fixture(scope="module")
def agent(bundle: Path, tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, taught by heart to ask for a product and to tell it."""
    folder = tmp_path_factory.mktemp("agent")
    checkpoint = Path(shutil.copytree(tiny_gemma3, folder / "checkpoint"))
    teach(checkpoint, TextModel(Bundle.open(bundle)))
    convert("custom-fp32", checkpoint, folder / "agent.litertlm", context=256, prefill=(32,), measure=False)
    return folder / "agent.litertlm"


def teach(checkpoint: Path, model: TextModel) -> None:
    import torch
    import transformers

    tools = [runtime.tool_from_function(programs.multiply).get_tool_description()]
    render = PromptRenderer(model.template, model.tool_syntax, Preface([], tools), model.marked)
    call = {"type": "function", "function": {"name": "multiply", "arguments": {"a": 6, "b": 7}}}
    question, asked, answer = [
        as_received(message)
        for message in (
            {"role": "user", "content": programs.QUESTION},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": [{"type": "tool_response", "name": "multiply", "response": 42}]},
        )
    ]
    lessons = [
        (render.whole([], [question], {}), f"```tool_code\nmultiply(a=6, b=7)\n```{END}"),
        (render.whole([question, asked], [answer], {}), f"It is 42.{END}"),
    ]
    rows, labels = [], []
    for prompt, reply in lessons:
        before, said = [*model.start_tokens, *model.encode_prompt(prompt)], model.encode_prompt(reply)
        rows.append([*before, *said])
        labels.append([*[-100] * len(before), *said])
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])  # [2, T]
    wanted = torch.tensor([[*row, *[-100] * (longest - len(row))] for row in labels])
    mask = torch.tensor([[*[1] * len(row), *[0] * (longest - len(row))] for row in rows])
    torch.manual_seed(0)
    taught = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    optimizer = torch.optim.AdamW(taught.parameters(), lr=3e-3)
    for _ in range(60):
        loss = taught(ids, attention_mask=mask, labels=wanted).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.05:
            break
    taught.save_pretrained(checkpoint)


def test_a_tool_agent(agent: Path, cache: Path) -> None:
    ours, theirs = seen(programs.tool_agent, agent, cache)
    assert ours == theirs
    assert ours["answers"] == ["It is 42."] * 3
    assert ours["log"][:2] == [("multiply", {"a": 6, "b": 7}), 42]


# ---------------------------------------------------------------- formats


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """litert_lm matches formats against pieces: this vocabulary has all of JSON's characters.

    It bounds no whitespace, and a tiny model would write new lines for ever: it is told not to.
    """
    folder = tmp_path_factory.mktemp("extractor")
    checkpoint = checkpoint_with(folder / "checkpoint", '{}[]":,.-0123456789')
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    lines = [number for number in range(len(pieces)) if not pieces.id_to_piece(number).strip()]
    write(checkpoint / "generation_config.json", suppress_tokens=lines)
    convert("custom-fp32", checkpoint, folder / "model.litertlm", context=256, prefill=(32,), measure=False)
    return folder / "model.litertlm"


def extract(module: Any, engine: Any) -> programs.Seen:
    """As litert_lm's documentation has it. With enable=True it also loads a library for Gemma's own vocabulary, which
    refuses a tiny one: there, the conversation is enabled once it is made.
    """
    provider = module.LiteRtLmConstraintProviderType.LL_GUIDANCE
    enabled = module.ConstrainedDecodingConfig(enable=True, provider=provider)
    at_first = enabled if module is runtime else module.ConstrainedDecodingConfig(enable=False, provider=provider)
    greedy = module.SamplerConfig(top_k=1)
    with engine.create_conversation(
        constrained_decoding_config=at_first, sampler_config=greedy, max_output_tokens=60
    ) as conversation:
        conversation.constrained_decoding_config = enabled
        return programs.json_extraction(module, conversation)


def test_json_extraction(extractor: Path, cache: Path) -> None:
    ours, theirs = seen(extract, extractor, cache)
    assert ours == theirs
    assert ours == {"keys": ["age", "name"], "fits": True, "three digits": True, "errors": ["no JSON"]}
