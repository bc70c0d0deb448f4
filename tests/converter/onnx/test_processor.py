"""AutoProcessor on the side files of a directory with encoders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from gemma_edge.converter.calibrate.planning import lay_out, plan_for
from gemma_edge.converter.onnx.bundle import OnnxBundle
from gemma_edge.converter.plan.target import Target
from tests.media_files import photograph
from tools.tiny_towers import IMAGE_PIXELS, write_tiny_towers

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": "What?"}]}]
RATE_HZ = 16_000
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'image' %}<image_soft_token>{% elif item.type == 'audio' %}<audio_soft_token>"
    "{% else %}{{ item.text }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, timm: None) -> Path:  # noqa: ARG001  the vision tower is timm's
    path = tmp_path_factory.mktemp("towers") / "checkpoint"
    write_tiny_towers(path)
    return path


def as_it_is(_: Path) -> None:
    """transformers 4 wrote it: preprocessor_config.json alone."""


def as_transformers_5_writes_it(checkpoint: Path) -> None:
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(checkpoint)
    (checkpoint / "preprocessor_config.json").unlink()


def without_a_processor(checkpoint: Path) -> None:
    (checkpoint / "preprocessor_config.json").unlink()


def without_names_of_tokens(checkpoint: Path) -> None:
    (checkpoint / "tokenizer_config.json").write_text("{}")


def with_two_templates(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer_config.json"
    values = json.loads(path.read_text())
    named = [{"name": name, "template": TEMPLATE} for name in ("rag", "default")]
    path.write_text(json.dumps(values | {"chat_template": named}))


@pytest.mark.parametrize(
    ("change", "pixels"),
    [
        (as_it_is, IMAGE_PIXELS),
        (as_transformers_5_writes_it, IMAGE_PIXELS),
        (without_a_processor, 768),
        (without_names_of_tokens, IMAGE_PIXELS),
        (with_two_templates, IMAGE_PIXELS),
    ],
)
def test_auto_processor_loads_and_prepares(
    checkpoint: Path, change: Callable[[Path], None], pixels: int, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    change(changed)
    target = Target.parse("custom-fp32", format="onnx", modalities=("text", "vision", "audio"))
    source, plan = plan_for(target, changed)
    out = tmp_path / "out"
    (out / "onnx").mkdir(parents=True)
    bundle = lay_out(plan, source)
    assert isinstance(bundle, OnnxBundle)
    for file in bundle.sections:  # all but the weights
        if isinstance(file.content, Path):
            shutil.copy(file.content, out / file.name)
        elif file.content is not None:
            (out / file.name).write_bytes(file.content)

    processor = AutoProcessor.from_pretrained(out)
    assert type(processor).__name__ == "Gemma3nProcessor"
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert text == processor.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert "What?" in text
    image, sound = Image.open(photograph("rocket.jpg")), np.zeros(RATE_HZ, np.float32)
    inputs = processor(text=processor.image_token + processor.audio_token, images=[image], audio=[sound])
    assert np.array(inputs["pixel_values"]).shape == (1, 3, pixels, pixels)
    assert np.array(inputs["pixel_values"]).min() >= 0  # not normalised
    assert np.array(inputs["input_features"]).shape[2] == 128
    named = [processor.tokenizer.convert_tokens_to_ids(f"<{kind}_soft_token>") for kind in ("image", "audio")]
    for token in named:
        assert token in np.array(inputs["input_ids"]).ravel()
