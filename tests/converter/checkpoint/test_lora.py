"""LoRA merged while streaming equals PEFT's merge_and_unload in float32: every value, and every byte of a bundle."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from gemma_edge.converter.checkpoint import lora
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.lora import add_low_rank, merged
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.quantize import stream
from gemma_edge.converter.verify.find.bundle_weights import BundleWeights
from gemma_edge.runtime.formats.litertlm import Bundle, SectionKind
from tests.converter.checkpoint.adapters import edit, pair, write_adapter
from tools.tiny import write_tiny

SMALL: dict[str, Any] = {"context": 256, "prefill": (8, 32)}
SIDE_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

# What peft.LoraConfig is asked for. Ranks that are and are not powers of two, scales that round.
ADAPTERS: Mapping[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION},
    "patterns": {
        "r": 5, "lora_alpha": 7,
        "target_modules": r".*\.(q_proj|up_proj|down_proj)", "exclude_modules": ["3.mlp.up_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 3, r"[25]\.mlp\.down_proj": 16}, "use_rslora": True,
        "alpha_pattern": {"down_proj": 11, "up_proj": 0.3},
    },
    "all linear": {"r": 12, "lora_alpha": 16, "target_modules": "all-linear"},
    "two layers": {"r": 2, "lora_alpha": 3, "target_modules": ["gate_proj"], "layers_to_transform": [1, 4]},
    "saved modules": {"r": 4, "lora_alpha": 4, "target_modules": ["v_proj"], "modules_to_save": ["input_layernorm"]},
    # S9 of the documents: what their fine-tuning saves as ./gemma-custom-model.
    "the documents' fine-tune": {
        "r": 16, "lora_alpha": 32, "lora_dropout": 0.1,
        "target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
    },
    "fan in, fan out": {"r": 3, "lora_alpha": 4, "target_modules": ["o_proj"], "fan_in_fan_out": True},
    "large rank": {"r": 64, "lora_alpha": 16, "target_modules": ["down_proj"]},
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """An adapter as PEFT saved it, and PEFT's merge of it with the base model."""

    adapter: Path
    merged: Any


Numbers = Callable[[torch.Size, torch.Generator], torch.Tensor]


def coarse(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Multiples of 2^-9 below 1/4: a product of up to 64 ranks is exact in float32, whatever the BLAS does."""
    return (0.05 * torch.randn(shape, generator=generator)).clamp(-0.25, 0.25).mul(512).round().div(512)


def fine(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """All bits of float32."""
    return 0.05 * torch.randn(shape, generator=generator)


def train(
    base: Path,
    directory: Path,
    settings: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    numbers: Numbers = coarse,
) -> Trained:
    """Random numbers in place of training; `dtype` of the adapter's file."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
            elif parameter.requires_grad:
                parameter.copy_(numbers(parameter.shape, generator))
    tuned.save_pretrained(directory)
    if dtype is not torch.float32:
        file = directory / "adapter_model.safetensors"
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    fresh = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return Trained(directory, peft.PeftModel.from_pretrained(fresh, directory).merge_and_unload())


def different(found: Checkpoint, oracle: Any) -> list[str]:
    """Names of the tensors that are not equal bit by bit; also checks that the adapter changed some."""
    expected = {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}
    base = Checkpoint.open(found.path)
    changed, wrong = 0, []
    for name in base.tensors:
        values = found.read(name.removeprefix("model."))
        changed += not np.array_equal(values, base.read(name.removeprefix("model.")))
        if not np.array_equal(values, expected[name]):
            wrong.append(name)
    assert changed
    return wrong


@pytest.fixture(scope="module", params=["tiny-gemma3", "tiny-gemma3n"])
def base(request: pytest.FixtureRequest, repository: Path) -> Path:
    return repository / "tests" / "fixtures" / str(request.param)


# ---------------------------------------------------------------- against PEFT


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_value_is_pefts(name: str, base: Path, tmp_path: Path) -> None:
    trained = train(base, tmp_path / "adapter", ADAPTERS[name])
    assert different(merged(Checkpoint.open(base), trained.adapter), trained.merged) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_of_16_bits(dtype: torch.dtype, tiny_gemma3: Path, tmp_path: Path) -> None:
    trained = train(tiny_gemma3, tmp_path / "adapter", ADAPTERS["attention"], dtype)
    assert different(merged(Checkpoint.open(tiny_gemma3), trained.adapter), trained.merged) == []


def test_numbers_of_full_precision(base: Path, tmp_path: Path) -> None:
    """On processors with fused multiply-add PEFT's bits; a BLAS that sums in another order differs in the last ones."""
    trained = train(base, tmp_path / "adapter", ADAPTERS["patterns"], numbers=fine)
    found = merged(Checkpoint.open(base), trained.adapter)
    expected = trained.merged.state_dict()
    wrong = different(found, trained.merged)
    print(f"{base.name}: {len(wrong)} tensors differ from PEFT's, torch uses {torch.backends.cpu.get_cpu_capability()}")
    for name in wrong:
        values = found.read(name.removeprefix("model."))
        np.testing.assert_allclose(values, expected[name].numpy(), rtol=2**-21, atol=2**-24)


def test_dora(base: Path, tmp_path: Path) -> None:
    """The length of a row is a long sum, so equal but for its rounding."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "gate_proj"], "use_dora": True}
    trained = train(base, tmp_path / "adapter", settings)
    found = merged(Checkpoint.open(base), trained.adapter)
    expected = trained.merged.state_dict()
    for name in different(found, trained.merged):
        assert name.endswith(("q_proj.weight", "gate_proj.weight"))
        values = found.read(name.removeprefix("model."))
        np.testing.assert_allclose(values, expected[name].numpy(), rtol=1e-6, atol=1e-7)


def test_a_bundle_is_that_of_pefts_model(base: Path, tmp_path: Path) -> None:
    trained = train(base, tmp_path / "adapter", ADAPTERS["patterns"])
    trained.merged.save_pretrained(tmp_path / "merged")
    for name in SIDE_FILES:
        shutil.copy(base / name, tmp_path / "merged")
    convert("custom-fp32", tmp_path / "merged", tmp_path / "expected", **SMALL)
    report = convert("custom-fp32", base, tmp_path / "found", lora=trained.adapter, **SMALL)
    assert list(sections(tmp_path / "found")) == list(sections(tmp_path / "expected"))
    source = report.values["source"]
    assert {name: source["lora"][name] for name in ("adapter", "rank", "alpha", "rslora", "dora")} == {
        "adapter": "adapter", "rank": [3, 5, 16], "alpha": [0.3, 7.0, 11.0], "rslora": True, "dora": False,
    }  # fmt: skip
    assert {"adapter_config.json", "adapter_model.safetensors", "model.safetensors"} <= source["sha256"].keys()


def sections(bundle: Path) -> Iterator[bytes]:
    """The contents of all but the metadata, which says which model it was."""
    opened = Bundle.open(bundle)
    for section in opened.sections:
        if section.kind is SectionKind.TFLITE_MODEL:
            yield bytes(opened.read(section))


def test_both_factors_of_a_table_are_never_in_memory_whole(
    tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "up_proj"]}
    found = merged(Checkpoint.open(tiny_gemma3), train(tiny_gemma3, tmp_path, settings, numbers=fine).adapter)
    spans: list[tuple[int, int]] = []

    def noted(read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(tensor: Any, first: int, stop: int) -> Any:
            spans.append((first, stop))
            return read(tensor, first, stop)

        return reading

    for name in ("_rows", "_columns"):
        monkeypatch.setattr(lora, name, noted(getattr(lora, name)))
    for source in ("embed_tokens.weight", "layers.1.mlp.up_proj.weight"):
        whole = found.read(source)
        spans.clear()
        chunks = [
            (first, len(rows)) for first, rows in found.rows(source, 1 << 14, start=3) if same(rows, whole, first)
        ]
        assert spans == [(first, first + count) for first, count in chunks]
        assert sum(count for _, count in chunks) == len(whole) - 3
        assert max(count for _, count in chunks) <= len(whole) / 8


def same(rows: NDArray[Any], whole: NDArray[Any], first: int) -> bool:
    return np.array_equal(rows, whole[first : first + len(rows)])


# ---------------------------------------------------------------- embedding and head

TIED: Mapping[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "kept tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "saved, kept tied": {
        "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TIED)
def test_one_matrix_for_embedding_and_head_becomes_what_was_trained(name: str, base: Path, tmp_path: Path) -> None:
    """Against the tuned model itself: PEFT's merge adds what was trained for one to both (peft issue 2018)."""
    train(base, tmp_path, {"r": 4, "lora_alpha": 8, **TIED[name]}, numbers=fine)
    fresh = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    ids = np.random.default_rng(0).integers(0, 2048, (1, 40))
    with torch.no_grad():
        expected = tuned(torch.tensor(ids)).logits[0].numpy()
    found = np.concatenate([rows for _, rows in StreamingModel.open(merged(Checkpoint.open(base), tmp_path)).run(ids)])
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)


def test_a_bundle_with_an_embedding_and_a_head_of_their_own(tiny_gemma3: Path, tmp_path: Path) -> None:
    train(tiny_gemma3, tmp_path / "adapter", {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens"]})
    convert("custom-fp32", tiny_gemma3, tmp_path / "model", lora=tmp_path / "adapter", **SMALL)
    source = merged(Checkpoint.open(tiny_gemma3), tmp_path / "adapter")
    model = Model.from_json(source.text_config)
    stored = BundleWeights.of(tmp_path / "model", model.tensors)
    for name in ("embed_tokens.weight", "lm_head.weight"):
        expected = model.tensors[name].fold(source.read(name))
        np.testing.assert_array_equal(stored.rows(name, 0, model.config.vocab_size), expected)
    np.testing.assert_array_equal(
        source.read("lm_head.weight"), Checkpoint.open(tiny_gemma3).read("embed_tokens.weight")
    )


@pytest.mark.parametrize("name", ["gemma3-untied", "gemma3n-small-vocab-untied"])
def test_two_matrices_are_merged_as_peft_does(name: str, tmp_path: Path) -> None:
    write_tiny(name, tmp_path / "base")
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "lm_head", "embed_tokens_per_layer"]}
    trained = train(tmp_path / "base", tmp_path / "adapter", settings)
    found = merged(Checkpoint.open(tmp_path / "base"), trained.adapter)
    assert different(found, trained.merged) == []
    table = found.read("embed_tokens.weight")
    for row in (0, 5, len(table) - 1):  # as the evaluator reads it
        [(first, values)] = found.rows("embed_tokens.weight", start=row, stop=row + 1)
        assert first == row
        np.testing.assert_array_equal(values[0], table[row])


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("stored", ["model.", "model.language_model.", "language_model.model."])
@pytest.mark.parametrize("trained", ["model.", "model.language_model.", "language_model.model."])
def test_prefixes_of_text_only_and_multimodal_models(
    stored: str, trained: str, tiny_gemma3: Path, tmp_path: Path
) -> None:
    """An adapter of one spelling fits a checkpoint of any other."""
    expected = merged(Checkpoint.open(tiny_gemma3), write_adapter(tmp_path / "plain", tiny_gemma3))
    tensors = load_file(tiny_gemma3 / "model.safetensors")
    save_file({stored + name.removeprefix("model."): t for name, t in tensors.items()}, tmp_path / "model.safetensors")
    shutil.copy(tiny_gemma3 / "config.json", tmp_path)
    found = merged(Checkpoint.open(tmp_path), write_adapter(tmp_path / "adapter", tiny_gemma3, trained))
    source = "layers.3.mlp.up_proj.weight"
    np.testing.assert_array_equal(found.read(source), expected.read(source))
    assert not np.array_equal(found.read(source), Checkpoint.open(tmp_path).read(source))
    found.match(Model.from_json(found.text_config).tensors.values(), [])


@pytest.mark.parametrize("is_stored", [True, False])
def test_layers_that_share_keys_may_have_adapters_that_nobody_reads(
    is_stored: bool, tiny_gemma3n: Path, tmp_path: Path
) -> None:
    """transformers 4 trained k_proj of all layers of Gemma 3n."""
    checkpoint = Path(shutil.copytree(tiny_gemma3n, tmp_path / "checkpoint"))
    adapter = write_adapter(tmp_path / "adapter", tiny_gemma3n, target_modules=["q_proj", "up_proj", "k_proj"])
    tensors = load_file(checkpoint / "model.safetensors")
    for name in tensors:
        if name.endswith("k_proj.weight"):
            edit(adapter, **pair(name.removesuffix(".weight"), *tensors[name].shape))
    unread = "model.layers.7.self_attn.k_proj"
    edit(adapter, **pair(unread, 64, 128))
    if is_stored:
        save_file(tensors | {f"{unread}.weight": torch.ones(64, 128)}, checkpoint / "model.safetensors")
    report = convert("custom-int4", checkpoint, tmp_path / "model", lora=adapter, **SMALL)
    assert report.values["source"]["lora"]["merged_tensors"] == 8 + 8 + 5 + is_stored


# ---------------------------------------------------------------- arithmetic


def rounded(value: Fraction) -> Fraction:
    """The nearest float32, ties to even."""
    if not value:
        return value
    exponent = math.floor(math.log2(abs(value)))
    exponent += (abs(value) >= Fraction(2) ** (exponent + 1)) - (abs(value) < Fraction(2) ** exponent)
    unit = Fraction(2) ** (exponent - 23)
    return round(value / unit) * unit


def test_the_product_is_a_chain_of_fused_multiply_adds() -> None:
    rng = np.random.default_rng(3)
    left, right = rng.standard_normal((5, 9), np.float32), rng.standard_normal((9, 33), np.float32)
    left[0, :2], right[:2, 0] = (1 + 2**-23, 2**-12 * (1 + 2**-23)), (1, 2**-12 * (1 - 2**-23))
    left[0, 2:] = 0  # 1 + 2^-23, and just below half a unit more: float64 alone would round that up
    rows = np.zeros((5, 33), np.float32)
    add_low_rank(rows, left, right, scale=1.0)
    assert rows[0, 0] == np.float32(1 + 2**-23)
    for i in range(5):
        for j in range(33):
            total = Fraction(0)
            for a, b in zip(left[i], right[:, j], strict=True):
                total = rounded(total + Fraction(float(a)) * Fraction(float(b)))
            assert rows[i, j] == float(total)


def test_then_the_scale_then_the_weight() -> None:
    rng = np.random.default_rng(4)
    weight: NDArray[np.float32] = rng.standard_normal((70, 900), np.float32)
    left, right = rng.standard_normal((70, 3), np.float32), rng.standard_normal((3, 900), np.float32)
    product = np.zeros_like(weight)
    add_low_rank(product, left, right, scale=1.0)
    found = weight.copy()
    add_low_rank(found, left, right, scale=0.7)
    np.testing.assert_array_equal(found, weight + product * np.float32(0.7))


def test_steps_and_threads_do_not_show(tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = write_adapter(tmp_path / "adapter", tiny_gemma3)
    first = convert("custom-int4", tiny_gemma3, tmp_path / "a", lora=adapter, **SMALL)
    monkeypatch.setattr(stream, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(stream, "_TASK_BYTES", 45_000)
    second = convert("custom-int4", tiny_gemma3, tmp_path / "b", lora=adapter, **SMALL)
    assert first.values["output"]["sha256"] == second.values["output"]["sha256"]
    plain = convert("custom-int4", tiny_gemma3, tmp_path / "c", **SMALL)
    assert plain.values["output"]["sha256"] != first.values["output"]["sha256"]
    assert "lora" not in plain.values["source"]
    assert plain.values["sections"] == first.values["sections"]


def test_plan_and_convert_say_what_they_merge(tiny_gemma3: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", tiny_gemma3)
    request = ("--target", "custom-int4", "--checkpoint", str(tiny_gemma3), "--lora", str(adapter), "--context", "256")
    planned = CliRunner().invoke(main, ["plan", *request, "--json"])
    assert planned.exit_code == 0
    converted = CliRunner().invoke(main, ["convert", *request, "--out", str(tmp_path / "model")])
    assert "merged: adapter, rank 4, alpha 8, into 12 tensors" in converted.stdout
    assert json.loads(planned.stdout)["bundle_bytes"] == (tmp_path / "model").stat().st_size
    (adapter / "adapter_model.safetensors").unlink()
    refused = CliRunner().invoke(main, ["plan", *request])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"error: {adapter}: no adapter_model.safetensors; expected")


def test_the_adapter_is_an_input(tiny_gemma3: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", tiny_gemma3)
    files = merged(Checkpoint.open(tiny_gemma3), adapter).input_files()
    assert [file.name for file in files[-2:]] == ["adapter_config.json", "adapter_model.safetensors"]
    assert len({file.name for file in files}) == len(files)
