"""Directories in other people's programs: transformers.js in Node, and onnxruntime-genai for Gemma 3."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime_genai
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

from gemma_edge.converter.convert import convert
from tests.converter.onnx.programs import (
    MEDIA_SCRIPT,
    MESSAGES,
    NEW_TOKENS,
    ConvertedFixture,
    check_answer,
    check_same_reply,
    tensors_as_json,
)
from tests.media_files import photograph, speech
from tests.oracles import Oracle
from tests.runtime.media.towers import Towers
from tools.tiny import TINY, write_tiny

SCRIPT = Path(__file__).with_name("transformers_js.mjs")
TOLERANCE = 1e-3  # of logits, besides what float32 explains (tests/oracles.py)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_transformers_js_gives_our_tokens(
    converted: ConvertedFixture, transformers_js: Path, family: str, precision: str
) -> None:
    """Of one message, and of two of unequal length at once, padded on either side."""
    directory = converted(family, precision)
    for padding, messages in (("left", MESSAGES[:1]), ("left", MESSAGES), ("right", MESSAGES)):
        job = {"directory": str(directory), "device": "cpu", "padding": padding, "messages": messages}
        command = ["node", str(SCRIPT), str(transformers_js)]
        text = json.dumps(job | {"tokens": NEW_TOKENS})
        ran = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        check_answer(json.loads(ran.stdout), messages, directory, precision)


@pytest.mark.parametrize("name", [name for name in TINY if name.startswith("gemma4")])
def test_transformers_js_gives_the_greedy_tokens_of_gemma4(transformers_js: Path, tmp_path: Path, name: str) -> None:
    """transformers' own, of two prompts at once; random models, so the one token that stops is one they do not say."""
    oracle = Oracle(write_tiny(name, tmp_path / "checkpoint"))
    (tmp_path / "checkpoint" / "generation_config.json").write_text(json.dumps({"eos_token_id": 3, "pad_token_id": 0}))
    convert("custom-fp32", tmp_path / "checkpoint", tmp_path / "model", format="onnx", context=512)
    job = {"directory": str(tmp_path / "model"), "device": "cpu", "padding": "left", "messages": MESSAGES}
    command = ["node", str(SCRIPT), str(transformers_js)]
    text = json.dumps(job | {"tokens": NEW_TOKENS})
    ran = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    for prompt, reply in zip(answer["prompts"], answer["replies"], strict=True):
        assert len(reply) == NEW_TOKENS
        oracle.expected([*prompt, *reply[:-1]]).last(NEW_TOKENS).check_greedy(reply, TOLERANCE)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory, timm: None) -> Towers:  # noqa: ARG001  the vision tower is timm's
    return Towers.write(tmp_path_factory.mktemp("towers"))


MEDIA_NEW_TOKENS = 16
MEDIA_PROMPTS = {  # how many images and how many clips, and where
    "image": (1, 0, "What is <image_soft_token>?"),
    "audio": (0, 1, "Write down: <audio_soft_token>"),
    "interleaved": (2, 1, "One<image_soft_token>two<audio_soft_token>three<image_soft_token>"),
}


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
    ran = subprocess.run(command, input=tensors_as_json(inputs), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    reply = json.loads(ran.stdout)
    assert len(reply) == MEDIA_NEW_TOKENS
    towers.expected(inputs, reply).check_greedy(reply, TOLERANCE)


def greedy(model: onnxruntime_genai.Model, prompts: NDArray[np.int32]) -> list[list[int]]:
    """onnxruntime-genai's replies to a batch."""
    parameters = onnxruntime_genai.GeneratorParams(model)
    length = prompts.shape[1] + NEW_TOKENS
    options = {"max_length": length, "min_length": length, "do_sample": False, "batch_size": len(prompts)}
    parameters.set_search_options(**options)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(prompts)
    found = []
    for _ in range(NEW_TOKENS):
        generator.generate_next_token()
        found.append([int(token) for token in generator.get_next_tokens()])
    return [list(reply) for reply in zip(*found, strict=True)]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_onnxruntime_genai_gives_our_tokens(converted: ConvertedFixture, val_bin: Path, precision: str) -> None:
    """Of one prompt, and of two of unequal length at once, which it pads on the right."""
    directory = converted("gemma3", precision)
    prompt = np.fromfile(val_bin, np.uint16)[:80].astype(np.int32)
    model = onnxruntime_genai.Model(str(directory))
    [found] = greedy(model, prompt[None])
    check_same_reply(found, directory, prompt.tolist(), precision)
    short = prompt[:9]
    both = greedy(model, np.stack([prompt, np.pad(short, (0, len(prompt) - len(short)))]))
    for reply, ids in zip(both, (prompt, short), strict=True):
        check_same_reply(reply, directory, ids.tolist(), precision)


def test_onnxruntime_genai_knows_no_gemma3n(converted: ConvertedFixture, tmp_path: Path) -> None:
    """So there is no genai_config.json; its "gemma4" has tables of a graph of their own, but wants encoders."""
    copy = Path(shutil.copytree(converted("gemma3n", "int4"), tmp_path / "model"))
    assert not (copy / "genai_config.json").exists()
    config = json.loads((converted("gemma3", "int4") / "genai_config.json").read_text())
    config["model"]["type"] = "gemma3n"
    (copy / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"Unsupported model_type in config\.json: gemma3n$"):
        onnxruntime_genai.Model(str(copy))
