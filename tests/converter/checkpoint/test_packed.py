"""Checkpoints of compressed-tensors: every code and every scale is in the bundle as it was stored."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_edge.converter.calibrate.planning import plan_for
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, CheckpointError
from gemma_edge.converter.convert import convert
from gemma_edge.converter.plan.output import output_of
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.packed_rows import PackedRows
from gemma_edge.profiles.errors import GemmaEdgeError
from tools.packed_writer import Packed, random_packed, values_of, write_packed
from tools.tiny import stored, write_tiny

SMALL: dict[str, Any] = {"context": 64, "prefill": (16,), "measure": False}
LINEAR = tuple(f".{name}_proj.weight" for name in ("q", "k", "v", "o", "gate", "up", "down"))
FLOOR_VALUES = 4096  # smaller matrices stay float32 in every recipe


def packed_checkpoint(name: str, directory: Path, bits: int = 4, group: int = 32) -> Mapping[str, Packed]:
    """A tiny checkpoint whose attention and feed-forward matrices are packed, by their stored names."""
    model = write_tiny(name, directory)
    (directory / "model.safetensors").unlink()
    rng = np.random.default_rng(3)
    tensors = {key: tensor.detach().numpy() for key, tensor in stored(model).items()}
    linear = [key for key, values in tensors.items() if key.endswith(LINEAR) and values.size >= FLOOR_VALUES]
    packed = {key: random_packed(tensors.pop(key).shape, bits, group, rng) for key in linear}
    write_packed(directory, tensors, packed, bits, group)
    return packed


def kept(out: Path, checkpoint: Path, target: str, packed: Mapping[str, Packed], **options: Any) -> list[float]:
    """Of each packed matrix, the share of its codes and scales that the output has as they were stored."""
    _, plan = plan_for(
        Target.parse(target, **{k: v for k, v in (SMALL | options).items() if k != "measure"}), checkpoint
    )
    rows = output_of(plan.target.format).stored_rows(out, plan.specs)
    shares = []
    for name, (codes, scales) in packed.items():
        parts = [part for part in rows[name.removeprefix("model.")] if isinstance(part, PackedRows)]
        data = np.concatenate([part.data ^ np.uint8(part.flip) for part in parts])
        encoding = parts[0].encoding
        found = encoding.unpack(np.ascontiguousarray(data).reshape(-1), codes.shape)
        found_scales = np.concatenate([part.scales for part in parts if part.scales is not None])
        repeated = np.repeat(scales, found_scales.shape[1] // scales.shape[1], axis=1)
        same = np.count_nonzero(found == codes) + np.count_nonzero(found_scales.astype(np.float32) == repeated)
        shares.append(float(same / (codes.size + repeated.size)))
    return shares


@pytest.mark.parametrize(
    ("name", "container", "bits", "group"),
    [
        ("gemma4-e2b-pattern", "litertlm", 4, 32),
        ("gemma4-e2b-pattern", "onnx", 4, 32),
        ("gemma3n-pattern", "litertlm", 4, 32),
        ("gemma3-pattern", "litertlm", 4, 0),
        ("gemma3-pattern", "onnx", 4, 32),
        ("gemma3-pattern", "litertlm", 8, 0),
    ],
)
def test_codes_and_scales_are_those_of_the_checkpoint(
    name: str, container: str, bits: int, group: int, tmp_path: Path
) -> None:
    packed = packed_checkpoint(name, tmp_path / "checkpoint", bits, group)
    out = tmp_path / "model"
    report = convert("custom-int4", tmp_path / "checkpoint", out, format=container, **SMALL).values
    assert kept(out, tmp_path / "checkpoint", "custom-int4", packed, format=container) == [1.0] * len(packed)
    grid = report["trained_grid"]
    assert grid["tensors"] == len(packed)
    assert grid["exact_values"] == grid["values"] == sum(codes.size for codes, _ in packed.values())
    if container == "onnx":
        assert "quantization_config" not in json.loads((out / "config.json").read_text())


def test_values_are_codes_times_scales(tmp_path: Path) -> None:
    packed = packed_checkpoint("gemma3-pattern", tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    for name, matrix in packed.items():
        source = name.removeprefix("model.")
        np.testing.assert_array_equal(checkpoint.read(source), values_of(matrix))
        [(first, rows)] = checkpoint.rows(source, start=3, stop=5)
        np.testing.assert_array_equal(rows, values_of(matrix)[first : first + 2])
    assert [path.name for path in checkpoint.input_files()][-1] == "model.safetensors"


def test_other_precisions_take_the_values(tmp_path: Path) -> None:
    packed_checkpoint("gemma3-pattern", tmp_path / "checkpoint")
    report = convert("custom-int8", tmp_path / "checkpoint", tmp_path / "out.litertlm", **SMALL).values
    assert "trained_grid" not in report


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("packed") / "checkpoint"
    packed_checkpoint("gemma3-pattern", directory)
    return directory


def refusal(checkpoint: Path) -> str:
    with pytest.raises(GemmaEdgeError) as caught:
        convert("custom-int4", checkpoint, checkpoint.with_suffix(".litertlm"), **SMALL)
    assert "\n" not in str(caught.value)
    return str(caught.value)


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{Q}_zero_point": np.zeros(1, np.int32)}, "quantized by compressed-tensors, which is not read; convert the"),
        ({f"{Q}_g_idx": np.zeros(1, np.int32)}, "quantized by compressed-tensors, which is not read; convert the"),
        ({f"{Q}_shape": None}, "quantized by compressed-tensors, which is not read; convert the"),
        ({f"{Q}_shape": np.zeros(1, np.int64)}, f"{Q}_shape is I64 of shape [1], expected two of I64; download"),
        (
            {f"{Q}_scale": np.full((128, 2), -1, np.float32)},
            "q_proj.weight: found a scale below 0, expected none;",
        ),
    ],
)
def test_matrices_that_are_not_read(sound: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    from safetensors.torch import load_file, save_file
    from torch import from_numpy

    copy = Path(shutil.copytree(sound, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    for name, values in changes.items():
        tensors.pop(name, None)
        if values is not None:
            tensors[name] = from_numpy(values)
    save_file(tensors, copy / "model.safetensors")
    assert message in refusal(copy)


def test_groups_that_no_bundle_has_are_read_as_numbers(tmp_path: Path) -> None:
    packed = packed_checkpoint("gemma3-pattern", tmp_path / "checkpoint", 4, 16)
    report = convert("custom-int4", tmp_path / "checkpoint", tmp_path / "out.litertlm", **SMALL).values
    assert "trained_grid" not in report
    name, matrix = next(iter(packed.items()))
    found = Checkpoint.open(tmp_path / "checkpoint").read(name.removeprefix("model."))
    np.testing.assert_array_equal(found, values_of(matrix))


def test_a_file_that_ends_early(sound: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sound, tmp_path / "copy"))
    checkpoint = Checkpoint.open(copy)
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[: checkpoint.tensors[Q].offset + 100])
    with pytest.raises(CheckpointError, match=f"ends inside {Q}; it was changed while being read"):
        checkpoint.read(Q.removeprefix("model."))
