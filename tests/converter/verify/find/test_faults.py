"""Every silent failure is built into a bundle and named; a right bundle has none."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gemma_edge.converter.checkpoint import stored_values
from gemma_edge.converter.convert import convert
from gemma_edge.converter.graph.ops import Graph, KVCache, Value
from gemma_edge.converter.litert import metadata
from gemma_edge.converter.models import blocks, gemma3n
from gemma_edge.converter.models.blocks import AttentionLayer
from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.show.html import html_report
from tests.converter.checkpoint.adapters import write_adapter
from tests.converter.verify.prompts.tuned import CHATML, with_template
from tests.converter.verify.wrong import CONTEXT_TOKENS, Tensors, bundle_of, copied, faults, rewritten, verified

LAYERS = 8  # of tiny-gemma3n; the last three share keys and values


@pytest.mark.parametrize(
    ("precision", "container"),
    [("fp32", "litertlm"), ("int8", "litertlm"), ("int4", "litertlm"), ("fp32", "onnx"), ("int4", "onnx")],
)
@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])
def test_a_right_bundle_has_no_fault(name: str, precision: str, container: str, val_bin: Path, tmp_path: Path) -> None:
    checkpoint = copied(val_bin.parent / name, tmp_path / name)
    report = verified(bundle_of(checkpoint, precision, container), checkpoint, val_bin)
    assert faults(report) == []
    assert report.passed
    assert not [tensor for tensor in report.tensors if tensor.differs]
    worst = [part.snr_db for layer in report.layers for part in (layer.output, layer.keys, layer.values) if part]
    assert min(worst) > 20


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
@pytest.mark.parametrize(
    ("name", "wrong", "named"),
    [
        ("tiny-gemma3n", {"final_logit_softcapping": None}, "missing soft-cap"),
        ("tiny-gemma3n", {"activation_sparsity_pattern": [0.0] * LAYERS}, "missing sparsity"),
        ("tiny-gemma3", {"sliding_window": 1024}, "missing sliding window"),
        (
            "tiny-gemma3",
            {
                "rope_parameters": {
                    kind: {"rope_theta": 1e6, "rope_type": "default"}
                    for kind in ("full_attention", "sliding_attention")
                }
            },
            "one RoPE base for all layers",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_computation_is_named(
    name: str, wrong: dict[str, object], named: str, container: str, val_bin: Path, tmp_path: Path
) -> None:
    bundle = bundle_of(copied(val_bin.parent / name, tmp_path / "wrong", **wrong), "int4", container)
    assert faults(verified(bundle, val_bin.parent / name, val_bin)) == [named]


def test_two_faults_at_once_are_both_named(tiny_gemma3n: Path, val_bin: Path, tmp_path: Path) -> None:
    wrong = {"final_logit_softcapping": None, "activation_sparsity_pattern": [0.0] * LAYERS}
    report = verified(bundle_of(copied(tiny_gemma3n, tmp_path / "wrong", **wrong)), tiny_gemma3n, val_bin)
    assert sorted(faults(report)) == ["missing soft-cap", "missing sparsity"]


def test_keys_and_values_of_layers_that_share_are_named(tiny_gemma3n: Path, val_bin: Path, tmp_path: Path) -> None:
    """Official checkpoints store keys and values of these layers too, and a converter may take them for good."""

    def with_all_keys_and_values(tensors: Tensors) -> Tensors:
        for layer in range(5, LAYERS):
            for part in ("k_proj", "v_proj", "k_norm"):
                tensors[f"layers.{layer}.self_attn.{part}.weight"] = tensors[f"layers.4.self_attn.{part}.weight"].copy()
        return tensors

    checkpoint = rewritten(tiny_gemma3n, tmp_path / "right", with_all_keys_and_values)
    wrong = copied(checkpoint, tmp_path / "wrong", num_kv_shared_layers=0)
    assert faults(verified(bundle_of(wrong), checkpoint, val_bin)) == ["unshared KV"]
    assert faults(verified(bundle_of(checkpoint), checkpoint, val_bin)) == []


def test_sharing_with_the_wrong_layer_is_named(
    tiny_gemma3n: Path, val_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gemma3n.Config, "kv_source", lambda self, layer: min(layer, self.kv_layers - 1))
        bundle = bundle_of(copied(tiny_gemma3n, tmp_path / "wrong"))
    assert faults(verified(bundle, tiny_gemma3n, val_bin)) == ["wrongly shared KV"]


@pytest.mark.parametrize(("name", "wrong"), [("tiny-gemma3", -1.0), ("tiny-gemma3n", 1.0)])
@pytest.mark.parametrize("container", ["litertlm", "onnx"])
def test_a_wrong_norm_offset_is_named(name: str, wrong: float, container: str, val_bin: Path, tmp_path: Path) -> None:
    def shifted(tensors: Tensors) -> Tensors:
        return {key: values + np.float32(wrong) * key.endswith("norm.weight") for key, values in tensors.items()}

    bundle = bundle_of(rewritten(val_bin.parent / name, tmp_path / "wrong", shifted), "int4", container)
    report = verified(bundle, val_bin.parent / name, val_bin)
    assert faults(report) == ["wrong norm offset"]
    [finding] = report.findings
    assert "norms differ from the checkpoint's by exactly 1: " in finding.evidence


def test_a_bundle_of_another_project_is_judged_by_its_logits(
    tiny_gemma3: Path, val_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights have other names: what is left are the logits and the cache."""

    def shifted(tensors: Tensors) -> Tensors:
        return {key: values - np.float32(1) * key.endswith("norm.weight") for key, values in tensors.items()}

    monkeypatch.setattr("gemma_edge.converter.verify.verify.readable_weights", lambda _model, _subject: None)
    right = verified(bundle_of(copied(tiny_gemma3, tmp_path / "right"), "fp32"), tiny_gemma3, val_bin)
    assert (faults(right), right.tensors, right.weights_kl) == ([], (), None)
    assert all(layer.output is None and layer.keys is not None for layer in right.layers)
    assert "names of their own" in html_report(right)
    wrong = verified(bundle_of(rewritten(tiny_gemma3, tmp_path / "wrong", shifted), "fp32"), tiny_gemma3, val_bin)
    assert faults(wrong) == ["wrong norm offset"]


def test_weights_of_another_layer_are_named_with_their_layer(tiny_gemma3: Path, val_bin: Path, tmp_path: Path) -> None:
    def swapped(tensors: Tensors) -> Tensors:
        a, b = "layers.2.mlp.up_proj.weight", "layers.3.mlp.up_proj.weight"
        return tensors | {a: tensors[b], b: tensors[a]}

    report = verified(bundle_of(rewritten(tiny_gemma3, tmp_path / "wrong", swapped)), tiny_gemma3, val_bin)
    assert faults(report) == ["wrong weights in layer 2", "wrong weights in layer 3"]
    assert report.findings[0].evidence.startswith("layers.2.mlp.up_proj.weight: ")


def test_an_embedding_without_its_scale_is_named(tiny_gemma3: Path, val_bin: Path, tmp_path: Path) -> None:
    def unscaled(tensors: Tensors) -> Tensors:
        scaled = tensors["embed_tokens.weight"]
        return tensors | {"embed_tokens.weight": scaled / np.float32(scaled.shape[1] ** 0.5), "lm_head.weight": scaled}

    checkpoint = rewritten(tiny_gemma3, tmp_path / "wrong", unscaled, tie_word_embeddings=False)
    report = verified(bundle_of(checkpoint), tiny_gemma3, val_bin)
    assert faults(report) == ["wrong weights outside the layers"]
    assert re.search(r"\b0\.088\d* times as large", report.findings[0].evidence)


def test_a_wrong_head_is_named_and_told_once_with_a_wrong_embedding(
    tiny_gemma3: Path, val_bin: Path, tmp_path: Path
) -> None:
    def rolled(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": np.roll(tensors["embed_tokens.weight"], 1, axis=0)}

    head = rewritten(tiny_gemma3, tmp_path / "head", rolled, tie_word_embeddings=False)
    report = verified(bundle_of(head), tiny_gemma3, val_bin)
    assert faults(report) == ["wrong weights outside the layers"]
    assert report.findings[0].evidence.startswith("lm_head.weight: ")
    both = rewritten(head, tmp_path / "both", lambda t: t | {"embed_tokens.weight": t["lm_head.weight"]})
    report = verified(bundle_of(both), tiny_gemma3, val_bin)
    assert faults(report) == ["wrong weights outside the layers"]
    assert "embed_tokens.weight: " in report.findings[0].evidence
    assert "lm_head.weight: " in report.findings[0].evidence


@pytest.mark.parametrize(
    ("name", "precision", "layer", "named"),
    [
        ("tiny-gemma3", "int4", 2, "wrong computation in or before layer 3"),  # the first whose keys see it
        # The last with a cache of its own; in int8 rounded activations hide how far the logits fall below it.
        ("tiny-gemma3n", "fp32", 6, "wrong computation after layer 4"),
    ],
)
def test_an_unknown_mistake_is_named_by_its_layer(
    name: str,
    precision: str,
    layer: int,
    named: str,
    val_bin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = blocks.attend

    def mistaken(g: Graph, x: Value, index: int, kind: AttentionLayer, eps: float, kv: KVCache) -> Value:
        y = right(g, x, index, kind, eps, kv)
        return g.mul(g.add(y, 1.0), -1.0) if index == layer else y

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "attend", mistaken)
        bundle = bundle_of(copied(val_bin.parent / name, tmp_path / "wrong"), precision)
    assert faults(verified(bundle, val_bin.parent / name, val_bin)) == [named]


def test_a_calibrated_bundle_has_no_fault(tiny_gemma3n: Path, val_bin: Path, tmp_path: Path) -> None:
    """Calibration moves scales between weights: they differ from the checkpoint's, and the predictions do not."""
    (tmp_path / "text.txt").write_text(
        "And God said unto them, Be fruitful, and multiply, and replenish the earth. " * 12
    )
    bundle = tmp_path / "calibrated.litertlm"
    text = tmp_path / "text.txt"
    convert("custom-int4", tiny_gemma3n, bundle, context=CONTEXT_TOKENS, prefill=(16,), calibrate=text)
    assert faults(verified(bundle, tiny_gemma3n, val_bin)) == []


def test_an_adapter_that_was_not_merged_is_noticed(tiny_gemma3: Path, val_bin: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_gemma3, tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", checkpoint)
    with_adapter = tmp_path / "adapted.litertlm"
    convert("custom-int8", checkpoint, with_adapter, context=CONTEXT_TOKENS, prefill=(16,), lora=adapter)
    assert faults(verified(with_adapter, checkpoint, val_bin, lora=adapter)) == []
    without = verified(bundle_of(checkpoint, "int8"), checkpoint, val_bin, lora=adapter)
    assert faults(without)[0] == "wrong weights in layer 0"
    assert "layers.0.self_attn.q_proj.weight" in without.findings[0].evidence


def _wrong_template(checkpoint: Path, directory: Path) -> Path:
    return with_template(checkpoint, directory, CHATML)


def _other_end(checkpoint: Path, directory: Path) -> Path:
    wrong = copied(checkpoint, directory)
    (wrong / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 107]}))
    return wrong


@pytest.mark.parametrize(
    ("build", "named", "evidence"),
    [
        (_wrong_template, ["wrong chat template", "wrong start token"], "after '<' the bundle writes '|im_start|>user"),
        (_other_end, ["wrong stop tokens"], "the bundle has besides 107 ("),
    ],
)
def test_wrong_metadata_is_named(
    build: Callable[[Path, Path], Path],
    named: list[str],
    evidence: str,
    tiny_gemma3n: Path,
    val_bin: Path,
    tmp_path: Path,
) -> None:
    report = verified(bundle_of(build(tiny_gemma3n, tmp_path / "wrong")), tiny_gemma3n, val_bin)
    assert faults(report) == named
    assert evidence in report.findings[0].evidence
    assert not report.passed


def test_a_bundle_that_never_stops_is_named(
    tiny_gemma3: Path, val_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "stop_token_ids", lambda _checkpoint, pieces, *_: [pieces.eos_id()])
        bundle = bundle_of(copied(tiny_gemma3, tmp_path / "wrong"))
    report = verified(bundle, tiny_gemma3, val_bin)
    assert faults(report) == ["wrong stop tokens"]
    assert "lacks 11 (<end_of_turn>)" in report.findings[0].evidence


def test_a_checkpoints_own_template_is_what_counts(tiny_gemma3n: Path, val_bin: Path, tmp_path: Path) -> None:
    fine_tuned = _wrong_template(tiny_gemma3n, tmp_path / "tuned")
    assert faults(verified(bundle_of(fine_tuned), fine_tuned, val_bin)) == []
    report = verified(bundle_of(copied(tiny_gemma3n, tmp_path / "plain")), fine_tuned, val_bin)
    assert faults(report) == ["wrong chat template", "wrong start token"]


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
@pytest.mark.parametrize(
    ("large", "told"),
    [  # values of layer 3 can just be held; what its o_proj makes of them cannot
        (
            "layers.3.self_attn.v_proj.weight",
            "the first NaN or infinity in the KV cache is layer 4's: the overflow is in layer 3 or 4",
        ),
        ("norm.weight", "and the KV cache is finite: the overflow is after the last layer that has a cache"),
    ],
)
def test_a_layer_that_overflows_is_named(
    large: str,
    told: str,
    container: str,
    tiny_gemma3: Path,
    val_bin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    infinity = {"BF16": 0x7F80, "F32": 0x7F80_0000}  # conversion refuses such a checkpoint
    monkeypatch.setattr(stored_values, "_LIMIT_BITS", infinity)

    def overflowing(tensors: Tensors) -> Tensors:
        return tensors | {large: tensors[large] * np.float32(1e38)}

    bundle = bundle_of(rewritten(tiny_gemma3, tmp_path / "wrong", overflowing), "fp32", container, measure=False)
    with pytest.raises(VerifyError) as refused:
        verified(bundle, tiny_gemma3, val_bin)
    message = str(refused.value)
    assert re.match(rf"{bundle.name}: the logits after \d+ tokens are not finite, {told}", message)
    assert message.endswith("; convert the checkpoint again, to a higher precision if the checkpoint verifies")
