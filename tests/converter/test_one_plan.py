"""One int4 plan as every format has it: the integers and scales of attention and feed-forward are the same."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.gguf.names import gguf_name
from gemma_edge.converter.convert import convert
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.format import FORMATS
from gemma_edge.converter.plan.output import reader_of
from gemma_edge.converter.quantize.packed_rows import PackedRows
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.runtime.formats.encoding import Encoding

FIXTURES = Path(__file__).parents[1] / "fixtures"
OUT = {"litertlm": "a.litertlm", "onnx": "onnx", "gguf": "a.gguf", "compressed-tensors": "packed"}
RECIPE = """
[roles]
embedding = "fp32"
ple = "fp32"
head = "fp32"
attention = "int4-b32"
ffn = "int4-b32"
altup = "fp32"
small = "fp32"
router = "fp32"
norm = "fp32"
"""

Codes = tuple[NDArray[np.int8], NDArray[np.float32]]
"""Integers [N, K], scales [N, K / 32]."""


def ours(path: Path, spec: TensorSpec) -> Codes:
    """Of a bundle or an ONNX directory."""
    parts = reader_of(path).stored_rows(path, {spec.name: spec})[spec.name]
    integers, scales = [], []
    for part in parts:
        assert isinstance(part, PackedRows)
        assert part.scales is not None
        integers.append(Encoding("int", 4).unpack(part.data ^ np.uint8(part.flip), (part.count, part.columns)))
        scales.append(part.scales.astype(np.float32))
    return np.concatenate(integers).astype(np.int8), np.concatenate(scales)


def of_gguf(path: Path, spec: TensorSpec) -> Codes:
    """By llama.cpp's package."""
    name, _ = gguf_name(spec.source)
    [tensor] = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name]
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0
    blocks = np.asarray(tensor.data, np.uint8).reshape(-1, 18)
    integers = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.int8) - np.int8(8)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return integers.reshape(spec.shape), scales.reshape(spec.shape[0], -1)


def of_safetensors(path: Path, spec: TensorSpec) -> Codes:
    """By safetensors' package."""
    with safetensors.safe_open(path / "model.safetensors", "pt") as file:
        packed = file.get_tensor(f"model.{spec.source}_packed").numpy()
        scales = file.get_tensor(f"model.{spec.source}_scale").float().numpy()
        assert file.get_tensor(f"model.{spec.source}_shape").tolist() == list(spec.shape)
    words = packed.view(np.uint32)[..., np.newaxis] >> np.arange(0, 32, 4, dtype=np.uint32)
    return ((words & 15).astype(np.int8) - np.int8(8)).reshape(spec.shape), scales


READERS = {"litertlm": ours, "onnx": ours, "gguf": of_gguf, "compressed-tensors": of_safetensors}


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])
def test_the_integers_are_the_same_in_every_format(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    options: dict[str, Any] = {"recipe": recipe, "measure": False}
    assert READERS.keys() == FORMATS.keys()
    for kind, out in OUT.items():
        small: dict[str, Any] = {"context": 192, "prefill": (8,)} if kind == "litertlm" else {}
        convert("custom-int4", FIXTURES / name, tmp_path / out, format=kind, **options, **small)
    model = Model.from_json(Checkpoint.open(FIXTURES / name).text_config)
    specs = [spec for spec in model.tensors.values() if spec.role in (Role.ATTENTION, Role.FFN)]
    assert len(specs) > 40
    for spec in specs:
        expected, *others = (reader(tmp_path / OUT[kind], spec) for kind, reader in READERS.items())
        assert np.abs(expected[0]).max() == 7
        for found in others:
            np.testing.assert_array_equal(found[0], expected[0], err_msg=spec.name)
            np.testing.assert_array_equal(found[1], expected[1], err_msg=spec.name)
