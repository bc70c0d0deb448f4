"""The synthetic checkpoints: the official names and shapes, values transformers can run, flat memory."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nMultimodalEmbedder

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.models.family import Model
from tools import synthetic
from tools.synthetic import SIZES, Size, synthetic_tensors, write_synthetic
from tools.tiny import stored

Shapes = dict[str, tuple[int, ...]]
REPOSITORY = Path(__file__).parents[2]
EMBEDDERS = ("model.embed_vision.", "model.embed_audio.")


def shapes_of(module: torch.nn.Module, prefix: str = "") -> Shapes:
    return {prefix + name: tuple(parameter.shape) for name, parameter in stored(module).items()}


def transformers_shapes(size: Size) -> Shapes:
    """What transformers' own classes hold for this config.json, without allocating it."""
    if "text_config" not in size.config:
        config = transformers.Gemma3TextConfig(**{k: v for k, v in size.config.items() if k != "model_type"})
        with torch.device("meta"):
            return shapes_of(transformers.Gemma3ForCausalLM(config))
    settings = {k: v for k, v in size.config["text_config"].items() if k != "model_type"}
    if size.config["model_type"] == "gemma4":
        with torch.device("meta"):
            model = transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**settings)).model
            return shapes_of(model, "model.language_model.")
    text = transformers.Gemma3nTextConfig(**settings)
    vision = transformers.Gemma3nVisionConfig(hidden_size=size.config["vision_config"]["hidden_size"])
    audio = transformers.Gemma3nAudioConfig(hidden_size=size.config["audio_config"]["hidden_size"])
    with torch.device("meta"):
        decoder = transformers.Gemma3nForCausalLM(text).model
        return (
            shapes_of(decoder, "model.language_model.")
            | shapes_of(Gemma3nMultimodalEmbedder(vision, text), "model.embed_vision.")
            | shapes_of(Gemma3nMultimodalEmbedder(audio, text), "model.embed_audio.")
        )


def ignored_by_transformers(size: Size) -> Shapes:
    """Keys and values of KV-sharing layers: in the official files, skipped by transformers when it loads them."""
    if size.config["model_type"] != "gemma3n":
        return {}
    text = size.config["text_config"]
    config = transformers.Gemma3nTextConfig(**{k: v for k, v in text.items() if k != "model_type"})
    with torch.device("meta"):
        prefixes = transformers.Gemma3nForCausalLM(config).model._keys_to_ignore_on_load_unexpected
    kv_width = text["num_key_value_heads"] * text["head_dim"]
    shapes: Shapes = {"k_proj": (kv_width, text["hidden_size"]), "v_proj": (kv_width, text["hidden_size"])}
    shapes["k_norm"] = (text["head_dim"],)  # v_norm has no weight
    return {
        f"model.language_model.{prefix}.weight": shapes[kind]
        for prefix in prefixes
        if (kind := prefix.rsplit(".", 1)[1]) in shapes
    }


@pytest.mark.parametrize("size_name", SIZES)
def test_names_and_shapes_are_those_of_transformers(size_name: str) -> None:
    size = SIZES[size_name]
    ours = {name: normal.shape for name, normal in synthetic_tensors(size).items()}
    assert ours == transformers_shapes(size) | ignored_by_transformers(size)


@pytest.mark.usefixtures("timm")
def test_towers_have_the_names_and_shapes_of_transformers() -> None:
    config = SIZES["e2b"].config
    vision, audio = (config[f"{kind}_config"] for kind in ("vision", "audio"))
    with torch.device("meta"):
        eye = transformers.AutoModel.from_config(transformers.Gemma3nVisionConfig(**vision))
        ear = transformers.Gemma3nAudioEncoder(transformers.Gemma3nAudioConfig(**audio))
    towers = shapes_of(eye, "model.vision_tower.") | shapes_of(ear, "model.audio_tower.")
    ours = {name: normal.shape for name, normal in synthetic_tensors(SIZES["e2b"], with_towers=True).items()}
    without = synthetic_tensors(SIZES["e2b"])
    assert {name: shape for name, shape in ours.items() if name not in without} == towers


@pytest.mark.parametrize(
    ("size_name", "billions"),
    # Model cards and public exports of the text parts; of Gemma 4 transformers' classes, counted.
    [("1b", 1.00), ("e2b", 4.46), ("e4b", 6.87), ("gemma4-e2b", 4.63), ("gemma4-e4b", 7.46)],
)
def test_parameter_counts_are_the_published_ones(size_name: str, billions: float) -> None:
    text = [normal for name, normal in synthetic_tensors(SIZES[size_name]).items() if not name.startswith(EMBEDDERS)]
    assert sum(np.prod(normal.shape) for normal in text) / 1e9 == pytest.approx(billions, abs=0.005)


SMALL_3N = {
    "num_hidden_layers": 10, "intermediate_size": 256, "hidden_size": 128, "num_attention_heads": 4, "head_dim": 32,
    "hidden_size_per_layer_input": 32, "laurel_rank": 32, "num_kv_shared_layers": 5, "vocab_size": 2112,
    "vocab_size_per_layer_input": 2048,
}  # fmt: skip


SMALL_4 = {
    "num_hidden_layers": 6, "intermediate_size": 256, "hidden_size": 128, "num_attention_heads": 4, "head_dim": 32,
    "global_head_dim": 64, "hidden_size_per_layer_input": 32, "num_kv_shared_layers": 2, "vocab_size": 2048,
    "vocab_size_per_layer_input": 2048, "layer_types": ["sliding_attention", "full_attention"] * 3,
}  # fmt: skip


def small(size_name: str) -> Size:
    """An official config.json with smaller numbers: same code, same names, written in a moment."""
    size = SIZES[size_name]
    if "text_config" not in size.config:
        changes = {"num_hidden_layers": 6, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 2048}
        return replace(size, config=dict(size.config) | changes | {"head_dim": 32})
    if size.config["model_type"] == "gemma4":
        return replace(size, config=dict(size.config) | {"text_config": size.config["text_config"] | SMALL_4})
    text = dict(size.config["text_config"]) | SMALL_3N
    text["layer_types"] = text["layer_types"][:10]
    text["activation_sparsity_pattern"] = [0.95] * 3 + [0.0] * 7
    return replace(size, config=dict(size.config) | {"text_config": text})


@pytest.mark.parametrize("size_name", ["1b", "e2b", "gemma4-e2b"])
def test_checkpoint_matches_its_own_model(size_name: str, tmp_path: Path) -> None:
    nbytes = write_synthetic(small(size_name), tmp_path, shards=3)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.prefix == SIZES[size_name].prefix
    assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) == nbytes
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"BF16"}
    model = Model.from_json(checkpoint.text_config)
    shared = [f"layers.{i}.self_attn.{kind}." for i in range(5, 10) for kind in ("k_proj", "v_proj", "k_norm")]
    left = checkpoint.match(model.tensors.values(), ["embed_vision.", "embed_audio.", *shared])
    assert {prefix: len(tensors) for prefix, tensors in left.groups.items()} == (
        {"embed_vision.": 4, "embed_audio.": 4} | dict.fromkeys(shared, 1) if size_name == "e2b" else {}
    )


@pytest.mark.parametrize("size_name", ["1b", "e2b", "gemma4-e2b"])
def test_transformers_runs_it_and_activations_stay_finite(size_name: str, tmp_path: Path) -> None:
    size = small(size_name)
    write_synthetic(size, tmp_path, shards=2)
    checkpoint = Checkpoint.open(tmp_path)
    text = {k: v for k, v in checkpoint.text_config.items() if k != "model_type"}
    family = {"1b": "Gemma3", "e2b": "Gemma3n", "gemma4-e2b": "Gemma4"}[size_name]
    config = getattr(transformers, f"{family}TextConfig")(**text)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in stored(model.model).items():
            parameter.copy_(torch.from_numpy(checkpoint.read(name)))
        logits = model(torch.arange(3, 67)[None]).logits
    assert torch.isfinite(logits).all()
    assert 0.3 < logits.std() < 5.0


def test_values_have_the_declared_distribution_and_no_two_tensors_are_equal(tmp_path: Path) -> None:
    size = small("e2b")
    write_synthetic(size, tmp_path, shards=1)
    checkpoint = Checkpoint.open(tmp_path)
    seen = set()
    for name, normal in synthetic_tensors(size).items():
        tensor = checkpoint.tensors[name]
        with tensor.file.open("rb") as file:
            file.seek(tensor.offset)
            data = file.read(tensor.nbytes)
        seen.add(data)
        values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        if values.size >= 4096:
            assert values.mean() == pytest.approx(normal.mean, abs=0.1 * normal.deviation)
            assert values.std() == pytest.approx(normal.deviation, rel=0.1)
    assert len(seen) == len(checkpoint.tensors)


def test_tensors_longer_than_the_block_repeat_it(tmp_path: Path) -> None:
    size = small("1b")
    size = replace(size, config=dict(size.config) | {"vocab_size": 40_000})  # 5.1 M values in the embedding
    write_synthetic(size, tmp_path, shards=1, seed=7)
    embedding = Checkpoint.open(tmp_path).read("embed_tokens.weight").reshape(-1)
    np.testing.assert_array_equal(embedding[2_097_143:], embedding[:-2_097_143])
    assert len(np.unique(embedding)) > 1000


def test_memory_stays_below_150_mb(tmp_path: Path) -> None:
    size = small("1b")
    config = dict(size.config) | {"vocab_size": 1_000_000}  # 256 MB
    script = f"""
import pathlib
from tools.synthetic import Size, write_synthetic
print(write_synthetic(Size({config!r}, "model.", 1), pathlib.Path({str(tmp_path)!r}), 1))
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    nbytes, peak_kib = map(int, run.stdout.split())
    assert nbytes > 256_000_000
    assert peak_kib * 1024 < 150_000_000


def test_command_line_writes_shards_an_index_and_says_how_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SIZES", {"e2b": small("e2b")})
    printed = CliRunner().invoke(synthetic.main, ["e2b", str(tmp_path), "--shards", "2"]).stdout
    assert "GiB in" in printed
    assert "MiB/s" in printed
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in Checkpoint.open(tmp_path).tensors.values())
