"""Encoders of Gemma 4 that a checkpoint stores as integers: read as what they are worth, and kept where they can be."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.integrations.gemma_quant import QuantizedLinear, replace_with_quant_layers
from transformers.utils.quantization_config import GemmaQuantizationConfig

from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError
from gemma_edge.converter.convert import convert
from gemma_edge.runtime.executors.open import open_encoders
from gemma_edge.runtime.formats.model import open_model
from gemma_edge.runtime.media.image import Patches, PatchGrid
from tools import tiny_gemma4_towers as tiny
from tools.audio_oracle import loud_and_quiet, relative_error
from tools.gemma_quant_writer import fill
from tools.packed_writer import random_packed, values_of, write_packed

Floats = NDArray[np.float32]
EXACT, ROUNDED = 1e-5, 3e-2  # relative; the latter is what int8 activations lose of weights that are exact
FRAMES = 90


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("floats")
    tiny.write_tiny_gemma4_towers(directory)
    return directory


def quantized(directory: Path, floats: Path) -> Any:
    """As transformers' quantizer "gemma" has it: 4 bits, 2 in some, 8 in others."""
    model = tiny.build(0)
    patterns = {r"layers\.1\.mlp|ffw_layer_1": {"num_bits": 2}, "per_layer|relative": {"num_bits": 8}}
    settings = GemmaQuantizationConfig(4, False, patterns, [])
    sizes = {name: values.detach().square().mean().sqrt() for name, values in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    replace_with_quant_layers(model, settings, ["lm_head"])
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            fill(layer.weight, layer.weight_scale, layer.num_bits, sizes[f"{name}.weight"], generator)
            if "q_proj" in name and "tower" in name:
                layer.input_activation_scale.fill_(2 / 100)
                layer.output_activation_scale.fill_(2 / 100)
    model.config.quantization_config = settings
    model.save_pretrained(directory)
    _copy_side_files(floats, directory)
    return model


def packed(directory: Path, floats: Path) -> Any:
    """As compressed-tensors packs it: 4 bits in groups of 32, but for what has other columns."""
    model = tiny.build(0)
    rng = np.random.default_rng(0)
    tensors = {name: values.detach().numpy() for name, values in tiny.tensors(model).items()}
    linears = [name for name in tensors if "_tower.layers" in name or "_tower.encoder" in name]
    chosen = [n for n in linears if tensors[n].ndim == 2 and tensors[n].shape[1] % 32 == 0 and "relative" not in n]
    matrices = {name: random_packed(tensors.pop(name).shape, 4, 32, rng) for name in chosen}
    with torch.no_grad():
        for name, values in matrices.items():
            model.get_parameter(name).copy_(torch.from_numpy(values_of(values)))
    directory.mkdir()
    shutil.copy(floats / "config.json", directory)
    write_packed(directory, tensors, matrices, 4, 32)
    _copy_side_files(floats, directory)
    return model


def _copy_side_files(source: Path, directory: Path) -> None:
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, directory)


def media() -> tuple[Patches, Floats]:
    """An image of 12 x 24 patches and 0.9 s of sound."""
    picture = np.random.default_rng(0).random((16 * 12, 16 * 24, 3), np.float32)
    return PatchGrid(9 * tiny.SOFT_TOKENS, 16, 3).cut(picture), loud_and_quiet(1, FRAMES, 128)[0]


def expected(model: Any, picture: Patches, mel: Floats) -> tuple[Floats, Floats]:
    """transformers' embeddings."""
    patches, positions = torch.from_numpy(picture.values), torch.from_numpy(picture.positions).long()
    with torch.no_grad():
        seen = model.model.get_image_features(patches[None], positions[None]).pooler_output[0]
        heard = model.model.get_audio_features(torch.from_numpy(mel)[None], torch.ones(1, FRAMES, dtype=torch.bool))
    return seen.numpy(), heard.pooler_output[0].numpy()


@pytest.mark.parametrize("write", [quantized, packed])
def test_integers_are_read_and_kept(write: Callable[[Path, Path], Any], floats: Path, tmp_path: Path) -> None:
    model = write(tmp_path / "checkpoint", floats)
    picture, mel = media()
    seen, heard = expected(model, picture, mel)
    bundle, sizes = tmp_path / "bundle.litertlm", {}
    for precision, bound in (("fp32", EXACT), ("int4", ROUNDED)):
        options: dict[str, Any] = {"context": 256, "prefill": (8, 32), "measure": False}
        report = convert(f"custom-{precision}", tmp_path / "checkpoint", bundle, **options)
        encoders = open_encoders(open_model(bundle), 1, 1, None)
        assert relative_error(encoders.encode_image(picture)[0], seen) < bound
        assert relative_error(encoders.encode_audio(mel), heard) < bound
        sizes[precision] = report.values["bytes_by_section"]
    for name in ("vision_encoder", "audio_encoder"):
        assert sizes["int4"][name] < sizes["fp32"][name] / 4  # what int8, which the recipe says, does not reach


def test_levels_of_what_is_multiplied_out_are_refused(floats: Path, tmp_path: Path) -> None:
    model = quantized(tmp_path / "checkpoint", floats)
    model.get_submodule("model.audio_tower.layers.0.self_attn.relative_k_proj").output_activation_scale.fill_(0.1)
    model.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError) as caught:
        convert("custom-int8", tmp_path / "checkpoint", tmp_path / "out.litertlm")
    assert str(caught.value) == (
        f"{tmp_path / 'checkpoint'}: model.audio_tower.layers.0.self_attn.relative_k_proj.weight has scales of "
        "activations, expected none: it is multiplied out at conversion; leave its modality out of --modalities"
    )
    assert not (tmp_path / "out.litertlm").exists()


def test_bounds_may_be_infinite_and_not_nan(floats: Path, tmp_path: Path) -> None:
    """A layer that was not measured has none."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(floats, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "model.safetensors"
    tensors, name = load_file(path), "model.vision_tower.encoder.layers.0.mlp.up_proj.input_max"
    for value, is_read in ((torch.inf, True), (torch.nan, False)):
        save_file(tensors | {name: torch.tensor(value)}, path)
        options: dict[str, Any] = {"context": 256, "prefill": (8, 32), "measure": False}
        if is_read:
            convert("custom-fp32", tmp_path / "checkpoint", tmp_path / "out.litertlm", **options)
            rows = open_encoders(open_model(tmp_path / "out.litertlm"), 1, 1, None).encode_image(media()[0])[0]
            assert np.isfinite(rows).all()
        else:
            with pytest.raises(
                CheckpointError, match=f"^{name}: holds NaN, Inf or a value above 1e\\+12, expected weig"
            ):
                convert("custom-fp32", tmp_path / "checkpoint", tmp_path / "nan.litertlm", **options)
