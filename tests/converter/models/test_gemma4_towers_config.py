"""config.json and the processor's settings of Gemma 4's encoders: what is read, and what is refused in one line."""

import math
from collections.abc import Mapping
from typing import Any

import pytest

from gemma_edge.converter.models.encoders import encoders_of
from gemma_edge.converter.models.fields import ConfigError
from gemma_edge.converter.models.gemma4_encoders import audio, vision
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.models.official import official_model

FILE = "processor_config.json"
NEW = "this model needs new code"
FIX = "fix the checkpoint"


def read(
    settings: MediaSettings | None = None,
    vision_config: Mapping[str, Any] | None = None,
    audio_config: Mapping[str, Any] | None = None,
    **others: Any,
) -> None:
    whole = {"model_type": "gemma4", "text_config": {}, "vision_config": vision_config, "audio_config": audio_config}
    encoders_of(whole | others, settings or MediaSettings(), "gemma4")


def images(**values: Any) -> MediaSettings:
    return MediaSettings(values, FILE)


def test_the_official_encoders_have_their_weights() -> None:
    """As transformers counts them for the numbers of models/gemma4/convert_gemma4_weights.py."""
    sight, hearing = official_model("gemma4-e2b").encoders
    assert isinstance(sight.config, vision.Config)
    assert isinstance(hearing.config, audio.Config)
    assert (sight.config.patches, sight.config.tokens, hearing.config.frames) == (2520, 280, 3000)
    stored = {
        encoder.modality: sum(
            math.prod(part.shape)
            for spec in encoder.tensors.values()
            for part in spec.stored
            if part.source.startswith(encoder.prefixes[0])
        )
        for encoder in (sight, hearing)
    }
    assert {modality: round(values / 1e6, 1) for modality, values in stored.items()} == {
        "vision": 167.4,
        "audio": 304.8,
    }


VISION_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"head_dim": 18}, f"config.json: vision head_dim is 18, expected a multiple of 4; {FIX}"),
    (
        {"position_embedding_size": 100},
        "config.json: vision position_embedding_size is 100, an image of 280 tokens has up to 840 patches in a row; "
        "fix max_soft_tokens",
    ),
    (
        {"hidden_activation": "relu"},
        f"config.json: hidden_activation is 'relu', only 'gelu_pytorch_tanh' is supp.*{NEW}",
    ),
    ({"num_key_value_heads": 4}, f"config.json: num_key_value_heads is 4, only 12 is supported; {NEW}"),
    (
        {"rope_parameters": {"rope_type": "linear"}},
        "config.json: vision rope_parameters: rope_type is 'linear', only 'ax",
    ),
]
AUDIO_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 1000}, f"config.json: audio hidden_size is 1000, expected a multiple of twice the 8 heads; {FIX}"),
    (
        {"subsampling_conv_channels": [64, 32]},
        f"config.json: audio subsampling_conv_channels begins with 64, expected 128, as there are mel bins; {NEW}",
    ),
    (
        {"subsampling_conv_channels": [128]},
        rf"config.json: subsampling_conv_channels is \[128\], expected two positive integers; {FIX}",
    ),
    (
        {"attention_chunk_size": 1, "attention_context_left": 2},
        f"config.json: attention_chunk_size is 1, expected at least 2; {NEW}",
    ),
    ({"attention_context_left": 12}, f"config.json: attention_context_left is 12, only 13 is supported; {NEW}"),
    ({"hidden_act": "gelu"}, f"config.json: hidden_act is 'gelu', only 'silu' is supported; {NEW}"),
]
IMAGES_REFUSED: list[tuple[MediaSettings, str]] = [
    (images(max_soft_tokens=100), f"{FILE}: max_soft_tokens is 100, expected one of 70, 140, 280, 560, 1120; {FIX}"),
    (images(patch_size=14), f"{FILE}: patch_size is 14, only 16 is supported; {NEW}"),
    (images(resample=2), f"{FILE}: resample is 2, only 3 is supported; {NEW}"),
    (images(do_normalize=True), f"{FILE}: do_normalize is True, only False is supported; {NEW}"),
]


@pytest.mark.parametrize(("changes", "message"), VISION_REFUSED)
def test_images_that_would_be_seen_otherwise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        read(vision_config=changes)


@pytest.mark.parametrize(("changes", "message"), AUDIO_REFUSED)
def test_sound_that_would_be_heard_otherwise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        read(audio_config=changes)


@pytest.mark.parametrize(("settings", "message"), IMAGES_REFUSED)
def test_images_that_are_prepared_otherwise(settings: MediaSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        read(settings, vision_config={})


def test_what_is_refused_for_the_whole_model() -> None:
    with pytest.raises(
        ConfigError, match=f"^config.json: eoi_token_id is 9, expected an id below vocab_size 5; {FIX}$"
    ):
        read(vision_config={}, eoi_token_id=9, text_config={"vocab_size": 5})
    with pytest.raises(
        ConfigError, match=r"^config.json: use_bidirectional_attention is 'vision', only None is supported"
    ):
        read(vision_config={}, text_config={"use_bidirectional_attention": "vision"})
    with pytest.raises(ConfigError, match=f"^{FILE}: mel_floor is 0.1, only 0.001 is supported; {NEW}$"):
        read(MediaSettings(sound={"mel_floor": 0.1}, sound_file=FILE), audio_config={})
