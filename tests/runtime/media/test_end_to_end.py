"""Images and recordings between texts: Hugging Face's prompt and greedy tokens, in LiteRT, ONNX Runtime and litert_lm.

The model is tiny and random, with all towers: what agrees on photographs and speech agrees on every number between.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from numpy.typing import NDArray

from gemma_edge.profiles.costs_encoders import EncoderKind
from gemma_edge.runtime.chat.messages import Content, Contents, Message
from gemma_edge.runtime.cli import bench_main, run_main
from gemma_edge.runtime.config import Backend, ConfigError
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import ContextOverflowError
from gemma_edge.runtime.executors.litert.encoders import LitertEncoders
from gemma_edge.runtime.executors.litert.footprint import BundlePlan
from gemma_edge.runtime.formats.litertlm import Bundle, BundleError, ModelType, SectionKind
from gemma_edge.runtime.litert_lm_engine import LitertLmEngine
from gemma_edge.runtime.measure.encoder_bench import measure_encoders
from gemma_edge.runtime.media.audio import wav_bytes
from gemma_edge.runtime.media.errors import MediaError
from gemma_edge.runtime.media.item import media_items
from gemma_edge.runtime.memory.reading import file_mappings
from gemma_edge.runtime.tasks.cli import transcribe_main
from gemma_edge.runtime.tasks.media import describe, transcribe, transcribe_and_translate
from gemma_edge.runtime.text.sampler import SamplerConfig
from tests.media_files import photograph, speech
from tests.near_ties import check_same_greedy_text
from tests.runtime.media.towers import Towers
from tools.tiny_towers import CLIP_TOKENS, IMAGE_PIXELS, IMAGE_TOKENS

NEW_TOKENS = 16
TOLERANCE = 1e-3  # of logits that spread over about +-12, besides what float32 explains (tests/oracles.py)
WINDOW_SECONDS = 1.94  # 12 tokens of 16 frames of 10 ms, less what the last frame needs
GREEDY = SamplerConfig(top_k=1)


def image(name: str) -> Content:
    return Content.ImageFile(str(photograph(name)))


def sound(seconds: float, index: int = 0) -> Content:
    samples, rate_hz = soundfile.read(speech(index), dtype="float32")
    return Content.AudioBytes(wav_bytes(samples[rate_hz : rate_hz + int(rate_hz * seconds)]))


CASES: Mapping[str, Callable[[], Contents]] = {
    "image": lambda: Contents.of(image("rocket.jpg"), "What is this?"),
    "audio": lambda: Contents.of("Write down:", sound(1.0)),
    "full window": lambda: Contents.of(sound(WINDOW_SECONDS)),
    "interleaved": lambda: Contents.of(
        "One",
        image("rocket.jpg"),
        "two",
        sound(1.37, index=1),
        "three",
        image("chelsea.png"),
        image("rocket.jpg"),
        "4?",
    ),
}


@pytest.fixture(scope="module", params=["litert", "onnx"])
def engine(
    request: pytest.FixtureRequest, towers: Towers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    path = towers.bundle if request.param == "litert" else towers.onnx
    cache = str(tmp_path_factory.mktemp("cache"))
    with Engine(str(path), Backend.CPU(thread_count=1), cache_dir=cache) as engine:
        yield engine


def rendered(engine: Engine, contents: Contents) -> str:
    with engine.create_conversation() as conversation:
        return conversation.render_message_to_string(contents)


def prompt_of(engine: Engine, contents: Contents) -> list[int]:
    text = rendered(engine, contents)
    tokens = engine.media.read(text, media_items([Message.user(contents).to_json()])).tokens()
    return [*engine.text_model.start_tokens, *tokens]


def greedy(engine: Engine, prompt: list[int]) -> tuple[list[int], NDArray[np.float32]]:
    """The reply and the logits of each of its tokens."""
    sequence = engine.new_sequence()
    sequence.append(prompt)
    found: list[NDArray[np.float32]] = []
    reply: list[int] = []
    for _ in range(NEW_TOKENS):
        found.append(sequence.logits())
        reply.append(int(found[-1].argmax()))
        sequence.append(reply[-1:])
    return reply, np.stack(found)


@pytest.mark.parametrize("name", CASES)
def test_the_prompt_and_the_greedy_tokens_are_hugging_faces(engine: Engine, towers: Towers, name: str) -> None:
    contents = CASES[name]()
    inputs = towers.inputs(rendered(engine, contents), contents)
    prompt = prompt_of(engine, contents)
    assert [int(token) for token in prompt] == inputs["input_ids"][0].tolist()
    reply, found = greedy(engine, prompt)
    expected = towers.expected(inputs, reply)
    expected.check(found, TOLERANCE)
    expected.check_greedy(reply, TOLERANCE)


# ---------------------------------------------------------------- in conversations


def test_litert_lm_answers_the_same(towers: Towers, tmp_path: Path) -> None:
    """It leaves out a clip's padding, and tokenizes the newlines between two images one by one: neither is here."""
    whole = sound(WINDOW_SECONDS)
    messages = [
        CASES["image"](),
        Contents.of("Write down:", whole),
        Contents.of("One", image("rocket.jpg"), "two", whole, "three", image("chelsea.png"), "four?"),
    ]
    one = Backend.CPU(thread_count=1)
    with LitertLmEngine(str(towers.bundle), one, cache_dir=str(tmp_path / "theirs")) as theirs:
        expected = [reply_to(theirs, message) for message in messages]
    with Engine(str(towers.bundle), one, cache_dir=str(tmp_path / "ours")) as engine:
        for message, their_reply in zip(messages, expected, strict=True):
            prompt = prompt_of(engine, message)
            with engine.create_conversation(sampler_config=GREEDY) as conversation:
                said = str(conversation.send_message(message, max_output_tokens=NEW_TOKENS))
                tokens = list(conversation.token_ids)[len(prompt) :]
            assert said
            check_same_greedy_text(engine, prompt, tokens, their_reply, said, near_tie=2 * TOLERANCE)


def reply_to(engine: Engine | LitertLmEngine, message: Contents) -> str:
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        return str(conversation.send_message(message, max_output_tokens=NEW_TOKENS))


def test_an_image_stays_in_the_conversation(engine: Engine) -> None:
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        conversation.send_message(CASES["image"](), max_output_tokens=4)
        first = list(conversation.token_ids)
        assert first[: len(prompt_of(engine, CASES["image"]()))] == prompt_of(engine, CASES["image"]())
        second = str(conversation.send_message("And now?", max_output_tokens=4))
        conversation.rewind()
        assert list(conversation.token_ids) == first
        assert str(conversation.send_message("And now?", max_output_tokens=4)) == second
        assert conversation.timing.media_s == 0


def test_an_earlier_message_may_have_one(engine: Engine) -> None:
    said = [Message.user(CASES["image"]()), Message.model(Contents.of("A rocket."))]
    with engine.create_conversation(messages=said, sampler_config=GREEDY) as conversation:
        conversation.send_message(Contents.of("And this?", image("chelsea.png")), max_output_tokens=2)
        [row_id] = engine.tokenize("<image_soft_token>")
        assert [int(token) for token in conversation.token_ids].count(row_id) == 2 * IMAGE_TOKENS
        assert conversation.timing.media_s > 0


def test_a_long_recording_is_heard_window_by_window(engine: Engine) -> None:
    samples, _ = soundfile.read(speech(), dtype="float32")
    longest = engine.media.audio_window_samples
    if longest > len(samples):  # ONNX takes windows of any length, up to 30 s
        samples = np.resize(samples, 2 * longest + 8000)
    pieces = [samples[:longest], samples[longest : 2 * longest], samples[2 * longest : 2 * longest + 8000]]
    assert clip_rows(engine, np.concatenate(pieces)) == [row for piece in pieces for row in clip_rows(engine, piece)]


def clip_rows(engine: Engine, samples: NDArray[np.float32]) -> list[int]:
    [row_id] = engine.tokenize("<audio_soft_token>")
    rows = [
        token
        for token in prompt_of(engine, Contents.of(Content.AudioBytes(wav_bytes(samples))))
        if int(token) == row_id
    ]
    assert len(rows) % CLIP_TOKENS == 0
    return rows


def test_an_encoder_is_released_where_memory_is_watched(towers: Towers, tmp_path: Path) -> None:
    for profile, kept in ((None, 2), ("phone-2gb", 0)):
        with Engine(str(towers.bundle), cache_dir=str(tmp_path), profile=profile) as engine:
            decoders = packed_weights(tmp_path)
            prompt = prompt_of(engine, CASES["interleaved"]())
            assert len(packed_weights(tmp_path)) - len(decoders) == kept
            assert prompt_of(engine, CASES["interleaved"]()) == prompt


def packed_weights(cache: Path) -> set[str]:
    """Weight caches that this process has mapped."""
    return {mapping.path for mapping in file_mappings() if mapping.path.startswith(str(cache.resolve()))}


# ---------------------------------------------------------------- tasks


def test_transcribing_asks_as_google_does(engine: Engine) -> None:
    samples, _ = soundfile.read(speech(), dtype="float32")
    clip = wav_bytes(samples[:16_000])
    request = (
        "Transcribe the following speech segment in German into German text. Follow these specific instructions for "
        "formatting the answer:\n* Only output the transcription, with no newlines.\n* When transcribing numbers, "
        "write the digits, i.e. write 1.7 and not one point seven, and write 3 instead of three."
    )
    said = "".join(transcribe(engine, clip, "German"))
    assert said == answer(engine, Contents.of(request, Content.AudioBytes(clip)))
    unknown = request.replace("in German into German text", "in its original language")
    assert "".join(transcribe(engine, clip)) == answer(engine, Contents.of(unknown, Content.AudioBytes(clip)))


def test_translating_asks_as_google_does(engine: Engine) -> None:
    samples, _ = soundfile.read(speech(), dtype="float32")
    clip = wav_bytes(samples[:16_000])
    request = (
        "Transcribe the following speech segment in English, then translate it into French.\nWhen formatting the "
        "answer, first output the transcription in English, then one newline, then output the string 'French: ', then "
        "the translation in French."
    )
    said = "".join(transcribe_and_translate(engine, clip, "French", "English"))
    assert said == answer(engine, Contents.of(request, Content.AudioBytes(clip)))


def test_describing_shows_the_image_first(engine: Engine) -> None:
    path = photograph("rocket.jpg")
    request = Contents.of(image("rocket.jpg"), "Describe this image in detail.")
    assert "".join(describe(engine, path)) == "".join(describe(engine, path.read_bytes())) == answer(engine, request)


def answer(engine: Engine, contents: Contents) -> str:
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        return str(conversation.send_message(contents))


# ---------------------------------------------------------------- commands


def run(command: click.Command, *arguments: object) -> str:
    result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_command_line_shows_and_plays(towers: Towers, tmp_path: Path) -> None:
    recording, cache = tmp_path / "speech.wav", str(tmp_path / "cache")
    samples, _ = soundfile.read(speech(), dtype="float32")
    recording.write_bytes(wav_bytes(samples[:16_000]))
    shown, played = image("rocket.jpg"), Content.AudioFile(str(recording))
    with Engine(str(towers.bundle), cache_dir=cache) as engine:
        expected = reply_to(engine, Contents.of(shown, image("chelsea.png"), "What?", played))
        written = "".join(transcribe(engine, recording, "English"))
        translated = "".join(transcribe_and_translate(engine, recording, "French"))
    both = ("--image", photograph("rocket.jpg"), "--image", photograph("chelsea.png"), "--audio", recording)
    settings = ("--prompt", "What?", "--greedy", "--max-output-tokens", NEW_TOKENS, "--cache-dir", cache)
    shown_and_played = CliRunner().invoke(run_main, [*map(str, (towers.bundle, *both, *settings)), "--stats"])
    assert shown_and_played.stdout == expected + "\n"
    assert re.match(r"\[images and audio \d+\.\d\d s; first token ", shown_and_played.stderr)
    assert (
        run(transcribe_main, towers.bundle, recording, "--language", "English", "--cache-dir", cache) == written + "\n"
    )
    arguments = (towers.bundle, recording, "--translate", "French", "--cache-dir", cache)
    assert run(transcribe_main, *arguments) == translated + "\n"


def test_the_benchmark_prints_each_encoder(towers: Towers, tmp_path: Path) -> None:
    arguments = ("--runs", 1, "--prefill", 16, "--decode", 2, "--threads", 1, "--cache-dir", tmp_path)
    printed = run(bench_main, towers.bundle, *arguments)
    sizes = r"load -?[\d.]+ s, {} [\d.]+ s, peak \d+ MiB anonymous, \d+ MiB mapped; {}; outside: .*"
    assert re.search("^vision encoder: " + sizes.format("an image", "1 XNNPACK partition") + "$", printed, re.MULTILINE)
    assert re.search(
        "^audio encoder: " + sizes.format("30 s of sound", "[123] XNNPACK partitions?") + "$", printed, re.M
    )


def test_onnx_encoders_are_measured_too(towers: Towers) -> None:
    found = measure_encoders(str(towers.onnx), 1, None)
    assert list(found) == ["vision", "audio"]
    assert all(encoder.encode_s > 0 and encoder.anon_bytes > 0 for encoder in found.values())
    assert found["vision"].partitions is found["audio"].partitions is None


def test_a_bundles_footprint_is_that_of_its_largest_moment(towers: Towers) -> None:
    plan = BundlePlan.of(Bundle.open(towers.bundle))
    assert [(shape.kind, shape.inputs) for shape in plan.encoders] == [
        (EncoderKind.VISION, IMAGE_PIXELS**2),
        (EncoderKind.AUDIO, 16 * CLIP_TOKENS),
    ]
    assert {part.name for part in plan.footprint().parts} & set(EncoderKind)


# ---------------------------------------------------------------- refused


def refusal(engine: Engine, contents: Contents) -> str:
    """The message of what a conversation raises; the conversation is then as it was before."""
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        with pytest.raises((MediaError, ContextOverflowError)) as caught:
            conversation.send_message(contents)
        assert conversation.history == ()
        assert conversation.token_count == 0
        assert str(conversation.send_message("x", max_output_tokens=2)) is not None
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_more_media_than_the_context_holds(engine: Engine) -> None:
    images = Contents.of(*[image("rocket.jpg")] * 20, "?")
    assert refusal(engine, images).startswith("context overflow: ")
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000 * 3600, np.int16), 8000, format="FLAC", subtype="PCM_16")  # an hour
    assert refusal(engine, Contents.of(Content.AudioBytes(file.getvalue()))).startswith("context overflow: ")


def test_more_images_than_were_asked_for(towers: Towers, tmp_path: Path) -> None:
    with Engine(str(towers.bundle), max_num_images=1, cache_dir=str(tmp_path)) as engine:
        assert refusal(engine, CASES["interleaved"]()) == "the message has 3 images, max_num_images is 1; send fewer"
        assert prompt_of(engine, CASES["image"]())


@pytest.mark.parametrize("name", ["vision_backend", "audio_backend"])
def test_another_backend(towers: Towers, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is gpu, this executor runs on cpu; use Backend.CPU\\(\\)$"):
        Engine(str(towers.bundle), **{name: Backend.GPU()})  # type: ignore[arg-type]


def test_a_damaged_image_after_a_good_one(engine: Engine) -> None:
    contents = Contents.of(image("rocket.jpg"), Content.ImageBytes(b"nothing"))
    assert refusal(engine, contents) == "the image: not an image that Pillow knows; give a JPEG, PNG, WebP or GIF file"


def test_a_placeholder_in_a_text(engine: Engine) -> None:
    assert refusal(engine, Contents.of("<image_soft_token>", image("rocket.jpg"))) == (
        "the prompt has 2 places for image content, the message 1; write no <image_soft_token> into a text, "
        "and use a chat template that has them"
    )
    assert prompt_of(engine, Contents.of("<image_soft_token>"))  # without media it is text


def test_a_template_without_places(engine: Engine) -> None:
    conversation = engine.create_conversation(chat_template="{{ messages[0].role }}")
    with pytest.raises(MediaError) as caught:
        conversation.send_message(CASES["audio"]())
    assert str(caught.value) == (
        "the prompt has 0 places for audio content, the message 1; write no <audio_soft_token> into a text, "
        "and use a chat template that has them"
    )


@pytest.mark.parametrize(
    "model_type",
    [
        ModelType.VISION_ENCODER,
        ModelType.VISION_ADAPTER,
        ModelType.AUDIO_ENCODER,
        ModelType.AUDIO_ADAPTER,
        ModelType.END_OF_AUDIO,
    ],
)
def test_a_flipped_byte_in_an_encoder_is_refused(towers: Towers, tmp_path: Path, model_type: ModelType) -> None:
    section = Bundle.open(towers.bundle).section(SectionKind.TFLITE_MODEL, model_type)
    content = bytearray(towers.bundle.read_bytes())
    content[section.begin + section.nbytes // 2] ^= 1
    damaged = tmp_path / "damaged.litertlm"
    damaged.write_bytes(content)
    encoders = LitertEncoders(Bundle.open(damaged), 1, 1, tmp_path / "cache")
    with pytest.raises(BundleError, match=f"the section at byte {section.begin} has SHA-256 .*; copy the file again"):
        encode_all(encoders)


def encode_all(encoders: LitertEncoders) -> None:
    """Run every encoder and adapter once."""
    encoders.encode_image(np.zeros((1, IMAGE_PIXELS, IMAGE_PIXELS, 3), np.float32))
    encoders.encode_audio(np.zeros((16, 128), np.float32))
    encoders.end_of_audio()
