"""Small PEFT adapters, right and wrong, written without PEFT."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

# What PEFT 0.21 writes for LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]), shortened.
CONFIG: Mapping[str, Any] = {
    "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "google/gemma-3-1b-it", "bias": "none",
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "layer_replication": None, "layers_pattern": None, "layers_to_transform": None,
    "loftq_config": {}, "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.05, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA", "peft_version": "0.21.0",
    "qalora_group_size": 16, "r": 4, "rank_pattern": {}, "revision": None, "target_modules": ["q_proj", "up_proj"],
    "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_dora": False,
    "use_qalora": False, "use_rslora": False,
}  # fmt: skip

TARGETS = ("self_attn.q_proj", "mlp.up_proj")


def key(module: str, part: str) -> str:
    """The name of a tensor in the adapter's file."""
    return f"base_model.model.{module}.{part}"


def random(*shape: int) -> torch.Tensor:
    """Normal numbers, the same for a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def pair(module: str, rows: int, columns: int) -> Tensors:
    """A and B of rank 4 for a weight [rows, columns]."""
    return {key(module, "lora_A.weight"): random(4, columns), key(module, "lora_B.weight"): random(rows, 4)}


def write_adapter(directory: Path, checkpoint: Path, prefix: str = "model.", **changes: Any) -> Path:
    """An adapter for q_proj and up_proj of every layer of a text-only checkpoint, with other settings as asked.

    prefix: of the modules' names in training.
    """
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    tensors: Tensors = {}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.endswith(TARGETS):
            module = prefix + module.removeprefix("model.")
            tensors |= pair(module, *weight.shape)
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def edit(directory: Path, remove: tuple[str, ...] = (), **add: torch.Tensor) -> None:
    """Take tensors away whose names end so, then store others besides; `add` by whole names."""
    file = directory / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.endswith(remove)}
    save_file({**kept, **add}, file)
