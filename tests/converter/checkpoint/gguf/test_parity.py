"""A GGUF converted directly against what its values give by another way: transformers, a Hugging Face directory."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.convert import convert
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.verify.find.bundle_weights import BundleWeights
from gemma_edge.runtime.executors.litert.decoder import DecoderSections
from gemma_edge.runtime.formats.litertlm import Bundle
from tests.slots import litert_slot
from tools.gguf_oracle import write_float32_directory
from tools.gguf_real import different_bytes
from tools.gguf_writer import write_gguf

FIXTURES = Path(__file__).parents[3] / "fixtures"
SMALL: dict[str, Any] = {"context": 192, "prefill": (8, 32)}
TOLERANCE = 1e-3
PROMPT_TOKENS = 77  # longer than the fixtures' window of 64


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny-gemma3n", "Q8_0"), ("tiny-gemma3n", "Q4_0"), ("tiny-gemma3n", "Q5_1"), ("tiny-gemma3n", "BF16"),
        ("tiny-gemma3", "Q5_0"), ("tiny-gemma3", "Q4_1"), ("tiny-gemma3", "F16"),
    ],
)  # fmt: skip
def test_logits_are_transformers(name: str, kind: str, tmp_path: Path, val_bin: Path) -> None:
    """Of the same dequantized values in float32, in transformers and in the bundle."""
    path = tmp_path / "model.gguf"
    write_gguf(FIXTURES / name, path, kind, kept_kind="Q8_0" if kind == "Q4_0" else "F16")
    write_float32_directory(path, FIXTURES / name, tmp_path / "directory")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "directory", dtype=torch.float32)
    ids = np.fromfile(val_bin, np.uint16)[:PROMPT_TOKENS].astype(int).tolist()
    with torch.no_grad():
        expected = oracle(torch.tensor([ids])).logits[0, -1].numpy()
    convert("custom-fp32", path, tmp_path / "model.litertlm", **SMALL)
    executor = litert_slot(DecoderSections.of(Bundle.open(tmp_path / "model.litertlm")), 2, tmp_path)
    try:
        executor.prefill(ids[:-1])
        np.testing.assert_allclose(executor.decode(ids[-1]), expected, atol=TOLERANCE, rtol=0)
    finally:
        executor.close()
    assert np.ptp(expected) > 5


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])
def test_the_bundle_is_that_of_a_directory_of_the_same_values(name: str, tmp_path: Path) -> None:
    """To the byte, but for the uuid, which follows from the inputs' digests."""
    shutil.copytree(FIXTURES / name, tmp_path / "source")
    (tmp_path / "source" / "tokenizer.model").unlink()  # a directory that has one keeps its scores
    write_gguf(tmp_path / "source", tmp_path / "model.gguf", "Q5_1", embedding_kind="Q8_0", kept_kind="BF16")
    write_float32_directory(tmp_path / "model.gguf", tmp_path / "source", tmp_path / "directory")
    for source, out in (("model.gguf", "one"), ("directory", "other")):
        convert("custom-int4", tmp_path / source, tmp_path / out, **SMALL)
    assert different_bytes(tmp_path / "one", tmp_path / "other") == {}
    uuids = [Bundle.open(tmp_path / out).system["uuid"] for out in ("one", "other")]
    assert uuids[0] != uuids[1]


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])
def test_q4_0_keeps_its_values_and_says_which_it_cannot(name: str, container: str, tmp_path: Path) -> None:
    """LiteRT's kernels refuse negative steps: where Q4_0 has one, its level -8, which becomes 8, is stored as 7."""
    path, out = tmp_path / "model.gguf", tmp_path / "out"
    write_gguf(FIXTURES / name, path, "Q4_0")
    report = convert("custom-int4", path, out, format=container, **SMALL).values["trained_grid"]
    source = Checkpoint.open(path)
    model = Model.from_json(source.text_config)
    stored = BundleWeights.of(out, model.tensors)
    values = exact = tensors = 0
    for spec in model.tensors.values():
        tensor = source.resolve(spec.source)
        if tensor is None or tensor.dtype != "Q4_0" or not stored.encoding(spec.name).startswith("int4"):
            continue
        if spec.role in ("embedding", "ple"):  # read by row, in an encoding of their own
            continue
        found, expected = stored.rows(spec.name, 0, spec.shape[0]), source.read(spec.source)
        same = found == expected
        np.testing.assert_allclose(expected[~same] / found[~same], 8 / 7, rtol=1e-6, err_msg=spec.name)
        tensors, values, exact = tensors + 1, values + same.size, exact + int(same.sum())
    assert tensors > 30
    assert (report["tensors"], report["values"], report["exact_values"]) == (tensors, values, exact)
    assert exact == values if container == "onnx" else 0.97 < exact / values < 1


def test_an_ordinary_type_lies_on_no_grid(tmp_path: Path) -> None:
    write_gguf(FIXTURES / "tiny-gemma3", tmp_path / "model.gguf", "Q4_1")
    report = convert("custom-int4", tmp_path / "model.gguf", tmp_path / "out", **SMALL)
    assert "trained_grid" not in report.values
