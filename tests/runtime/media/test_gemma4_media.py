"""Gemma 4 with images and recordings: Hugging Face's pixels, mel frames, prompts and greedy tokens, in LiteRT and ONNX
Runtime; and what litert_lm makes of the same bundle.

The model is tiny and random, with both encoders, and images of four shapes.
"""

import io
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata
from numpy.typing import NDArray
from PIL import Image

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.convert import convert
from gemma_edge.converter.verify.find.encoders import score_encoders
from gemma_edge.profiles.costs_encoders import EncoderDesign
from gemma_edge.runtime.chat.messages import Content, Contents, Message
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.litert.footprint import BundlePlan
from gemma_edge.runtime.executors.onnx.encoders import OnnxEncoders
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.model import open_model
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from gemma_edge.runtime.litert_lm_engine import LitertLmEngine
from gemma_edge.runtime.media.audio import wav_bytes
from gemma_edge.runtime.media.errors import MediaError
from gemma_edge.runtime.media.image import PatchGrid, image_patches
from gemma_edge.runtime.media.item import MediaItem, MediaKind, media_items
from gemma_edge.runtime.media.mel import GEMMA4
from gemma_edge.runtime.media.soft_tokens import SoftToken
from gemma_edge.runtime.text.sampler import SamplerConfig
from tests.converter.onnx.programs import MEDIA_SCRIPT, TRANSFORMERS_JS, npm_modules, tensors_as_json
from tests.media_files import photograph, speech
from tests.oracles import Expected, Oracle
from tools.tiny_gemma4_towers import IDS, SOFT_TOKENS, write_tiny_gemma4_towers

NEW_TOKENS = 32
TOLERANCE = 1e-3  # of logits that spread over about +-12, besides what float32 explains (tests/oracles.py)
CONTEXT_TOKENS = 1024
GREEDY = SamplerConfig(top_k=1)
MEDIA_INPUTS = ("pixel_values", "image_position_ids", "input_features", "input_features_mask")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Towers:
    """A checkpoint with both encoders: as transformers sees it, as a bundle and as an ONNX directory."""

    checkpoint: Path
    oracle: Oracle
    processor: Any
    bundle: Path
    onnx: Path

    def inputs(self, text: str, contents: Contents) -> Any:
        """What transformers' processor makes of a rendered prompt."""
        images = [Image.open(io.BytesIO(part.bytes)) for part in contents if isinstance(part, Content.ImageBytes)]
        clips = [
            soundfile.read(io.BytesIO(part.bytes), dtype="float32")[0]
            for part in contents
            if isinstance(part, Content.AudioBytes)
        ]
        return self.processor(text=text, images=[images] if images else None, audio=clips or None, return_tensors="pt")

    def expected(self, inputs: Any, reply: list[int]) -> Expected:
        """transformers' logits for each token of a reply to a prompt."""
        media = {key: value for key, value in inputs.items() if key in MEDIA_INPUTS}
        return self.oracle.expected([*inputs["input_ids"][0].tolist(), *reply[:-1]], **media).last(len(reply))


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Towers:
    folder = tmp_path_factory.mktemp("gemma4-towers")
    oracle = Oracle(write_tiny_gemma4_towers(folder / "checkpoint"))
    bundle, onnx = folder / "towers.litertlm", folder / "towers"
    convert("custom-fp32", folder / "checkpoint", bundle, prefill=(8, 32), context=CONTEXT_TOKENS)
    convert("custom-fp32", folder / "checkpoint", onnx, format="onnx", context=CONTEXT_TOKENS)
    return Towers(folder / "checkpoint", oracle, _processor(folder / "checkpoint"), bundle, onnx)


def _processor(checkpoint: Path) -> Any:
    """transformers' for this checkpoint, with the image processor that needs no torchvision, and without videos."""
    from transformers import AutoTokenizer, Gemma4AudioFeatureExtractor, Gemma4Processor

    class Processor(Gemma4Processor):  # type: ignore[misc]  # torch is not analysed
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return None if name == "video_processor" else super().check_argument_for_proper_class(name, argument)

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return Processor(Gemma4AudioFeatureExtractor(), _image_processor(SOFT_TOKENS), tokenizer, None)


def _image_processor(tokens: int) -> Any:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    return Gemma4ImageProcessorPil(max_soft_tokens=tokens)


@pytest.fixture(scope="module", params=["litert", "onnx"])
def engine(
    request: pytest.FixtureRequest, towers: Towers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    path = towers.bundle if request.param == "litert" else towers.onnx
    cache = str(tmp_path_factory.mktemp("cache"))
    with Engine(str(path), Backend.CPU(thread_count=1), cache_dir=cache) as engine:
        yield engine


def picture(width: int, height: int, name: str = "chelsea.png") -> bytes:
    """A photograph stretched to that size."""
    file = io.BytesIO()
    Image.open(photograph(name)).convert("RGB").resize((width, height)).save(file, "PNG")
    return file.getvalue()


def image(width: int, height: int, name: str = "chelsea.png") -> Content:
    return Content.ImageBytes(picture(width, height, name))


def samples(count: int, index: int = 0) -> Floats:
    found, rate_hz = soundfile.read(speech(index), dtype="float32")
    return np.resize(found[rate_hz:], count)


def sound(count: int, index: int = 0) -> Content:
    return Content.AudioBytes(wav_bytes(samples(count, index)))


# ---------------------------------------------------------------- pixels and frames


@pytest.mark.parametrize("tokens", [70, 280])
@pytest.mark.parametrize(
    "size", [(512, 512), (640, 427), (300, 451), (1, 1), (3000, 40), (7, 4000), (9000, 10), (768, 768), (100, 101)]
)
def test_pixels_and_positions_are_hugging_faces(tokens: int, size: tuple[int, int]) -> None:
    """To the last bit: Pillow resizes both, and both divide in float64."""
    file = picture(*size)
    found = image_patches(MediaItem.of(MediaKind.IMAGE, file), PatchGrid(9 * tokens, 16, 3))
    expected = _image_processor(tokens)(Image.open(io.BytesIO(file)), return_tensors="np")
    count = 9 * int(expected["num_soft_tokens_per_image"][0])
    assert len(found.values) == len(found.positions) == count
    np.testing.assert_array_equal(found.values, expected["pixel_values"][0, :count])
    np.testing.assert_array_equal(found.positions, expected["image_position_ids"][0, :count])
    assert (expected["image_position_ids"][0, count:] == -1).all()


@pytest.mark.parametrize("count", [161, 320, 321, 480, 481, 16_000, 16_001, 21_920, 480_000])
def test_mel_frames_are_hugging_faces(count: int) -> None:
    from transformers import Gemma4AudioFeatureExtractor

    made = Gemma4AudioFeatureExtractor()([samples(count)], return_tensors="np")
    expected = made["input_features"][0][made["input_features_mask"][0]]
    found = GEMMA4.log_mel(samples(count))
    assert found.shape == expected.shape == (GEMMA4.frame_count(count), 128)
    assert float(np.abs(found - expected).max()) <= 1e-5  # of values down to log(1e-3); the FFT's rounding
    assert GEMMA4.frame_count(GEMMA4.samples_of(3)) == 3 == GEMMA4.frame_count(GEMMA4.samples_of(4) - 1)


# ---------------------------------------------------------------- prompts and replies


CASES: Mapping[str, Callable[[], Contents]] = {
    "image": lambda: Contents.of(image(451, 300), "What is this?"),
    "sound": lambda: Contents.of("Write down:", sound(16_000)),
    "shortest sound": lambda: Contents.of(sound(161), "What?"),
    "images of several shapes": lambda: Contents.of(
        image(300, 600), image(900, 60, "rocket.jpg"), "and", image(50, 50), "differ?"
    ),
    "interleaved": lambda: Contents.of(
        "One", image(640, 427, "rocket.jpg"), "two", sound(21_937, 1), "three", image(90, 900), sound(9000), "4?"
    ),
}


def rendered(engine: Engine, contents: Contents) -> str:
    with engine.create_conversation() as conversation:
        return conversation.render_message_to_string(contents)


def prompt_of(engine: Engine, contents: Contents) -> list[int]:
    text = rendered(engine, contents)
    tokens = engine.media.read(text, media_items([Message.user(contents).to_json()])).tokens()
    return [*engine.text_model.start_tokens, *tokens]


def greedy(engine: Engine, prompt: list[int], count: int = NEW_TOKENS) -> tuple[list[int], Floats]:
    """The reply and the logits of each of its tokens."""
    sequence = engine.new_sequence()
    sequence.append(prompt)
    found: list[Floats] = []
    reply: list[int] = []
    for _ in range(count):
        found.append(sequence.logits())
        reply.append(int(found[-1].argmax()))
        sequence.append(reply[-1:])
    return reply, np.stack(found)


@pytest.mark.parametrize("name", CASES)
def test_the_prompt_and_the_greedy_tokens_are_hugging_faces(engine: Engine, towers: Towers, name: str) -> None:
    contents = CASES[name]()
    text = rendered(engine, contents)
    inputs = towers.inputs(text, contents)
    prompt = prompt_of(engine, contents)
    assert [int(token) for token in prompt] == inputs["input_ids"][0].tolist()
    items = media_items([Message.user(contents).to_json()])
    assert engine.media.read(text, items).token_count == len(prompt) - len(engine.text_model.start_tokens)
    reply, found = greedy(engine, prompt)
    expected = towers.expected(inputs, reply)
    expected.check(found, TOLERANCE)
    expected.check_greedy(reply, TOLERANCE)


def test_a_long_recording_is_heard_window_by_window(engine: Engine) -> None:
    """30 seconds each: 2999 frames, 750 tokens. What is left is too short for a frame."""
    longest = engine.media.audio_window_samples
    assert longest == 480_000
    once = [token for token in prompt_of(engine, Contents.of(sound(longest))) if isinstance(token, SoftToken)]
    more = [token for token in prompt_of(engine, Contents.of(sound(longest + 160))) if isinstance(token, SoftToken)]
    assert len(once) == 750
    assert more == once


def test_a_bundles_footprint_knows_both(towers: Towers) -> None:
    shapes = BundlePlan.of(Bundle.open(towers.bundle)).encoders
    assert [(shape.design, shape.inputs) for shape in shapes] == [
        (EncoderDesign.PATCHES, 9 * SOFT_TOKENS),
        (EncoderDesign.CONFORMER, 3000),
    ]


def test_verification_compares_both_encoders(towers: Towers, tmp_path: Path) -> None:
    for path in (towers.bundle, towers.onnx):
        scores = score_encoders(Checkpoint.open(towers.checkpoint), open_model(path), 1, tmp_path)
        found = {score.modality: (score.embeddings, score.relative_error < 1e-5) for score in scores}
        assert found == {"vision": (64, True), "audio": (24, True)}


def test_transformers_js_sees_and_hears(towers: Towers) -> None:
    """Its greedy tokens are transformers', from the same patches and mel frames."""
    contents = CASES["interleaved"]()
    with Engine(str(towers.onnx)) as engine:
        inputs = towers.inputs(rendered(engine, contents), contents)
    name, version = TRANSFORMERS_JS
    module = npm_modules(name, version) / name / "dist" / "transformers.node.mjs"
    command = ["node", str(MEDIA_SCRIPT), str(module), str(towers.onnx), "16"]
    ran = subprocess.run(command, input=tensors_as_json(inputs), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    reply = json.loads(ran.stdout)
    assert len(reply) == 16
    towers.expected(inputs, reply).check_greedy(reply, TOLERANCE)


# ---------------------------------------------------------------- litert_lm


def with_padding_rows(engine: Engine, prompt: list[int], token: str) -> list[int]:
    """The prompt as litert_lm reads it: what ends an image or a clip has the per-layer row of padding."""
    row = np.zeros((1, len(next(t.embedding for t in prompt if isinstance(t, SoftToken)))), np.float32)
    end = IDS[token]
    table = _embedder(engine)
    table.lookup([end], row)
    return [SoftToken(end, row[0], ("end", 0)) if token_id == end else token_id for token_id in prompt]


def _embedder(engine: Engine) -> Any:
    from gemma_edge.runtime.executors.litert.sections import section_range
    from gemma_edge.runtime.executors.litert.tables import EmbeddingTable
    from gemma_edge.runtime.formats.litertlm import ModelType

    assert isinstance(engine.bundle, Bundle)
    return EmbeddingTable(section_range(engine.bundle, ModelType.EMBEDDER))


def test_litert_lm_sees_and_hears_the_same_but_for_what_it_says_it_does(towers: Towers, tmp_path: Path) -> None:
    """An image that needs no resizing, which it does in linear light; a recording with the frame that it adds."""
    side = int((SOFT_TOKENS * 48**2) ** 0.5) // 48 * 48
    heard = 16_000
    messages = {
        "<image|>": (Contents.of(image(side, side), "What is this?"),) * 2,
        "<audio|>": (Contents.of("Write:", sound(heard)), Contents.of("Write:", _longer(sound(heard)))),
    }
    one = Backend.CPU(thread_count=1)
    with LitertLmEngine(str(towers.bundle), one, cache_dir=str(tmp_path / "theirs")) as theirs:
        said = {end: _reply(theirs, message) for end, (message, _) in messages.items()}
    with Engine(str(towers.bundle), one, cache_dir=str(tmp_path / "ours")) as engine:
        for end, (_, message) in messages.items():
            prompt = with_padding_rows(engine, prompt_of(engine, message), end)
            assert engine.detokenize(greedy(engine, prompt, 16)[0]) == said[end], end


def _reply(engine: LitertLmEngine, message: Contents) -> str:
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        return str(conversation.send_message(message, max_output_tokens=16))


def _longer(clip: Content) -> Content:
    """By a frame of zeros."""
    assert isinstance(clip, Content.AudioBytes)
    heard, _ = soundfile.read(io.BytesIO(clip.bytes), dtype="float32")
    return Content.AudioBytes(wav_bytes(np.pad(heard, (0, 160))))


# ---------------------------------------------------------------- refused


def test_a_directory_that_does_not_say_how_images_are_cut(towers: Towers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxDirectory, "metadata", lambda _: LlmMetadata())
    with pytest.raises(BundleMismatchError) as caught:
        _ = OnnxEncoders(OnnxDirectory.open(towers.onnx), 1, 1).vision
    assert str(caught.value) == (
        f"{towers.onnx}/onnx/vision_encoder.onnx: has patches as an input, and the metadata does not say how many; "
        "convert the checkpoint with gemma-edge"
    )


def test_what_cannot_be_read_is_refused(engine: Engine) -> None:
    refused = {
        "the recording: 10 ms of sound, one frame takes 11; give a longer recording": Contents.of(sound(160)),
        "the image: not an image that Pillow knows; give a JPEG, PNG, WebP or GIF file": Contents.of(
            Content.ImageBytes(b"nothing")
        ),
        "the prompt has 2 places for image content, the message 1; write no <|image|> into a text, and use a chat "
        "template that has them": Contents.of("<start_of_image>", image(50, 50)),
    }
    for reason, contents in refused.items():
        with engine.create_conversation() as conversation, pytest.raises(MediaError) as caught:
            conversation.send_message(contents)
        assert str(caught.value) == reason
