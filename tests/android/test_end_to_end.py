"""A bundle of ours, the Android demo's core and the real LiteRT-LM: the answers of gemma_edge.runtime."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime import Backend, Content, Contents, Engine, SamplerConfig, Tool
from gemma_edge.runtime.measure.bench import Measurement, medians
from gemma_edge.runtime.text.constraints import ResponseFormat
from tests.media_files import photograph
from tools.aarch64 import default_cache
from tools.android.core_tests import run_end_to_end
from tools.android.errors import ToolError
from tools.android.kotlin import java_version
from tools.android.toolchain import kotlin
from tools.tiny_towers import write_tiny_towers

MAX_ANSWER_TOKENS, MAX_CALLING_TOKENS = 24, 64
FIRST, SECOND = "In the beginning God created", "And the king said"
ASKED = "How much is it?"
CALL = '```tool_code\ncalculate(expression="2*(3+4)")\n```'
ARGUMENTS = {"expression": "2*(3+4)"}
GREEDY = SamplerConfig(top_k=1)


class Calculator(Tool):
    """What core's Calculator says of itself; it is never run here."""

    def get_tool_description(self) -> dict[str, Any]:
        expression = {"type": "string", "description": "Numbers, + - * / ^ and parentheses, such as 2*(3+4)"}
        return {
            "type": "function",
            "function": {
                "name": "calculate",
                "description": "Calculates the value of an arithmetic expression.",
                "parameters": {
                    "type": "object",
                    "properties": {"expression": expression},
                    "required": ["expression"],
                },
            },
        }

    def execute(self, param: Any) -> str:
        raise AssertionError(param)


def with_pieces_of(text: str, tokenizer: Path) -> None:
    """Litert_lm's constraints write only pieces, not bytes: the last merges give way to characters without a piece."""
    values = json.loads(tokenizer.read_text())
    vocabulary, merges = values["model"]["vocab"], [tuple(pair) for pair in values["model"]["merges"]]
    for character in sorted({*text} - {" ", "\n", *vocabulary}):
        parts = {part for pair in merges for part in pair}
        rare = next("".join(pair) for pair in reversed(merges) if "".join(pair) not in parts)
        merges = [pair for pair in merges if "".join(pair) != rare]
        vocabulary[character] = vocabulary.pop(rare)
    values["model"]["merges"] = [list(pair) for pair in merges]
    tokenizer.write_text(json.dumps(values))


def ask(engine: Engine, message: str, history: list[Any], **options: Any) -> str:
    limits = {"max_output_tokens": MAX_ANSWER_TOKENS} | options
    with engine.create_conversation(messages=history, sampler_config=GREEDY, **limits) as conversation:
        return str(conversation.send_message(message))


def answers(engine: Engine, image: Path) -> dict[str, Any]:
    """What is said to whom, and what is answered."""
    first = ask(engine, FIRST, [])
    before = [{"role": "user", "content": FIRST}, {"role": "assistant", "content": first}]
    second = ask(engine, SECOND, before)
    calling: dict[str, Any] = {"max_output_tokens": MAX_CALLING_TOKENS, "tools": [Calculator()]}
    seen = Contents.of(Content.ImageFile(str(image)), ASKED)
    result = {"role": "tool", "content": [{"type": "tool_response", "name": "calculate", "response": "14"}]}
    with engine.create_conversation(sampler_config=GREEDY, automatic_tool_calling=False, **calling) as conversation:
        called = conversation.send_message(seen, response_format=ResponseFormat.regex(re.escape(CALL)))
        assert called.to_json()["tool_calls"][0]["function"] == {"name": "calculate", "arguments": ARGUMENTS}
        answer = str(conversation.send_message(result))
    talk = [
        {"role": "user", "content": seen.to_json()},
        called.to_json(),
        result,
        {"role": "assistant", "content": answer},
    ]
    after, other = ask(engine, SECOND, talk, **calling), ask(engine, SECOND, [], **calling)
    # What was said, seen and called before makes a difference.
    assert len({second, ask(engine, SECOND, [])}) == 2
    assert len({after, other, ask(engine, SECOND, talk[:1] + talk[3:], **calling), ask(engine, SECOND, talk)}) == 4
    assert answer != ask(engine, ASKED, [], **calling)
    return {
        "max_answer_tokens": MAX_ANSWER_TOKENS,
        "first": {"message": FIRST, "answer": first},
        "second": {"message": SECOND, "answer": second},
        "seen": {
            "max_answer_tokens": MAX_CALLING_TOKENS,
            "image": str(image),
            "message": ASKED,
            "forced": re.escape(CALL),
            "arguments": json.dumps(ARGUMENTS, separators=(",", ":")),
            "result": "14",
            "answer": answer,
        },
        "after": {"message": SECOND, "answer": after},
        "other": {"message": SECOND, "answer": other},
    }


@pytest.mark.usefixtures("timm")
def test_the_phone_says_what_python_says(repository: Path, tmp_path: Path) -> None:
    package = find_spec("litert_lm")
    assert package is not None
    assert package.origin is not None
    library = Path(package.origin).with_name("liblitert-lm.so")
    try:
        java_version()
        compiler = kotlin(default_cache())
    except ToolError as error:
        pytest.skip(str(error))

    bundle, checkpoint = tmp_path / "tiny.litertlm", tmp_path / "checkpoint"
    write_tiny_towers(checkpoint)
    with_pieces_of(CALL, checkpoint / "tokenizer.json")
    options: dict[str, Any] = {"context": 512, "prefill": (8, 32), "modalities": ("text", "vision"), "measure": False}
    convert("custom-fp32", checkpoint, bundle, **options)
    image = Path(shutil.copy(photograph("rocket.jpg"), tmp_path / "rocket.jpg"))
    expected = tmp_path / "expected.json"
    with Engine(str(bundle), Backend.CPU(thread_count=2), cache_dir=str(tmp_path)) as engine:
        expected.write_text(json.dumps(answers(engine, image)))
    try:
        passed = run_end_to_end(compiler, repository / "build/android", library, bundle, expected)
    except ToolError as error:
        pytest.skip(str(error))
    assert passed == 5
    bench = json.loads((tmp_path / "bench.json").read_text())
    runs = [Measurement(**run) for run in bench["runs"]]
    assert len(runs) == 2
    assert Measurement(**bench["median"]) == medians(runs)
    assert all(min(run.init_s, run.prefill_tokens_per_s, run.decode_tokens_per_s, run.anon_bytes) > 0 for run in runs)
    assert (bench["partitions"], bench["encoders"]) == ({}, {})
