"""Checkpoints from quantization-aware training: found in their values, stored on their grid, and said so."""

import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file, save_file

from gemma_edge.converter.calibrate.planning import lay_out, plan_for
from gemma_edge.converter.calibrate.sensitivity import groups, losses
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.convert import convert
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.qat import sampled_rows, with_grids
from gemma_edge.converter.quantize.recipes import Recipe
from gemma_edge.converter.verify.find.bundle_weights import BundleWeights
from gemma_edge.profiles.budget import OverBudget
from tests.converter.checkpoint.adapters import write_adapter
from tests.converter.quantize.test_qat_grid import gemma_qat, q4_0, stored_as

SMALL: dict[str, Any] = {"context": 256, "prefill": (8, 32)}
LAYERS = 6
MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip

Weights = Callable[[int, int, str, int], NDArray[np.float32]]


def trained(checkpoint: Path, directory: Path, weights: Weights, layers: range = range(LAYERS)) -> Path:
    """A copy whose matrices in some layers, and whose embedding, are `weights` of the stored dtype."""
    shutil.copytree(checkpoint, directory)
    tensors = load_file(directory / "model.safetensors")
    names = [f"model.layers.{layer}.{matrix}.weight" for layer in layers for matrix in MATRICES]
    for seed, name in enumerate([*names, "model.embed_tokens.weight"]):
        rows, columns = tensors[name].shape
        values = weights(rows, columns, "BF16", seed)
        tensors[name] = torch.from_numpy(values).to(torch.bfloat16)
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="module")
def qat(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-gemma3 as Google's QAT checkpoints are, but for its first layer."""
    directory = tmp_path_factory.mktemp("qat") / "checkpoint"
    return trained(repository / "tests/fixtures/tiny-gemma3", directory, gemma_qat, range(1, LAYERS))


def matrices(checkpoint: Path, path: Path) -> Iterator[tuple[str, str, NDArray[np.float32], NDArray[np.float32]]]:
    """(name, encoding, stored in the bundle, in the checkpoint) of every matrix of the layers."""
    source = Checkpoint.open(checkpoint)
    model = Model.from_json(source.text_config)
    stored = BundleWeights.of(path, model.tensors)
    for name, spec in model.tensors.items():
        if name.removesuffix(".weight").endswith(MATRICES):
            yield name, stored.encoding(name), stored.rows(name, 0, spec.shape[0]), source.read(name)


def grid(values: Mapping[str, Any]) -> tuple[int, float]:
    """Matrices and the share of their values that are exact."""
    report = values["trained_grid"]
    assert report["encoding"] == "int4-b32"
    return report["tensors"], report["exact_values"] / report["values"]


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
def test_every_matrix_keeps_its_own_grid(container: str, qat: Path, tmp_path: Path) -> None:
    """A mixed checkpoint: layer 0 is int4 like any other."""
    report = convert("custom-int4", qat, tmp_path / "model", format=container, **SMALL)
    assert grid(report.values) == (len(MATRICES) * (LAYERS - 1) + 1, 1.0)  # and the head
    assert report.values["trained_grid"]["read_by_row"] == []
    ordinary = ("int4", "int8", "int8-b128", "int8-b256", "int4-b128", "int4-b256", "int4-b64")
    for name, encoding, found, expected in matrices(qat, tmp_path / "model"):
        if name.startswith("layers.0."):
            assert encoding in ordinary, name
        else:
            assert encoding == "int4-b32", name
            np.testing.assert_array_equal(stored_as(found, "BF16"), expected, err_msg=name)


@pytest.mark.parametrize(("container", "least"), [("litertlm", 0.98), ("onnx", 1.0)])
def test_q4_0(container: str, least: float, tiny_gemma3: Path, tmp_path: Path) -> None:
    """Half of its blocks have a negative step, which LiteRT's kernels refuse: there the largest value moves."""
    checkpoint = trained(tiny_gemma3, tmp_path / "checkpoint", q4_0)
    report = convert("custom-int4", checkpoint, tmp_path / "model", format=container, **SMALL)
    count, exact = grid(report.values)
    assert count == len(MATRICES) * LAYERS + 1
    assert least <= exact <= least + 0.005
    for _, _, found, expected in matrices(checkpoint, tmp_path / "model"):
        same = stored_as(found, "BF16") == expected
        assert same.mean() >= least - 0.01
        np.testing.assert_allclose(expected[~same] / found[~same], 8 / 7, rtol=0.01)


def test_other_recipes_and_ordinary_checkpoints_are_as_ever(qat: Path, tiny_gemma3: Path, tmp_path: Path) -> None:
    for precision in ("int8", "fp16"):
        report = convert(f"custom-{precision}", qat, tmp_path / precision, **SMALL)
        assert "trained_grid" not in report.values
    for fixture in (tiny_gemma3, tiny_gemma3.with_name("tiny-gemma3n")):
        source = Checkpoint.open(fixture)
        model = Model.from_json(source.text_config)
        assert with_grids(model, source, Recipe.named("int4")) is model


def test_a_head_keeps_its_grid_and_the_table_cannot(qat: Path, tmp_path: Path) -> None:
    """Both are embed_tokens; a table is read by row, without blocks."""
    encodings = ("embedding=int4",)
    report = convert("custom-int4", qat, tmp_path / "model", encoding=encodings, **SMALL)
    assert grid(report.values) == (len(MATRICES) * (LAYERS - 1) + 1, 1.0)
    assert report.values["trained_grid"]["read_by_row"] == ["embed_tokens.weight"]
    source = Checkpoint.open(qat)
    model = Model.from_json(source.text_config)
    stored = BundleWeights.of(tmp_path / "model", {"lm_head.weight": model.tensors["lm_head.weight"]})
    head = stored.rows("lm_head.weight", 0, model.config.vocab_size)
    np.testing.assert_array_equal(stored_as(head, "BF16"), source.read("embed_tokens.weight"))


def test_a_merged_adapter_leaves_the_grid(qat: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", qat)  # q_proj and up_proj of all layers
    report = convert("custom-int4", qat, tmp_path / "model", lora=adapter, **SMALL)
    assert grid(report.values) == ((len(MATRICES) - 2) * (LAYERS - 1) + 1, 1.0)


def test_measured_on_its_grid_int4_loses_less_than_int8(qat: Path) -> None:
    """What `--recipe auto` compares: the decision that the recipe would take, not int4 chosen anew."""
    source = Checkpoint.open(qat)
    recipe = Recipe.named("int4")
    model = with_grids(Model.from_json(source.text_config), source, recipe)
    windows = np.random.default_rng(0).integers(0, 2048, (2, 64))
    parts = [part for part in groups(tuple(model.tensors.values()), LAYERS) if part.name == "ffn of layers 3 to 3"]
    measured = losses(source, StreamingModel(source, model), windows, parts, recipe, lambda _n: None)
    found = {encoding.name: kl for (_, encoding), kl in measured.items()}
    assert found["int4"] < found["int8"] / 10 < found["int2"] / 100


def test_a_sample_that_misleads_costs_bytes_and_says_so(tiny_gemma3: Path, tmp_path: Path) -> None:
    """Rows between the sampled ones are ordinary: they are quantized as such, in blocks."""

    def sampled_rows_only(rows: int, columns: int, dtype: str, seed: int) -> NDArray[np.float32]:
        values = np.random.default_rng(seed).normal(0, 0.02, (rows, columns)).astype(np.float32)
        at = sampled_rows(rows)
        values[at] = gemma_qat(rows, columns, dtype, seed)[at]
        return stored_as(values, dtype)

    checkpoint = trained(tiny_gemma3, tmp_path / "checkpoint", sampled_rows_only)
    report = convert("custom-int4", checkpoint, tmp_path / "model", **SMALL)
    _, exact = grid(report.values)
    assert exact < 0.2


def test_the_plan_counts_the_blocks(qat: Path, tmp_path: Path) -> None:
    """To the byte, and in the footprint: a profile for matrices on their grid is too small for others in int8."""
    source, plan = plan_for(Target.parse("custom-int4", **SMALL), qat)
    report = convert("custom-int4", qat, tmp_path / "model", **SMALL)
    assert (tmp_path / "model").stat().st_size == lay_out(plan, source).nbytes == report.values["output"]["bytes"]
    in_blocks = plan.footprint.anon_bytes + plan.footprint.file_bytes
    other = without_grid(qat, tmp_path)
    without = plan_for(Target.parse("custom-int4", **SMALL), other)[1].footprint
    larger = without.anon_bytes + without.file_bytes
    assert in_blocks < larger
    profile = tmp_path / "tight.toml"
    profile.write_text(PROFILE.format(budget_bytes=(in_blocks + larger) // 2))
    with pytest.raises(OverBudget):
        plan_for(Target.parse("custom-int4", profile=str(profile), **SMALL), other)


PROFILE = """
description = "Between the two"
architecture = "aarch64"
isa = ["neon"]
cores = 4
ram_bytes = "1 GiB"
budget_bytes = {budget_bytes}
memory_bytes_per_s = "1 GB"
storage_bytes_per_s = "100 MB"
"""


def without_grid(checkpoint: Path, directory: Path) -> Path:
    """The same shapes with ordinary values."""
    return trained(checkpoint, directory / "ordinary", gaussian, range(LAYERS))


def gaussian(rows: int, columns: int, dtype: str, seed: int) -> NDArray[np.float32]:
    return stored_as(np.random.default_rng(seed).normal(0, 0.02, (rows, columns)).astype(np.float32), dtype)


def test_what_is_printed(qat: Path, tmp_path: Path) -> None:
    report = convert("custom-int4", qat, tmp_path / "model", encoding=("embedding=int4",), **SMALL)
    printed = io.StringIO()
    report.print(Console(width=200, file=printed))
    text = printed.getvalue()
    values = json.loads((tmp_path / "model.json").read_text())["trained_grid"]
    assert f"trained on a grid of integers, kept as int4-b32: {values['tensors']} matrices" in text
    assert (
        "trained on a 4-bit grid, re-quantized as a lookup table of another 4-bit format: embed_tokens.weight" in text
    )
    assert f"on their trained grid: {values['values']:,} of {values['values']:,} values are exact" in text
