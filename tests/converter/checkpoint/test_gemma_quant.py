"""Checkpoints of transformers' quantizer "gemma": every code and scale is kept, and so are levels of activations."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file, save_file

from gemma_edge.converter.calibrate.planning import plan_for
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.convert import convert
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.output import output_of
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.packed_rows import PackedRows
from gemma_edge.converter.report import print_plan
from gemma_edge.converter.tensors import StaticScales
from gemma_edge.converter.verify.verify import verify
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.executors.litert.decoder import DecoderSections
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from tests.converter.litert.test_partitions import delegations
from tests.slots import litert_slot, onnx_slot
from tools.gemma_quant_writer import write_gemma_quant
from tools.tiny import TINY

CONTEXT_TOKENS = 128
TOLERANCE = 1e-3  # of logits that spread over about +-10
TEXTS, TOKENS, DECODED = 16, 4, 2  # short, as a level that is missed changes all that follows
GATE = "model.layers.0.mlp.gate_proj"


@dataclass(frozen=True)
class Written:
    """A checkpoint, the model that transformers loads of it, and what that says of the ends of random texts.

    ids: [TEXTS, TOKENS]. logits: [TEXTS, DECODED, V].
    """

    directory: Path
    model: Any
    ids: NDArray[np.int64]
    logits: NDArray[np.float32]

    @classmethod
    def of(cls, directory: Path, *, is_static: bool) -> "Written":
        write_gemma_quant("gemma4-e2b-pattern", directory, is_static=is_static)
        model = transformers.AutoModelForCausalLM.from_pretrained(directory)
        ids = np.random.default_rng(7).integers(0, model.config.vocab_size, (TEXTS, TOKENS))
        with torch.no_grad():
            return cls(directory, model, ids, model(torch.from_numpy(ids)).logits[:, -DECODED:].numpy())

    def matrices(self) -> Iterator[tuple[str, NDArray[np.int8], NDArray[np.float32], float]]:
        """(name in a bundle, codes, scales, what the model multiplies rows by) of every quantized matrix."""
        for name, module in self.model.named_modules():
            if hasattr(module, "num_bits"):
                is_table = hasattr(module, "embedding_scale")
                scale = (module.embedding_scale if is_table else module.weight_scale).detach().numpy()[:, 0]
                values = (module.weight if is_table else module._dequantize_weights()).detach().numpy()
                codes = np.rint(values / scale[:, np.newaxis]).astype(np.int8)
                factor = float(module.scalar_embed_scale) if is_table else 1.0
                yield f"{name.removeprefix('model.')}.weight", codes, scale, factor


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written.of(tmp_path_factory.mktemp("static") / "checkpoint", is_static=True)


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written.of(tmp_path_factory.mktemp("dynamic") / "checkpoint", is_static=False)


def converted(written: Written, out: Path, precision: str, container: str) -> Mapping[str, Any]:
    options: dict[str, Any] = {"prefill": (8, 32)} if container == "litertlm" else {}
    options |= {"format": container, "context": CONTEXT_TOKENS, "measure": False}
    return convert(f"custom-{precision}", written.directory, out, **options).values


def errors(written: Written, out: Path, cache: Path) -> NDArray[np.float32]:
    """Of each decoded token's logits, the largest difference from transformers', [TEXTS, DECODED]."""
    if out.is_dir():
        slot: Any = onnx_slot(OnnxDirectory.open(out), 1, None, CONTEXT_TOKENS)
    else:
        slot = litert_slot(DecoderSections.of(Bundle.open(out)), 1, cache)
    found = np.empty_like(written.logits)
    for text, logits in zip(written.ids.tolist(), found, strict=True):
        slot.reset()
        slot.prefill(text[:-DECODED])
        for row, token in enumerate(text[-DECODED:]):
            logits[row] = slot.decode(token)
    slot.close()
    off: NDArray[np.float32] = np.abs(found - written.logits).max(axis=-1)
    return off


def is_as_transformers(off: NDArray[np.float32]) -> bool:
    """But for values half way between two levels, where the last bit of a float32 decides which: one in 50,000 or so,
    of the 10,000 that a token takes here. transformers in float32 meets its own float64 no more often than this does:
    243 tokens of 256, against 243 in integers and 251 in float32.
    """
    return bool(np.count_nonzero(off <= TOLERANCE) >= 0.75 * off.size)


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
def test_codes_scales_and_levels_are_those_of_the_checkpoint(static: Written, container: str, tmp_path: Path) -> None:
    """Integers of 2, 4 and 8 bits times integers of 8."""
    out = tmp_path / "model"
    report = converted(static, out, "int4", container)
    _, plan = plan_for(Target.parse("custom-int4", context=CONTEXT_TOKENS, format=container), static.directory)
    rows = output_of(plan.target.format).stored_rows(out, plan.specs)
    values = 0
    for name, codes, scale, factor in static.matrices():
        parts = [part for part in rows[name] if isinstance(part, PackedRows)]
        data = np.concatenate([part.data ^ np.uint8(part.flip) for part in parts])
        found = parts[0].encoding.unpack(np.ascontiguousarray(data).reshape(-1), codes.shape)
        np.testing.assert_array_equal(found, codes)
        for found_scale in np.concatenate([part.scales for part in parts if part.scales is not None]).T:
            np.testing.assert_array_equal(found_scale, scale * np.float32(factor))
        values += codes.size
    grid = report["trained_grid"]
    assert grid["values"] == grid["exact_values"] == values
    assert grid["read_by_row"] == []
    linears = sum(1 for _, _, _, factor in static.matrices() if factor == 1.0)
    assert report["static_scales"] == {"layers": linears, "dynamic_layers": 0}
    off = errors(static, out, tmp_path / "cache")
    assert is_as_transformers(off)


def test_nothing_is_found_to_be_lost(static: Written, tmp_path: Path) -> None:
    """While converting, where the same products are the same numbers, and by `verify` of what is written."""
    options: dict[str, Any] = {"context": CONTEXT_TOKENS, "prefill": (8, 32)}
    report = convert("custom-int4", static.directory, tmp_path / "out.litertlm", **options).values
    assert report["quality"]["kl"] == 0.0
    found = verify(tmp_path / "out.litertlm", static.directory, limit=128, window=64, cache_dir=str(tmp_path / "cache"))
    assert found.weights_kl == 0.0
    assert not found.findings
    assert found.bundle.metrics["kl"].value < 0.1


def test_numbers_that_the_integers_stand_for_give_the_logits(dynamic: Written, tmp_path: Path) -> None:
    report = converted(dynamic, tmp_path / "fp32.litertlm", "fp32", "litertlm")
    assert "static_scales" not in report
    assert errors(dynamic, tmp_path / "fp32.litertlm", tmp_path / "cache").max() <= TOLERANCE


def test_floats_on_levels_give_the_logits(static: Written, tmp_path: Path) -> None:
    converted(static, tmp_path / "model", "fp32", "litertlm")
    off = errors(static, tmp_path / "model", tmp_path / "cache")
    assert is_as_transformers(off)


def test_levels_do_not_cut_the_partition(static: Written) -> None:
    """XNNPACK's kernels multiply int8 by integers of 2, 4 and 8 bits."""
    _, plan = plan_for(Target.parse("custom-int4", context=CONTEXT_TOKENS, prefill=(8,)), static.directory)
    found = delegations(plan)
    assert {name: delegation.partitions for name, delegation in found.items()} == dict.fromkeys(found, 1)
    linears = sum(1 for _, _, _, factor in static.matrices() if factor == 1.0)
    assert found["decode"].inside["FULLY_CONNECTED"] == found["decode"].inside["DEQUANTIZE"] == linears
    assert not {"FULLY_CONNECTED", "QUANTIZE", "DEQUANTIZE"} & found["decode"].outside.keys()
    with (console := Console(width=200)).capture() as printed:
        print_plan(plan, console)
    assert f"inputs and outputs on the checkpoint's int8 levels: {linears} layers" in printed.get()


def test_other_formats_and_adapters_are_refused(static: Written, tmp_path: Path) -> None:
    levels = "the checkpoint's layers have int8 levels of their own for what they read and give"
    with pytest.raises(GemmaEdgeError) as caught:
        convert("custom-int4", static.directory, tmp_path / "out", format="compressed-tensors")
    assert str(caught.value) == (
        f"format compressed-tensors: {levels}, which it has no place for; use litertlm or onnx"
    )
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_config(
        transformers.Gemma4TextConfig.from_dict(static.model.config.to_dict() | {"quantization_config": None})
    )
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(GemmaEdgeError) as caught:
        convert("custom-int4", static.directory, tmp_path / "out.litertlm", lora=tmp_path / "adapter")
    assert str(caught.value) == (
        f"--lora: {levels}, where an adapter's share has none; use the checkpoint it was made for"
    )


def test_two_models_are_refused() -> None:
    model = Model.from_json(TINY["gemma3n-pattern"].config)
    name = "layers.0.mlp.up_proj.weight"
    static = replace(model.tensors[name], static=StaticScales(0.5, 0.5))
    with pytest.raises(
        GemmaEdgeError, match=r"^target e4b\+e2b-int4: the checkpoint's layers .*; convert one of them$"
    ):
        Target.parse("e4b+e2b-int4").check(replace(model, tensors={**model.tensors, name: static}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {f"{GATE}.weight": torch.zeros(192, 40, dtype=torch.uint8)},
            f"{GATE}.weight is U8 of shape [192, 40] with F32 scales of [192, 1], expected integers of 2, 4 or 8 bits "
            "of [192, 96], in whole bytes, and F32 scales; download the checkpoint again",
        ),
        (
            {f"{GATE}.input_activation_scale": torch.tensor(-1.0)},
            f"{GATE}.input_activation_scale is -1.0 (F32 of shape []), expected one F32 number from 0 on; "
            "download the checkpoint again",
        ),
        (
            {f"{GATE}.weight_scale": None},
            f"{GATE}.weight: dtype U8, expected BF16, F16, F32; use the checkpoint before quantisation",
        ),
    ],
)
def test_matrices_that_are_not_read(
    static: Written, tmp_path: Path, changes: Mapping[str, torch.Tensor | None], message: str
) -> None:
    copy = Path(shutil.copytree(static.directory, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    tensors |= {name: values for name, values in changes.items() if values is not None}
    for name in [name for name, values in changes.items() if values is None]:
        del tensors[name]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(GemmaEdgeError) as caught:
        convert("custom-int4", copy, tmp_path / "out.litertlm")
    assert str(caught.value).removeprefix(f"{copy / 'model.safetensors'}: ") == message


def test_scales_of_a_cache_are_named_and_left_behind(static: Written, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(static.directory, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.self_attn.k_cache_scale"] = torch.ones(1)
    save_file(tensors, copy / "model.safetensors")
    _, plan = plan_for(Target.parse("custom-int4", context=CONTEXT_TOKENS), copy)
    assert [*plan.unconverted.groups] == ["k_cache_scale, v_cache_scale (transformers reads neither)"]
    assert Checkpoint.open(copy).tensors[f"{GATE}.weight"].static is not None
