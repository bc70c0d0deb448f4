"""The generic model type: what surrounds media in a prompt, and the front end that hears as transformers' does."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError
from gemma_edge.converter.litert.media_metadata import FrontEnd, FrontEndError, generic_model
from gemma_edge.converter.models.fields import ConfigError
from gemma_edge.converter.tokenizer.chat_template import gemma_template
from gemma_edge.converter.tokenizer.minijinja import LitertTemplate


def write(checkpoint: Path, name: str, values: dict[str, Any]) -> Path:
    (checkpoint / name).write_text(json.dumps(values))
    return checkpoint


def test_without_a_file_sound_is_prepared_as_transformers_does(tmp_path: Path) -> None:
    extractor = transformers.Gemma3nAudioFeatureExtractor()
    extractor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {"frame_length", "hop_length", "fft_length", "max_frequency", "mel_floor"} <= written.keys()
    assert FrontEnd.read(tmp_path) == FrontEnd.read(tmp_path / "absent") == FrontEnd()


def test_settings_are_found_beside_those_of_images_and_in_a_table_of_their_own(tmp_path: Path) -> None:
    settings = {"hop_length": 200, "frame_length": 800, "max_frequency": 7000.0, "mel_floor": 0.001}
    expected = FrontEnd(hop_samples=200, frame_samples=800, fft_samples=2048, highest_hz=7000.0, mel_floor=0.001)
    assert FrontEnd.read(write(tmp_path, "preprocessor_config.json", {"do_resize": True, **settings})) == expected
    nested = {"image_processor": {}, "feature_extractor": {**settings, "hop_length": 100}}
    assert FrontEnd.read(write(tmp_path, "processor_config.json", nested)).hop_samples == 100  # transformers 5's first


@pytest.mark.parametrize(
    ("key", "value", "known"),
    [("dither", 0.1, 0.0), ("per_bin_mean", [0.5], None), ("preemphasis_htk_flavor", False, True)],
)
def test_sound_that_litert_lm_cannot_prepare(key: str, value: object, known: object, tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", {"hop_length": 160, key: value})
    with pytest.raises(FrontEndError) as caught:
        FrontEnd.read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: the feature extractor's {key} is {value!r}, LiteRT-LM knows {known!r}; "
        "leave audio out of --modalities"
    )


@pytest.mark.parametrize("value", [0, 2**31])
def test_a_value_that_cannot_be_is_named_with_its_file(value: int, tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", {"hop_length": value})
    with pytest.raises(ConfigError, match=f"^preprocessor_config.json: hop_length is {value}, expected "):
        FrontEnd.read(tmp_path)


@pytest.mark.parametrize("extractor", [None, "Gemma3nAudioFeatureExtractor", [1]])
def test_an_extractor_without_settings(extractor: object, tmp_path: Path) -> None:
    assert FrontEnd.read(write(tmp_path, "processor_config.json", {"feature_extractor": extractor})) == FrontEnd()


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_an_unreadable_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        FrontEnd.read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'preprocessor_config.json'}: not JSON (")
    assert str(caught.value).endswith("); download it again")


def test_the_front_end_is_spelled_in_litert_lms_terms() -> None:
    model = generic_model(FrontEnd(), image_size=None)
    assert model.audio_enabled
    assert not model.image_enabled
    assert (model.audio_sample_rate_hz, model.audio_num_channels) == (16_000, 1)
    assert (model.audio_frame_length, model.audio_hop_length, model.audio_fft_length) == (512, 160, 1024)
    assert (model.audio_mel_low_hz, model.audio_mel_high_hz, model.audio_num_mel_bins) == (125.0, 7600.0, 128)
    assert model.audio_mel_floor == pytest.approx(math.log(1e-5))
    assert model.audio_input_scale == 1.0


def test_the_template_marks_media_with_what_the_bundle_looks_for() -> None:
    model = generic_model(FrontEnd(), image_size=768)
    content = [{"type": "text", "text": "Look"}, {"type": "image"}, {"type": "audio"}, {"type": "text", "text": "!"}]
    prompt = LitertTemplate(gemma_template()).render([{"role": "user", "content": content}])
    image, audio = re.findall(model.delimiter_regex, prompt)
    assert re.fullmatch(model.image_token_regex, image)
    assert re.fullmatch(model.audio_token_regex, audio)
    assert (model.image_tensor_height, model.image_tensor_width) == (768, 768)


def test_media_stand_in_a_prompt_as_in_transformers() -> None:
    """Gemma3nProcessor.__init__: full_image_sequence and full_audio_sequence."""
    model = generic_model(FrontEnd(), image_size=768)
    assert model.image_prefix + model.start_of_image_token.token_str == "\n\n<start_of_image>"
    assert model.audio_prefix + model.start_of_audio_token.token_str == "\n\n<start_of_audio>"
    assert model.image_suffix == model.audio_suffix == "\n\n"
    assert model.add_audio_end
    assert not model.add_image_end
