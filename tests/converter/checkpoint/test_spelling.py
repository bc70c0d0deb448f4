"""State dicts as wrappers, other classes and other tools save them; transformers' loading is what is right."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, CheckpointError, read_config
from gemma_edge.converter.checkpoint.quantized import quantized_by
from gemma_edge.converter.convert import convert
from gemma_edge.converter.models.family import Model
from tests.converter.verify.prompts.tuned import write

Tensors = dict[str, torch.Tensor]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def rewritten(checkpoint: Path, directory: Path, change: Callable[[Tensors], Tensors], **config: Any) -> Path:
    """A copy with other tensors and settings."""
    shutil.copytree(checkpoint, directory)
    path = directory / "model.safetensors"
    tensors = change(load_file(path))
    path.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    write(directory / "config.json", **config)
    return directory


def prefixed(prefix: str, without: str = "") -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name.removeprefix(without): tensor for name, tensor in tensors.items()}


def bundle_of(checkpoint: Path, out: Path) -> bytes:
    """All but the identifier, which tells other inputs."""
    convert("custom-int8", checkpoint, out, context=64, prefill=(16,), measure=False)
    from gemma_edge.runtime.formats.litertlm import Bundle

    bundle = Bundle.open(out)
    return b"".join(bytes(bundle.read(section)) for section in bundle.sections)


@pytest.fixture(scope="module")
def plain(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bundle_of(tiny_gemma3, tmp_path_factory.mktemp("plain") / "plain.litertlm")


@pytest.mark.parametrize(
    "change",
    [
        prefixed("", "model."),
        prefixed("language_model.", "model."),
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("base_model.model."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module.", "model."),
        prefixed("_fsdp_wrapped_module."),
        prefixed("_forward_module.module."),
        prefixed("model."),
        lambda tensors: prefixed("pretrained_model.")(tensors) | {"v_head.summary.weight": torch.ones(1, 128)},
        lambda tensors: {name.replace(".self_attn.", ".self_attn._orig_mod."): t for name, t in tensors.items()},
        lambda tensors: {
            re.sub(r"layers\.(\d+)\.", r"layers.\1._fsdp_wrapped_module._checkpoint_wrapped_module.", name): tensor
            for name, tensor in prefixed("_fsdp_wrapped_module.")(tensors).items()
        },
        lambda tensors: tensors | {HEAD: tensors[EMBEDDING].float()},
        lambda tensors: tensors | {HEAD: tensors[EMBEDDING].clone()},
        lambda tensors: {HEAD if name == EMBEDDING else name: tensor for name, tensor in tensors.items()},
        lambda tensors: prefixed("module.")({HEAD if n == EMBEDDING else n: t for n, t in tensors.items()}),
        lambda tensors: tensors | {"v_head.summary.weight": torch.ones(1, 128), "v_head.summary.bias": torch.ones(1)},
        lambda tensors: tensors | {"model.embed_tokens.embed_scale": torch.tensor(11.3)},
        lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)},
    ],
)
def test_the_same_weights_under_other_names_give_the_same_bundle(
    change: Callable[[Tensors], Tensors], plain: bytes, tiny_gemma3: Path, tmp_path: Path
) -> None:
    checkpoint = rewritten(tiny_gemma3, tmp_path / "checkpoint", change)
    assert bundle_of(checkpoint, tmp_path / "model.litertlm") == plain


def test_a_head_of_its_own_is_still_refused_where_it_is_said_to_be_tied(tiny_gemma3: Path, tmp_path: Path) -> None:
    embedding = load_file(tiny_gemma3 / "model.safetensors")[EMBEDDING]
    for number, head in enumerate((embedding.float() * 1.5, (embedding * 1.5).bfloat16(), embedding[:9].clone())):

        def with_head(tensors: Tensors, head: torch.Tensor = head) -> Tensors:
            return tensors | {HEAD: head}

        checkpoint = rewritten(tiny_gemma3, tmp_path / str(number), with_head)
        with pytest.raises(CheckpointError, match=r"lm_head\.weight: differs from model\.embed_tokens\.weight, which"):
            bundle_of(checkpoint, tmp_path / "model.litertlm")


def test_a_head_alone_that_is_not_tied_is_no_embedding(tiny_gemma3: Path, tmp_path: Path) -> None:
    def only_head(tensors: Tensors) -> Tensors:
        return {HEAD if name == EMBEDDING else name: tensor for name, tensor in tensors.items()}

    checkpoint = rewritten(tiny_gemma3, tmp_path / "checkpoint", only_head, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is missing; incomplete checkpoint"):
        bundle_of(checkpoint, tmp_path / "model.litertlm")


def test_64_bits_are_named_with_a_remedy(tiny_gemma3: Path, tmp_path: Path) -> None:
    def doubled(tensors: Tensors) -> Tensors:
        return tensors | {"model.norm.weight": tensors["model.norm.weight"].double()}

    with pytest.raises(CheckpointError) as refusal:
        bundle_of(rewritten(tiny_gemma3, tmp_path / "checkpoint", doubled), tmp_path / "model.litertlm")
    assert str(refusal.value) == (
        "model.norm.weight: dtype F64, expected BF16, F16, F32; load it with transformers, call "
        "model.to(torch.bfloat16) and save_pretrained() it"
    )


@pytest.mark.parametrize("kind", ["gemma3", "gemma3n"])
def test_a_text_config_needs_no_model_type(kind: str, tiny_gemma3: Path, tiny_gemma3n: Path, tmp_path: Path) -> None:
    text = json.loads(((tiny_gemma3 if kind == "gemma3" else tiny_gemma3n) / "config.json").read_text())
    text = text.get("text_config", text)
    del text["model_type"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "text_config": text}))
    assert Model.from_json(read_config(tmp_path)["text_config"]).family == kind


# ---------------------------------------------------------------- quantized before


LINEAR = "_proj.weight"


def packed(*parts: str, dtype: torch.dtype = torch.int32) -> Callable[[Tensors], Tensors]:
    """Every linear layer as several tensors of other names."""

    def change(tensors: Tensors) -> Tensors:
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(LINEAR)}
        stems = [name.removesuffix(".weight") for name in tensors if name.endswith(LINEAR)]
        return kept | {f"{stem}.{part}": torch.zeros(4, 4, dtype=dtype) for stem in stems for part in parts}

    return change


def eight_bits(tensors: Tensors) -> Tensors:
    return {n: t.to(torch.float8_e4m3fn) if n.endswith(LINEAR) else t for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("config", "change", "told"),
    [
        ({"quant_method": "gptq", "bits": 8}, packed("qweight", "qzeros", "scales", "g_idx"), "GPTQ (8 bits), which"),
        (
            None,
            packed("qweight", "qzeros", "scales", "g_idx"),
            "GPTQ, which is not read; convert the checkpoint that it",
        ),
        (
            None,
            packed("qweight", "qzeros", "scales"),
            "AWQ, which is not read; convert the checkpoint that it was made",
        ),
        (None, packed("weight_packed", "weight_scale", "weight_shape"), "compressed-tensors, which is not read;"),
        ({"quant_method": "hqq"}, packed("W_q", "meta"), "HQQ, which is not read; convert the checkpoint that it was"),
        ({"quant_method": "new-one"}, packed("data"), "new-one, which is not read; convert the checkpoint that it was"),
        (
            {"load_in_8bit": True},
            packed("weight", "SCB", dtype=torch.int8),
            "bitsandbytes (8 bits), which is not read;",
        ),
        ({"quant_method": "fp8"}, eight_bits, "FP8, which is not read; convert the checkpoint that it was made from"),
    ],
)
def test_what_quantized_a_checkpoint_is_named_with_what_to_do(
    config: Any, change: Callable[[Tensors], Tensors], told: str, tiny_gemma3: Path, tmp_path: Path
) -> None:
    settings = {} if config is None else {"quantization_config": config}
    checkpoint = rewritten(tiny_gemma3, tmp_path / "checkpoint", change, **settings)
    with pytest.raises(CheckpointError) as refusal:
        bundle_of(checkpoint, tmp_path / "model.litertlm")
    assert str(refusal.value).startswith(f"{checkpoint}: quantized by {told}")
    assert "\n" not in str(refusal.value)


def test_settings_may_lie_in_the_text_config_and_in_mlx_words() -> None:
    nested = {"text_config": {"quantization_config": {"quant_method": "awq", "bits": 4}}}
    assert quantized_by(nested, ()) == (
        "quantized by AWQ (4 bits), which is not read; convert the checkpoint that it was made from"
    )
    assert quantized_by({"quantization": {"group_size": 64, "bits": 4}}, ()) == (
        "quantized by MLX (4 bits), which is not read; run `mlx_lm.convert --dequantize` on it, and convert that"
    )
    assert quantized_by({}, ("model.norm.weight",)) is None


def test_settings_left_behind_by_weights_that_are_whole_again_do_no_harm(tiny_gemma3: Path, tmp_path: Path) -> None:
    left = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    checkpoint = rewritten(tiny_gemma3, tmp_path / "checkpoint", lambda tensors: tensors, **left)
    assert Checkpoint.open(checkpoint).prefix == "model."
    bundle_of(checkpoint, tmp_path / "model.litertlm")


@pytest.mark.parametrize("held", [".base_layer", ""])
def test_a_model_saved_with_its_adapter_says_so(held: str, tiny_gemma3: Path, tmp_path: Path) -> None:
    """As PEFT wraps a layer, and as others do."""
    layer = "model.layers.0.self_attn.q_proj"
    adapter = f"{layer}.lora_A.default.weight"

    def wrapped(tensors: Tensors) -> Tensors:
        weight = tensors.pop(f"{layer}.weight")
        return tensors | {f"{layer}{held}.weight": weight, adapter: weight[:4].clone()}

    checkpoint = rewritten(tiny_gemma3, tmp_path / "checkpoint", wrapped)
    with pytest.raises(CheckpointError) as refusal:
        convert("custom-int8", checkpoint, tmp_path / "out.litertlm", context=64)
    assert str(refusal.value) == (
        f"{checkpoint}: an adapter lies beside the weights ({adapter}); merge_and_unload() it with peft and save the "
        "model again"
    )
