"""A GGUF's values under Hugging Face's names, by gguf's own reader, names and dequantizer: what ours must equal."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.slices.shards import Header, write_shards
from gemma_edge.converter.models.family import Model

Float32 = NDArray[np.float32]

SIDE_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
_ARCHITECTURES = {"gemma3": gguf.MODEL_ARCH.GEMMA3, "gemma3n": gguf.MODEL_ARCH.GEMMA3N}


def name_table(model: Model) -> Any:
    """gguf's own table from Hugging Face's names to llama.cpp's."""
    return gguf.get_tensor_name_map(_ARCHITECTURES[model.family], len(model.config.attention))


def gguf_name(table: Any, source: str) -> str:
    """ "layers.0.mlp.up_proj.weight" -> "blk.0.ffn_up.weight". Raises ValueError where gguf has no name for it."""
    spelled = f"{source}.weight" if source.endswith("_scale") else source
    name: str | None = table.get_name(spelled if source.startswith("lm_head") else f"model.{spelled}", (".weight",))
    if name is None:
        raise ValueError(f"{source}: gguf has no name for it")
    return name


def hugging_face_values(path: Path, model: Model) -> Iterator[tuple[str, Float32]]:
    """Name ("model.layers.0.mlp.up_proj.weight") and float32 values of every tensor that `model` is made of."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    table = name_table(model)
    for source in dict.fromkeys(tensor.source for spec in model.tensors.values() for tensor in spec.stored):
        part, stacked = None, source.split(".")
        if source.startswith("altup_"):  # altup_projections.1.weight is the second of a stack
            part = int(stacked[1])
        tensor = stored[gguf_name(table, source if part is None else f"{stacked[0]}.weight")]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values = values.reshape([int(size) for size in reversed(tensor.shape)]).astype(np.float32)
        if part is not None:
            values = values[part]
        if model.family == "gemma3" and source.endswith("norm.weight"):
            values = values - np.float32(1)
        yield source if source.startswith("lm_head") else f"model.{source}", values


def write_float32_directory(path: Path, side: Path, out: Path, files: Iterable[str] = SIDE_FILES) -> Model:
    """A Hugging Face directory of the GGUF's values, unrounded; returns its model.

    side: where config.json and `files` are taken from; the vocabulary is cut to the GGUF's, as llama.cpp cuts it.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in files:
        if (side / name).exists():
            shutil.copy(side / name, out)
    config = json.loads((side / "config.json").read_bytes())
    tensors = dict(hugging_face_values(path, Model.from_json(config)))
    config["vocab_size"] = len(tensors["model.embed_tokens.weight"])
    (out / "config.json").write_text(json.dumps(config, indent=2))
    stored = {name: Header("F32", values.shape) for name, values in tensors.items()}
    write_shards(out, stored, lambda name: [np.ascontiguousarray(tensors[name]).data.cast("B")], 1)
    return Model.from_json(config)
