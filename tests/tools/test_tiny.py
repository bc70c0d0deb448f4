"""The random checkpoints: transformers reads them back, and no tensor in them is there for nothing."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors import safe_open

from tools.tiny import TINY, build, main, write_tiny
from tools.tiny import stored as stored_values

IDS = torch.randint(3, 2048, (1, 40), generator=torch.Generator().manual_seed(1))  # longer than every window


def logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits[0]  # [40, vocab]


@pytest.mark.parametrize("name", TINY)
def test_every_tensor_moves_the_logits(name: str) -> None:
    model = build(TINY[name], seed=0)
    before = logits(model)
    unmoved = []
    last_scalar = f"model.layers.{model.config.num_hidden_layers - 1}.layer_scalar"  # before a norm: of no effect
    for parameter_name, parameter in stored_values(model).items():
        if parameter_name == last_scalar:
            continue
        kept = parameter.detach().clone()
        with torch.no_grad():
            other = 2 * kept if kept.numel() == 1 else kept.flatten().roll(1).reshape(kept.shape)
            parameter.copy_(other)
        if (logits(model) - before).abs().max() < 0.1:
            unmoved.append(parameter_name)
        with torch.no_grad():
            parameter.copy_(kept)
    assert unmoved == []


@pytest.mark.parametrize("name", TINY)
def test_logits_are_spread_and_greedy_text_is_not_one_token(name: str) -> None:
    model = build(TINY[name], seed=0)
    assert 2.0 < logits(model).std() < 4.0
    generated = model.generate(IDS, max_new_tokens=32, do_sample=False, eos_token_id=None)[0, IDS.shape[1] :]
    assert len(set(generated.tolist())) >= 10


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if tiny.prefix == "model."])
def test_transformers_loads_what_was_written(name: str, tmp_path: Path) -> None:
    model = write_tiny(name, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    torch.testing.assert_close(logits(loaded.eval()), logits(model), rtol=0, atol=0)
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path)) <= model.config.vocab_size


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if tiny.prefix != "model."])
def test_multimodal_config_describes_the_same_decoder(name: str, tmp_path: Path) -> None:
    model = write_tiny(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [f"{TINY[name].family}ForConditionalGeneration"]
    text = type(model.config)(**config["text_config"])
    for key in ("rope_parameters", "layer_types", "intermediate_size", "vocab_size", "tie_word_embeddings"):
        assert getattr(text, key) == getattr(model.config, key), key


@pytest.mark.parametrize("name", TINY)
def test_files_hold_the_reference_models_values(name: str, tmp_path: Path) -> None:
    tiny = TINY[name]
    model = write_tiny(name, tmp_path)
    stored: dict[str, torch.Tensor] = {}
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            stored |= {key: file.get_tensor(key) for key in list(file.keys())}
    expected = {
        (tiny.prefix + key.removeprefix("model."))
        if key.startswith("model.")
        else ("language_model." if tiny.prefix == "language_model.model." else "") + key: parameter
        for key, parameter in stored_values(model).items()
    }
    assert stored.keys() == expected.keys()
    for key, value in stored.items():
        assert value.dtype == {"F32": torch.float32, "BF16": torch.bfloat16}[tiny.dtype]
        assert torch.equal(value.float(), expected[key]), key
    assert len(list(tmp_path.glob("*.safetensors"))) == tiny.shards
    assert (tmp_path / "model.safetensors.index.json").exists() == (tiny.shards > 1)


def test_set_covers_what_conversion_has_to_get_right() -> None:
    def values(key: str, family: str = "gemma3") -> set[object]:
        return {t.config.get(key) for t in TINY.values() if str(t.config["model_type"]).startswith(family)}

    assert {t.config["model_type"] for t in TINY.values()} == {"gemma3_text", "gemma3n_text", "gemma4_text"}
    assert len({tuple(t.config["layer_types"]) for t in TINY.values()}) >= 6
    assert len(values("num_kv_shared_layers", "gemma3n")) >= 4
    assert values("tie_word_embeddings", "gemma3_") == values("tie_word_embeddings", "gemma3n") == {True, False}
    assert {t.config["vocab_size"] > t.config["vocab_size_per_layer_input"] for t in TINY.values() if t.is_3n} == {
        True,
        False,
    }
    for name, tiny in TINY.items():
        assert IDS.shape[1] > tiny.config["sliding_window"], name
        for key in ("hidden_size", "head_dim", "vocab_size"):
            assert tiny.config[key] % 32 == 0, (name, key)


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    files = []
    for directory, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_tiny("gemma3n-pattern", tmp_path / directory, seed)
        files.append((tmp_path / directory / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_command_line_writes_a_checkpoint(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["gemma3-pattern", str(tmp_path / "out"), "--seed", "3"]).exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 1_000_000
