"""Other people's programs on our directories: where they come from, and what their greedy replies are held against."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from tests.near_ties import NEAR_TIE, settled_tokens
from tests.slots import onnx_slot

ConvertedFixture = Callable[[str, str], Path]
TRANSFORMERS_JS = ("@huggingface/transformers", "4.3.1")
PLAYWRIGHT = ("playwright-core", "1.65.1")
MESSAGES = ["He went to the house", "Hi"]  # of unequal length
NEW_TOKENS = 32
MEDIA_SCRIPT = Path(__file__).with_name("transformers_js_media.mjs")
_TENSOR_TYPES = {torch.int64: "int64", torch.float32: "float32", torch.bool: "bool"}


def npm_modules(package: str, version: str) -> Path:
    """A node_modules with a package from npm, kept between runs. None runs code of its own at installation."""
    name = {TRANSFORMERS_JS: "js"}.get((package, version), package)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gemma-edge-tests" / f"{name}-{version}"
    if not all(map(shutil.which, ("node", "npm"))):
        pytest.skip(f"node and npm, which run {package}, are not installed")
    if not (cache / "node_modules" / package).exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        staged = cache.with_name(f"{cache.name}.{os.getpid()}")
        staged.mkdir()
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", f"{package}@{version}"]
        subprocess.run(command, cwd=staged, check=True, capture_output=True)
        staged.rename(cache)
    return cache / "node_modules"


def check_answer(answer: dict[str, Any], messages: list[str], directory: Path, precision: str) -> None:
    """That what reply.mjs answers to a batch has transformers' prompts and, message by message, our replies."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    stop = json.loads((directory / "generation_config.json").read_text())["eos_token_id"]
    stop = stop if isinstance(stop, list) else [stop]
    assert [len(reply) for reply in answer["replies"]] == [NEW_TOKENS] * len(messages)
    for message, prompt, reply in zip(messages, answer["prompts"], answer["replies"], strict=True):
        content = [{"role": "user", "content": message}]
        expected = tokenizer.apply_chat_template(content, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert prompt == expected
        ends = [at + 1 for at, token in enumerate(reply) if token in stop]  # what follows is padding
        check_same_reply(reply[: min(ends, default=None)], directory, prompt, precision)


def check_same_reply(found: list[int], directory: Path, prompt: list[int], precision: str) -> None:
    """That another program's greedy reply is our runtime's, or differs from the first near tie on."""
    executor = onnx_slot(OnnxDirectory.open(directory), 2, None, 512)
    executor.prefill(prompt[:-1])
    reply, logits = prompt[-1:], []
    for _ in range(len(found)):
        logits.append(executor.decode(reply[-1]).copy())
        reply.append(int(logits[-1].argmax()))
    executor.close()
    ours = reply[1:]
    settled = len(ours) if found == ours else settled_tokens(logits, ours, NEAR_TIE[precision])
    assert found[:settled] == ours[:settled]


def tensors_as_json(inputs: Mapping[str, Any]) -> str:
    """Tensors by name, as MEDIA_SCRIPT reads them."""
    tensors = {name: value.contiguous() for name, value in inputs.items() if not name.endswith("token_type_ids")}
    return json.dumps(
        {
            name: {
                "type": _TENSOR_TYPES[tensor.dtype],
                "dims": list(tensor.shape),
                "data": base64.b64encode(tensor.numpy().tobytes()).decode(),
            }
            for name, tensor in tensors.items()
        }
    )
