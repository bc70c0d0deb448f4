"""LiteLLM and LlamaIndex, unmodified, in an environment of their own: their pins are not ours."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.serve.running import MODEL, Running

PYTHON = Path(sys.prefix) / "clients" / "bin" / "python"

LITELLM = """
import sys, litellm
url, model = sys.argv[1:]
options = dict(model=f"openai/{model}", api_base=url, api_key="none", temperature=0, max_tokens=12, num_retries=0)
messages = [{"role": "user", "content": "And it came to pass"}]
whole = litellm.completion(messages=messages, **options).choices[0].message.content
stream = litellm.completion(messages=messages, stream=True, **options)
pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
assert whole and "".join(pieces) == whole, (whole, pieces)
tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
    "kind": {"type": "boolean"}}, "required": ["kind"]}}}
called = litellm.completion(messages=messages, tools=[tool], tool_choice="required", **{**options, "max_tokens": 64})
assert called.choices[0].message.tool_calls[0].function.name == "f"
"""
LLAMA_INDEX = """
import sys
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
url, model = sys.argv[1:]
llm = OpenAILike(model=model, api_base=url, api_key="none", is_chat_model=True, temperature=0, max_tokens=12,
                 context_window=512, max_retries=0)
messages = [ChatMessage(role="user", content="And it came to pass")]
whole = llm.chat(messages).message.content
*_, last = llm.stream_chat(messages)
assert whole and last.message.content == whole, (whole, last)
assert llm.complete("And it came to pass").text == whole
plain = OpenAILike(model=model, api_base=url, api_key="none", is_chat_model=False, temperature=0, max_tokens=12)
assert plain.complete("And it came to pass").text
"""


@pytest.mark.parametrize("program", [LITELLM, LLAMA_INDEX], ids=["litellm", "llama-index"])
def test_a_client(server: Running, program: str) -> None:
    if not PYTHON.exists():
        pytest.skip("LiteLLM and LlamaIndex are not installed; run `make clients`")
    command = [str(PYTHON), "-c", program, f"{server.url}/v1", MODEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
