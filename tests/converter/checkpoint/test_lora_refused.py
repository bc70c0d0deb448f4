"""Adapters that cannot be merged: each is refused by name, before anything is written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, CheckpointError
from gemma_edge.converter.checkpoint.lora import LoraError, merged
from gemma_edge.converter.checkpoint.lora_config import LoraConfig
from gemma_edge.converter.convert import convert
from gemma_edge.converter.models.family import Model
from tests.converter.checkpoint.adapters import edit, key, pair, random, write_adapter

Q0 = "model.layers.0.self_attn.q_proj"
UP0 = "model.layers.0.mlp.up_proj"  # the first in the file
WITH_PEFT = "merge the adapter with PEFT (merge_and_unload) and convert the result"


@pytest.fixture
def adapter(tiny_gemma3: Path, tmp_path: Path) -> Path:
    """One that fits tiny-gemma3."""
    return write_adapter(tmp_path / "adapter", tiny_gemma3)


def refusal(checkpoint: Path, adapter: Path) -> str:
    """The one line that a conversion ends with; nothing is written."""
    out = adapter.parent / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises((LoraError, CheckpointError)) as refused:
        convert("custom-fp32", checkpoint, out / "model.litertlm", lora=adapter, context=256, prefill=(8, 32))
    assert list(out.iterdir()) == []
    message = str(refused.value)
    assert "\n" not in message
    return message


def settings(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---------------------------------------------------------------- files


def test_the_directory(adapter: Path, tiny_gemma3: Path) -> None:
    missing = adapter.parent / "none"
    assert refusal(tiny_gemma3, missing) == (
        f"{missing}: not a directory; expected one with adapter_config.json and adapter_model.safetensors"
    )
    assert refusal(tiny_gemma3, tiny_gemma3) == (
        f"{tiny_gemma3}: a model, not an adapter (adapter_config.json is absent); convert it with --checkpoint"
    )
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert refusal(tiny_gemma3, adapter) == (
        f"{adapter}: found adapter_model.bin, expected adapter_model.safetensors; load and save it with a newer PEFT"
    )
    (adapter / "adapter_model.bin").unlink()
    assert refusal(tiny_gemma3, adapter) == (
        f"{adapter}: no adapter_model.safetensors; expected an adapter as PEFT's save_pretrained() writes it"
    )


def test_damaged_files(adapter: Path, tiny_gemma3: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert refusal(tiny_gemma3, adapter).startswith(f"{weights}: truncated: ")
    (adapter / "adapter_config.json").write_text("{")
    assert refusal(tiny_gemma3, adapter).startswith(f"{adapter}/adapter_config.json: not JSON")


def test_an_adapter_without_tensors(adapter: Path, tiny_gemma3: Path) -> None:
    save_file({}, adapter / "adapter_model.safetensors")
    assert refusal(tiny_gemma3, adapter) == (
        f"{adapter}/adapter_model.safetensors: holds no tensor; save the adapter again"
    )


def test_an_adapter_with_nan(adapter: Path, tiny_gemma3: Path) -> None:
    name = key(Q0, "lora_B.weight")
    edit(adapter, **{name: torch.full((128, 4), float("nan"))})
    assert refusal(tiny_gemma3, adapter) == (
        f"{name}: holds NaN, Inf or a value above 1e+12, expected weights; the checkpoint is damaged, get it again"
    )


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("peft_type", "ADALORA", f"peft_type is 'ADALORA', expected 'LORA'; {WITH_PEFT}"),
        ("peft_type", None, f"peft_type is None, expected 'LORA'; {WITH_PEFT}"),
        ("layer_replication", [[0, 2], [1, 3]],
         f"layer_replication is [[0, 2], [1, 3]], which cannot be merged here; {WITH_PEFT}"),
        ("target_parameters", ["mlp.experts.down_proj"],
         f"target_parameters is ['mlp.experts.down_proj'], which cannot be merged here; {WITH_PEFT}"),
        ("trainable_token_indices", [5],
         "trainable_token_indices is [5], and adapter_model.safetensors has no such rows; save the adapter again"),
        ("lora_bias", True, f"lora_bias is True, which cannot be merged here; {WITH_PEFT}"),
        ("use_qalora", True, f"use_qalora is True, which cannot be merged here; {WITH_PEFT}"),
        ("alora_invocation_tokens", [1, 2],
         f"alora_invocation_tokens is [1, 2], which cannot be merged here; {WITH_PEFT}"),
        ("a_setting_of_the_future", 3, f"a_setting_of_the_future is 3, which cannot be merged here; {WITH_PEFT}"),
        ("init_lora_weights", "pissa_niter_4",
         "init_lora_weights is 'pissa_niter_4', which changed the base model; save the adapter with "
         "path_initial_model_for_weight_conversion, or merge it with PEFT and convert the result"),
        ("r", 0, "r is 0, expected a whole number from 1; fix it or save the adapter again"),
        ("r", 4.0, "r is 4.0, expected a whole number from 1; fix it or save the adapter again"),
        ("lora_alpha", "8", "lora_alpha is '8', expected a number; fix it or save the adapter again"),
        ("lora_alpha", float("inf"), "lora_alpha is inf, expected a number; fix it or save the adapter again"),
        ("use_rslora", 1, "use_rslora is 1, expected true or false; fix it or save the adapter again"),
        ("rank_pattern", ["q_proj"],
         "rank_pattern is ['q_proj'], expected an object from name to number; fix it or save the adapter again"),
        ("rank_pattern", {"q_proj": -1},
         "rank_pattern.q_proj is -1, expected a whole number from 1; fix it or save the adapter again"),
        ("alpha_pattern", {"q_(proj": 1},
         "alpha_pattern is 'q_(proj', expected a regular expression (missing ), unterminated subpattern at position "
         "2); fix it or save the adapter again"),
        ("target_modules", None,
         "target_modules is None, expected a list of names or an expression; fix it or save the adapter again"),
        ("target_modules", [1],
         "target_modules is [1], expected a list of names or an expression; fix it or save the adapter again"),
        ("exclude_modules", "*",
         "exclude_modules is '*', expected a regular expression (nothing to repeat at position 0); fix it or save the "
         "adapter again"),
        ("layers_to_transform", [-1],
         "layers_to_transform is [-1], expected layer numbers; fix it or save the adapter again"),
    ],
)  # fmt: skip
def test_a_setting(setting: str, value: Any, message: str, adapter: Path, tiny_gemma3: Path) -> None:
    settings(adapter, **{setting: value})
    assert refusal(tiny_gemma3, adapter) == f"{adapter}/adapter_config.json: {message}"


def test_a_list_of_layers_with_another_name(adapter: Path, tiny_gemma3: Path) -> None:
    settings(adapter, layers_to_transform=[0], layers_pattern="blocks")
    assert refusal(tiny_gemma3, adapter) == (
        f"{adapter}/adapter_config.json: layers_pattern is 'blocks', which cannot be merged here; {WITH_PEFT}"
    )


# ---------------------------------------------------------------- tensors


@pytest.mark.parametrize(
    "name",
    [
        key(Q0, "bias"),  # bias="lora_only"; Gemma has none
        key(Q0, "lora_B.bias"),
        key(Q0, "lora_A.default.weight"),  # a state dict, not an adapter
        "model.layers.0.self_attn.q_proj.lora_A.weight",
    ],
)
def test_a_tensor_of_no_known_kind(name: str, adapter: Path, tiny_gemma3: Path) -> None:
    edit(adapter, **{name: random(4, 4)})
    assert refusal(tiny_gemma3, adapter) == (
        f"{adapter}/adapter_model.safetensors: {name} cannot be merged here; {WITH_PEFT}"
    )


def test_a_dtype(adapter: Path, tiny_gemma3: Path) -> None:
    name = key(Q0, "lora_A.weight")
    edit(adapter, **{name: torch.zeros(4, 128, dtype=torch.int8)})
    assert refusal(tiny_gemma3, adapter) == (f"{name}: dtype I8, expected BF16, F16, F32; save the adapter unquantised")


@pytest.mark.parametrize("part", ["lora_A.weight", "lora_B.weight"])
def test_half_a_pair(part: str, adapter: Path, tiny_gemma3: Path) -> None:
    edit(adapter, remove=(f"{Q0}.{part}",))
    assert (
        refusal(tiny_gemma3, adapter) == f"{adapter}: {Q0}.{part} is missing; the adapter is incomplete, save it again"
    )


def test_a_rank_that_the_settings_do_not_say(adapter: Path, tiny_gemma3: Path) -> None:
    settings(adapter, rank_pattern={"0.self_attn.q_proj": 8})
    a, b = shapes(tiny_gemma3)
    assert refusal(tiny_gemma3, adapter) == (
        f"{Q0}: A {a} and B {b}, expected [8, n] and [n, 8] by r or rank_pattern in adapter_config.json; "
        "they belong to different adapters"
    )


def test_a_module_that_the_settings_do_not_name(adapter: Path, tiny_gemma3: Path) -> None:
    settings(adapter, target_modules=["up_proj"])
    assert refusal(tiny_gemma3, adapter) == (
        f"{Q0}: has an adapter, although target_modules in adapter_config.json does not name it; "
        "they belong to different adapters"
    )


def test_dora(adapter: Path, tiny_gemma3: Path) -> None:
    settings(adapter, use_dora=True)
    assert refusal(tiny_gemma3, adapter) == (
        f"{UP0}: lora_magnitude_vector is missing, but use_dora in adapter_config.json is true; "
        "they belong to different adapters"
    )
    edit(adapter, **{key(UP0, "lora_magnitude_vector"): random(3)})
    assert refusal(tiny_gemma3, adapter) == (
        f"{UP0}: lora_magnitude_vector has shape [3], expected one value for each output of a linear layer; {WITH_PEFT}"
    )
    settings(adapter, use_dora=False)
    assert refusal(tiny_gemma3, adapter) == (
        f"{UP0}: lora_magnitude_vector is there, but use_dora in adapter_config.json is false; "
        "they belong to different adapters"
    )


# ---------------------------------------------------------------- against the checkpoint


def shapes(checkpoint: Path) -> tuple[list[int], list[int]]:
    """Of q_proj's A and B at rank 4."""
    rows, columns = Checkpoint.open(checkpoint).tensors[Q0 + ".weight"].shape
    return [4, columns], [rows, 4]


def test_a_shape(adapter: Path, tiny_gemma3: Path) -> None:
    (_, columns), (rows, _) = shapes(tiny_gemma3)
    edit(adapter, **{key(Q0, "lora_B.weight"): random(rows + 32, 4)})
    assert refusal(tiny_gemma3, adapter) == (
        f"{Q0}: the adapter is for a weight of shape [{rows + 32}, {columns}], found [{rows}, {columns}] in the "
        "checkpoint; the adapter belongs to another model (adapter_config.json names google/gemma-3-1b-it)"
    )


def test_a_vocabulary_that_grew_at_one_end(adapter: Path, tiny_gemma3: Path) -> None:
    settings(adapter, base_model_name_or_path=None)
    edit(adapter, **{key("model.embed_tokens", "weight"): random(2049, 128)})
    rows, _ = Checkpoint.open(tiny_gemma3).tensors["model.embed_tokens.weight"].shape
    assert refusal(tiny_gemma3, adapter) == (
        f"{adapter}: has 2049 rows for one of embedding and head, and none for the other, which has {rows}; save the "
        "adapter with both (save_embedding_layers=True)"
    )


def test_layers_that_the_checkpoint_lacks(adapter: Path, tiny_gemma3: Path) -> None:
    settings(adapter, base_model_name_or_path="org/base")
    for layer in (90, 91, 92, 93):
        edit(adapter, **pair(f"model.layers.{layer}.self_attn.q_proj", 128, 128))
    modules = ", ".join(f"model.layers.{layer}.self_attn.q_proj" for layer in (90, 91, 92))
    assert refusal(tiny_gemma3, adapter) == (
        f"{adapter}: {modules} and 1 more not in {tiny_gemma3}; the adapter belongs to another model "
        "(adapter_config.json names org/base)"
    )


def test_an_adapter_for_a_model_with_fewer_layers(adapter: Path, tiny_gemma3: Path) -> None:
    """Its shapes would fit: E2B and E4B have the same attention."""
    layers = len(Model.from_json(json.loads((tiny_gemma3 / "config.json").read_text())).config.attention)
    edit(adapter, remove=tuple(f"layers.{layers - 1}.self_attn.q_proj.lora_{part}.weight" for part in "AB"))
    module = f"model.layers.{layers - 1}.self_attn.q_proj"
    assert refusal(tiny_gemma3, adapter) == (
        f"{adapter}: no weights for {module}, which target_modules in adapter_config.json names; the adapter is "
        "incomplete or belongs to a smaller model (adapter_config.json names google/gemma-3-1b-it)"
    )


def test_a_tower_that_is_not_converted(tiny_gemma3: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_gemma3, tmp_path / "checkpoint"))
    adapter = write_adapter(tmp_path / "adapter", tiny_gemma3, target_modules=["q_proj", "up_proj"])
    tower = "model.vision_tower.layers.0.q_proj"
    save_file({f"{tower}.weight": random(8, 8)}, checkpoint / "tower.safetensors")
    (checkpoint / "model.safetensors").rename(checkpoint / "text.safetensors")
    base = Checkpoint.open(tiny_gemma3)
    weight_map = dict.fromkeys(base.tensors, "text.safetensors") | {f"{tower}.weight": "tower.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    edit(adapter, **pair(tower, 8, 8))
    assert refusal(checkpoint, adapter) == (
        f"{adapter}: trains {tower}.weight, which this conversion leaves out; "
        "add its modality to --modalities, or leave it out on purpose with --modalities text"
    )


def test_the_settings_of_this_file_are_right(adapter: Path, tiny_gemma3: Path) -> None:
    """What every test above starts from is accepted."""
    config = LoraConfig.load(adapter / "adapter_config.json")
    assert (config.rank, config.alpha, config.scale_of(Q0)) == (4, 8.0, 2.0)
    assert len(merged(Checkpoint.open(tiny_gemma3), adapter).changes) == 2 * 6


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "(.*_?)*(.*_?)*!"},
        {"target_modules": ".*_proj", "exclude_modules": "((((m?o?)*)*)*)*!"},
        {"rank_pattern": {"(\\w*\\.?)*!": 4}},
        {"alpha_pattern": {"(m|o|mo|.)+!": 16.0}},
    ],
)
def test_expressions_that_go_back_for_ever(adapter: Path, tiny_gemma3: Path, changes: dict[str, Any]) -> None:
    """Read in bounded time, and matched as PEFT's would be in the end: no module is named by them."""
    settings(adapter, **changes)
    if "target_modules" in changes and "exclude_modules" not in changes:
        assert "target_modules in adapter_config.json does not name it" in refusal(tiny_gemma3, adapter)
    else:
        config = LoraConfig.load(adapter / "adapter_config.json")
        assert config.is_target(UP0)
        assert (config.rank_of(UP0), config.alpha_of(UP0)) == (4, 8)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"target_modules": r"(q)_proj\1"},
            "target_modules is '(q)_proj\\\\1', expected a regular expression (groupref",
        ),
        ({"target_modules": "x" * 5000}, "expected a regular expression (5000 characters, at most 4096 are read)"),
        (
            {"rank_pattern": {f"m{i}": 4 for i in range(10_001)}},
            "rank_pattern is 'a list of 10001', expected at most 10000",
        ),
    ],
)
def test_expressions_that_are_not_read(
    adapter: Path, tiny_gemma3: Path, changes: dict[str, Any], expected: str
) -> None:
    settings(adapter, **changes)
    assert expected in refusal(tiny_gemma3, adapter)
