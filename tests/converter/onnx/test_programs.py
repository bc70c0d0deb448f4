"""Directories in other people's programs: transformers.js in Node, and onnxruntime-genai for Gemma 3."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
import pytest
import soundfile
import torch
import transformers
from PIL import Image

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from tests.media_files import photograph, speech
from tests.near_ties import NEAR_TIE, settled_tokens
from tests.runtime.media.towers import Towers
from tests.slots import onnx_slot

PACKAGE, VERSION = "@huggingface/transformers", "4.3.1"
SCRIPT = Path(__file__).with_name("transformers_js.mjs")
MEDIA_SCRIPT = Path(__file__).with_name("transformers_js_media.mjs")
MESSAGE = "He went to the house"
NEW_TOKENS = 32
TOLERANCE = 1e-3  # of logits, besides what float32 explains (tests/oracles.py)

ConvertedFixture = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def transformers_js() -> Path:
    """The module, from npm, kept between runs. No package runs code of its own at installation."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gemma-edge-tests" / f"js-{VERSION}"
    module = cache / "node_modules" / PACKAGE / "dist" / "transformers.node.mjs"
    if not all(map(shutil.which, ("node", "npm"))):
        pytest.skip(f"node and npm, which run {PACKAGE}, are not installed")
    if not module.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        staged = cache.with_name(f"{cache.name}.{os.getpid()}")
        staged.mkdir()
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", f"{PACKAGE}@{VERSION}"]
        subprocess.run(command, cwd=staged, check=True, capture_output=True)
        staged.rename(cache)
    return module


@pytest.fixture(scope="module")
def converted(
    tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path, tiny_gemma3n: Path, gemma_tokenizer: Path
) -> ConvertedFixture:
    """`converted("gemma3n", "int4")`: a trained fixture with Gemma's own chat template."""
    folder = tmp_path_factory.mktemp("onnx")
    template = json.loads((gemma_tokenizer / "tokenizer_config.json").read_text())["chat_template"]

    def make(family: str, precision: str) -> Path:
        checkpoint, out = folder / family, folder / f"{family}-{precision}"
        if not checkpoint.exists():
            shutil.copytree({"gemma3": tiny_gemma3, "gemma3n": tiny_gemma3n}[family], checkpoint)
            (checkpoint / "chat_template.jinja").write_text(template)
        if not out.exists():
            convert(f"custom-{precision}", checkpoint, out, context=512, format="onnx")
        return out

    return make


def check_same_reply(found: list[int], directory: Path, prompt: list[int], precision: str) -> None:
    """That another program's greedy reply is our runtime's, or differs from the first near tie on."""
    executor = onnx_slot(OnnxDirectory.open(directory), 2, None, 512)
    executor.prefill(prompt[:-1])
    reply, logits = prompt[-1:], []
    for _ in range(NEW_TOKENS):
        logits.append(executor.decode(reply[-1]).copy())
        reply.append(int(logits[-1].argmax()))
    executor.close()
    ours = reply[1:]
    settled = len(ours) if found == ours else settled_tokens(logits, ours, NEAR_TIE[precision])
    assert found[:settled] == ours[:settled]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_transformers_js_gives_our_tokens(
    converted: ConvertedFixture, transformers_js: Path, family: str, precision: str
) -> None:
    directory = converted(family, precision)
    command = ["node", str(SCRIPT), str(transformers_js), str(directory), str(NEW_TOKENS)]
    ran = subprocess.run(command, input=MESSAGE, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "user", "content": MESSAGE}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert found["prompt"] == expected
    assert len(found["reply"]) == NEW_TOKENS
    check_same_reply(found["reply"], directory, expected, precision)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory, timm: None) -> Towers:  # noqa: ARG001  the vision tower is timm's
    return Towers.write(tmp_path_factory.mktemp("towers"))


MEDIA_NEW_TOKENS = 16
MEDIA_PROMPTS = {  # how many images and how many clips, and where
    "image": (1, 0, "What is <image_soft_token>?"),
    "audio": (0, 1, "Write down: <audio_soft_token>"),
    "interleaved": (2, 1, "One<image_soft_token>two<audio_soft_token>three<image_soft_token>"),
}
TENSOR_TYPES = {torch.int64: "int64", torch.float32: "float32", torch.bool: "bool"}


@pytest.mark.parametrize("name", MEDIA_PROMPTS)
def test_transformers_js_sees_and_hears(towers: Towers, transformers_js: Path, name: str) -> None:
    """Its greedy tokens are transformers', from the same pixels and mel frames."""
    images, clips, text = MEDIA_PROMPTS[name]
    inputs = towers.processor(
        text=f"<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n",
        images=[[Image.open(photograph(file)) for file in ("rocket.jpg", "chelsea.png")[:images]]] if images else None,
        audio=[soundfile.read(speech(1), dtype="float32")[0][16_000:38_000]] if clips else None,
        return_tensors="pt",
    )
    command = ["node", str(MEDIA_SCRIPT), str(transformers_js), str(towers.onnx), str(MEDIA_NEW_TOKENS)]
    ran = subprocess.run(command, input=_as_json(inputs), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    reply = json.loads(ran.stdout)
    assert len(reply) == MEDIA_NEW_TOKENS
    towers.expected(inputs, reply).check_greedy(reply, TOLERANCE)


def _as_json(inputs: Mapping[str, Any]) -> str:
    """Tensors by name, as MEDIA_SCRIPT reads them."""
    tensors = {name: value.contiguous() for name, value in inputs.items() if name != "token_type_ids"}
    return json.dumps(
        {
            name: {
                "type": TENSOR_TYPES[tensor.dtype],
                "dims": list(tensor.shape),
                "data": base64.b64encode(tensor.numpy().tobytes()).decode(),
            }
            for name, tensor in tensors.items()
        }
    )


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_onnxruntime_genai_gives_our_tokens(converted: ConvertedFixture, val_bin: Path, precision: str) -> None:
    directory = converted("gemma3", precision)
    prompt = np.fromfile(val_bin, np.uint16)[:80].astype(np.int32)
    model = onnxruntime_genai.Model(str(directory))
    parameters = onnxruntime_genai.GeneratorParams(model)
    length = len(prompt) + NEW_TOKENS
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    found = []
    for _ in range(NEW_TOKENS):
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    check_same_reply(found, directory, prompt.tolist(), precision)
