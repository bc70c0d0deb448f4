"""config.json of a vision encoder: what is read, and what is refused in one line."""

from typing import Any

import pytest

from gemma_edge.converter.models import vision
from gemma_edge.converter.models.encoders import Encoder, Modality, encoders_of
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.fields import ConfigError
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.models.vision_config import Attention, EdgeResidual, InvertedBottleneck

NETWORK = "this model needs new code"


def config(**vision_config: Any) -> dict[str, Any]:
    return {"model_type": "gemma3n", "text_config": {}, "vision_config": vision_config}


def squares(pixels: int) -> MediaSettings:
    return MediaSettings({"size": {"height": pixels, "width": pixels}}, "preprocessor_config.json")


def official() -> vision.Config:
    [encoder] = encoders_of(config(), MediaSettings(), "gemma3n")
    assert isinstance(encoder.config, vision.Config)
    return encoder.config


def test_the_official_encoder_has_its_294_million_weights() -> None:
    """timm's mobilenetv5_300m_enc; 24 of its blocks attend to a smaller image or to all places."""
    blocks = [block for stage in official().stages for block in stage]
    assert [len(stage) for stage in official().stages] == [3, 5, 37, 39]
    assert [
        sum(isinstance(block, kind) for block in blocks) for kind in (EdgeResidual, InvertedBottleneck, Attention)
    ] == [
        3,
        48,
        33,
    ]
    encoder = [spec for spec in vision.tensors(official()) if spec.name.startswith("vision_tower.")]
    assert sum(spec.values for spec in encoder) == 294_126_912
    assert len(encoder) == 548


def test_a_tower_knows_what_it_takes() -> None:
    encoder = Encoder.of(official())
    assert (encoder.modality, encoder.inputs) == (Modality.VISION, 768 * 768)
    assert encoder.prefixes == ("vision_tower.", "embed_vision.")
    assert [graph.name for graph in encoder.graphs(in_one=False)] == ["vision_encoder", "vision_adapter"]
    assert [graph.name for graph in encoder.graphs(in_one=True)] == ["vision_encoder"]
    assert encoder.is_stored_in(["model.vision_tower.timm_model.msfa.norm.weight"])
    assert encoder.is_stored_in(["vision_tower.timm_model.msfa.norm.weight"])
    assert not encoder.is_stored_in(["model.embed_vision.embedding.weight", "model.language_model.norm.weight"])


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "gemma3n_text"},
        {"model_type": "gemma3", "vision_config": {}, "text_config": {"model_type": "gemma3_text"}},
        {"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}, "vision_config": None},
    ],
)
def test_models_without_towers(values: dict[str, Any]) -> None:
    assert Model.of_checkpoint(values, MediaSettings()).encoders == ()


BLOCK = {"block_type": "uir", "out_chs": 32, "stride": 2, "dw_kernel_size_mid": 3, "exp_ratio": 2.0}


def network(**changes: Any) -> dict[str, Any]:
    """Two stages; the second's block is changed."""
    return {"model_args": {"block_args": [[BLOCK], [BLOCK | changes]], "msfa_output_resolution": 16}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet50"},
         f"architecture is 'resnet50', only 'mobilenetv5_300m_enc' is supported; {NETWORK}"),
        ({"hidden_size": 1024}, f"hidden_size is 1024, only 2048 is supported; {NETWORK}"),
        ({"model_args": {"act_layer": "relu"}}, f"act_layer is 'relu', only None is supported; {NETWORK}"),
        ({"vocab_offset": 262_145}, "eoi_token_id is 262144, expected one of the 128 ids from 262145 that embed_vision "
         "holds; fix the checkpoint"),
        (network(dw_kernel_size_mid=0), f"a vision block has stride 2 and no convolution to make it; {NETWORK}"),
        ({"model_args": 5}, "model_args is 5, expected an object or null; fix the checkpoint"),
        ({"model_args": {"block_args": 5}}, "block_args is '5', expected stages of blocks, which are objects; "
         + NETWORK),
        ({"model_args": {"block_args": [["er_r1_k3_s2_e4_c128"]]}}, "block_args is \"[['er_r1_k3_s2_e4_c128']]\", "
         "expected stages of blocks, which are objects; " + NETWORK),
        (network(block_type="ir"), f"block_type is 'ir', only 'er', 'uir' or 'mqa' is supported; {NETWORK}"),
        (network(act_layer="relu"), f"act_layer is 'relu', only None is supported; {NETWORK}"),
        (network(se_ratio=0.25), f"se_ratio is 0.25, only 0.0 is supported; {NETWORK}"),
        (network(noskip=True), f"noskip is True, only False is supported; {NETWORK}"),
        (network(dw_kernel_size_end=3), f"dw_kernel_size_end is 3, only 0 is supported; {NETWORK}"),
        (network(exp_ratio=2.1), "a vision block has 67.2 channels, expected a multiple of 8; " + NETWORK),
        (network(out_chs=36), "a vision block has 36 channels, expected a multiple of 8; " + NETWORK),
        (network(stride=1), "the stages of vision block_args have strides [2, 1], expected at least two, all 2; "
         + NETWORK),
        ({"model_args": {"block_args": [[BLOCK]]}}, "the stages of vision block_args have strides [2], expected at "
         "least two, all 2; " + NETWORK),
    ],
)  # fmt: skip
def test_settings_that_would_give_other_numbers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        encoders_of(config(**changes), MediaSettings(), "gemma3n")
    assert str(caught.value) == f"config.json: {message}"


def test_attention_between_other_channels_is_refused() -> None:
    attention = {"block_type": "mqa", "out_chs": 64, "num_heads": 2, "key_dim": 16, "value_dim": 16}
    arguments = {"block_args": [[BLOCK, attention], [BLOCK]]}
    with pytest.raises(
        ConfigError, match=r"config.json: out_chs is 64, only 32 is supported; this model needs new code"
    ):
        encoders_of(config(model_args=arguments), MediaSettings(), "gemma3n")


def test_a_convolution_before_makes_the_stride_where_there_is_none_between() -> None:
    assert encoders_of(config(**network(dw_kernel_size_mid=0, dw_kernel_size_start=3)), squares(128), "gemma3n")


def test_ids_that_two_embedders_hold_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        encoders_of(config(vocab_size=129) | {"audio_config": {}}, MediaSettings(), "gemma3n")
    assert str(caught.value) == (
        "config.json: embed_vision.embedding and embed_audio.embedding both hold id 262272, expected ids of their own; "
        "fix vocab_offset or vocab_size"
    )


def test_a_config_that_is_no_object_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        encoders_of({"model_type": "gemma3n", "text_config": {}, "vision_config": 3}, MediaSettings(), "gemma3n")
    assert str(caught.value) == "config.json: vision_config is 3, expected an object or null; fix the checkpoint"


def test_an_image_that_does_not_divide_into_places_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        encoders_of(config(), squares(760), "gemma3n")
    assert str(caught.value) == (
        "preprocessor_config.json: images are 760 pixels wide, expected a multiple of 256 for 16 x 16 embeddings; "
        "fix the checkpoint"
    )


def test_other_numbers_of_tokens_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        encoders_of(config() | {"vision_soft_tokens_per_image": 64}, MediaSettings(), "gemma3n")
    assert str(caught.value) == (f"config.json: vision_soft_tokens_per_image is 64, only 256 is supported; {NETWORK}")
