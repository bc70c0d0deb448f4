"""Google's engine behind our names, and the CPUs on which it must not even be imported."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.runtime.chat.messages import Message
from gemma_edge.runtime.chat.tools import ToolEventHandler, tool_from_function
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import ExecutorError
from gemma_edge.runtime.litert_lm_engine import LitertLmEngine, check_cpu
from gemma_edge.runtime.text.constraints import (
    ConstrainedDecodingConfig,
    LiteRtLmConstraintProviderType,
    ResponseFormat,
)
from gemma_edge.runtime.text.penalties import NoRepeatNgramConfig, RepetitionPenaltyConfig, SuppressTokensConfig
from gemma_edge.runtime.text.sampler import SamplerConfig

TinyBundle = Callable[[str, str], Path]
GREEDY = SamplerConfig(top_k=1)


@pytest.fixture(scope="module")
def engines(
    tiny_bundle: TinyBundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, LitertLmEngine]]:
    bundle = str(tiny_bundle("gemma3n", "fp32"))  # int4 has near ties, which two engines may take either way
    cache = [str(tmp_path_factory.mktemp(name)) for name in ("ours", "theirs")]
    backend = Backend.CPU(thread_count=2)
    with (
        Engine(bundle, backend, cache_dir=cache[0]) as ours,
        LitertLmEngine(bundle, backend, cache_dir=cache[1]) as theirs,
    ):
        yield ours, theirs


def test_sessions_say_the_same(engines: tuple[Engine, LitertLmEngine]) -> None:
    texts = []
    for engine in engines:
        with engine.create_session(sampler_config=GREEDY, max_output_tokens=30) as session:
            session.run_prefill(["In the beginning"])
            blocking = session.run_decode().texts[0]
            assert session.get_benchmark_info().last_decode_token_count == 30
        with engine.create_session(sampler_config=GREEDY, max_output_tokens=30) as session:
            session.run_prefill(["In the beginning"])
            assert "".join(response.texts[0] for response in session.run_decode_async()) == blocking
        texts.append(blocking)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty_config": RepetitionPenaltyConfig(repetition_penalty=1.5, presence_penalty=0.5)},
        {"no_repeat_ngram_config": NoRepeatNgramConfig(no_repeat_ngram_size=2)},
        {"suppress_tokens_config": SuppressTokensConfig(suppress_tokens=(286, 299))},
        {"response_format": ResponseFormat.regex("[a-f]{4}")},
    ],
)
def test_conversations_say_the_same(engines: tuple[Engine, LitertLmEngine], options: dict[str, Any]) -> None:
    config = ConstrainedDecodingConfig(provider=LiteRtLmConstraintProviderType.LL_GUIDANCE)
    texts, counts = [], []
    for engine in engines:
        with engine.create_conversation(
            messages=[Message.system("Speak plainly.")],
            sampler_config=GREEDY,
            max_output_tokens=20,
            constrained_decoding_config=config if "response_format" in options else None,
        ) as conversation:
            assert "In the" in conversation.render_message_to_string("In the beginning")
            texts.append(str(conversation.send_message("In the beginning", **options)))
            counts.append(conversation.token_count)
            conversation.cancel_process()
    assert texts[0] == texts[1] != ""
    assert counts[0] == counts[1]


def test_a_streamed_message_adds_up(engines: tuple[Engine, LitertLmEngine]) -> None:
    _, theirs = engines
    texts: list[str] = []
    for _ in range(2):
        with theirs.create_conversation(sampler_config=GREEDY, max_output_tokens=20) as conversation:
            if texts:
                texts.append("".join(str(chunk) for chunk in conversation.send_message_async("In the beginning")))
            else:
                texts.append(str(conversation.send_message("In the beginning")))
    assert texts[0] == texts[1]


def test_its_errors_are_ours(engines: tuple[Engine, LitertLmEngine], tmp_path: Path) -> None:
    _, theirs = engines
    with theirs.create_session() as session:
        with pytest.raises(
            ExecutorError, match=r"litert_lm: decoding failed \(.*\); see its log on stderr for the cause"
        ):
            session.run_decode()
        with pytest.raises(ExecutorError, match="litert_lm: prefill failed"):
            session.run_prefill(["and it came to pass " * 500])
    (tmp_path / "junk").write_bytes(b"no bundle")
    with pytest.raises(ExecutorError, match=r"litert_lm: loading .*junk failed"):
        LitertLmEngine(str(tmp_path / "junk"), cache_dir=str(tmp_path))


def test_tokens_are_the_same(engines: tuple[Engine, LitertLmEngine]) -> None:
    ours, theirs = engines
    token_ids = ours.tokenize("In the beginning")
    assert theirs.tokenize("In the beginning") == token_ids
    assert theirs.detokenize(token_ids) == "In the beginning"
    assert (theirs.bos_token_id, theirs.eos_token_ids) == (ours.bos_token_id, ours.eos_token_ids)


@pytest.mark.parametrize(
    ("machine", "features", "runs"),
    [
        ("aarch64", "fp asimd evtstrm crc32 cpuid", False),  # Raspberry Pi 4: Cortex-A72, ARMv8.0
        ("aarch64", "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimddp", True),  # Raspberry Pi 5
        ("x86_64", "fpu sse2", True),
    ],
)
def test_cpus_it_crashes_on(tmp_path: Path, machine: str, features: str, runs: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nFeatures\t: {features}\n\nprocessor\t: 1\nFeatures\t: {features}\n")
    if runs:
        check_cpu(machine, cpuinfo)
    else:
        with pytest.raises(ExecutorError, match=r"litert_lm needs ARMv8.1 atomics \(LSE\), this CPU has none; use the"):
            check_cpu(machine, cpuinfo)


def test_a_wheel_that_is_missing(monkeypatch: pytest.MonkeyPatch, tiny_bundle: TinyBundle) -> None:
    monkeypatch.setitem(sys.modules, "litert_lm", None)
    with pytest.raises(ExecutorError, match=r"litert_lm cannot be loaded \(.*\); pip install 'gemma-edge\[litert\]'"):
        LitertLmEngine(str(tiny_bundle("gemma3n", "int4")))


def test_our_engine_never_imports_it(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom gemma_edge.runtime.engine import Engine\n"
        "from gemma_edge.runtime import litert_lm_engine\n"
        f"engine = Engine({str(tiny_bundle('gemma3n', 'int4'))!r}, cache_dir={str(tmp_path)!r})\n"
        "engine.create_conversation(max_output_tokens=2).send_message('x')\n"
        "assert 'litert_lm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def get_weather(city: str) -> str:
    """Gets the weather of a city."""
    return f"sun in {city}"


class Yes(ToolEventHandler):
    def approve_tool_call(self, tool_call: dict[str, Any]) -> bool:
        return bool(tool_call["function"]["name"] != "forbidden")

    def process_tool_response(self, tool_response: Any) -> Any:
        return f"{tool_response}, as the handler saw"


@pytest.mark.parametrize("tool", [get_weather, tool_from_function(get_weather)])
def test_tools_and_their_handler_work_on_its_side(engines: tuple[Engine, LitertLmEngine], tool: Any) -> None:
    _, theirs = engines
    prompts = []
    for engine in engines:
        with engine.create_conversation(tools=[tool], tool_event_handler=Yes()) as conversation:
            prompts.append(conversation.render_message_to_string("In Paris?"))
    assert prompts[0] == prompts[1]
    assert "get_weather" in prompts[0]
    with theirs.create_conversation(tools=[tool], tool_event_handler=Yes()) as conversation:
        names = ("get_weather", "forbidden")
        calls = [{"function": {"name": name, "arguments": {"city": "Paris"}}} for name in names]
        answers = conversation._inner._handle_tool_calls({"tool_calls": calls})
    assert [answer["content"][0]["response"] for answer in answers] == ["sun in Paris, as the handler saw"]
