"""What verification says of encoders: near nothing of float32, little of int8, much of a mistake."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.convert import convert
from gemma_edge.converter.models.encoders import Modality
from gemma_edge.converter.verify.find.encoders import EncoderScore, encoder_findings, score_encoders
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory

OPTIONS: dict[str, Any] = {"context": 192, "prefill": (8, 32)}
BOTH = ("text", "vision", "audio")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, timm: None) -> Checkpoint:  # noqa: ARG001  builds the vision
    from tools.tiny_towers import write_tiny_towers

    directory = tmp_path_factory.mktemp("towers")
    write_tiny_towers(directory)
    return Checkpoint.open(directory)


def scores(checkpoint: Checkpoint, bundle: Path, folder: Path) -> dict[Modality, EncoderScore]:
    opened = OnnxDirectory.open(bundle) if bundle.is_dir() else Bundle.open(bundle)
    return {score.modality: score for score in score_encoders(checkpoint, opened, 1, folder)}


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0.0, 1e-5), ("int8", 1e-3, 6e-2)])
def test_both_encoders_are_compared(
    container: str, precision: str, least: float, most: float, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    bundle = tmp_path / "model"
    convert(f"custom-{precision}", checkpoint.path, bundle, format=container, modalities=BOTH, **OPTIONS)
    found = scores(checkpoint, bundle, tmp_path)
    assert {modality: score.embeddings for modality, score in found.items()} == {
        Modality.VISION: 9,
        Modality.AUDIO: 12,
    }
    for score in found.values():
        assert least < score.relative_error < most
        assert 1 - most < score.cosine < 1 + 1e-6


def test_only_what_the_bundle_has_is_compared(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for modalities, expected in ((("text",), set()), (("text", "audio"), {Modality.AUDIO})):
        bundle = tmp_path / f"{len(modalities)}.litertlm"
        convert("custom-int8", checkpoint.path, bundle, modalities=modalities, **OPTIONS)
        assert set(scores(checkpoint, bundle, tmp_path)) == expected


def test_layers_in_the_wrong_order_are_seen(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The bundle is compared with a checkpoint in which two layers of the audio encoder have changed places."""
    bundle = tmp_path / "model.litertlm"
    convert("custom-fp32", checkpoint.path, bundle, modalities=("text", "audio"), **OPTIONS)
    tensors = dict(checkpoint.tensors)
    for name in [name for name in tensors if ".conformer.0." in name]:
        other = name.replace(".conformer.0.", ".conformer.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]
    assert scores(replace(checkpoint, tensors=tensors), bundle, tmp_path)[Modality.AUDIO].relative_error > 0.1


def mixed_up(checkpoint: Checkpoint) -> Checkpoint:
    """With the tensors of a shape in another order, within the encoders."""
    tensors = dict(checkpoint.tensors)
    groups: dict[object, list[str]] = {}
    for name, info in tensors.items():
        if "_tower." in name:
            groups.setdefault((info.dtype, info.shape), []).append(name)
    for names in groups.values():
        tensors |= {name: checkpoint.tensors[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}
    return replace(checkpoint, tensors=tensors)


def test_encoders_of_another_model_are_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    bundle = tmp_path / "model.litertlm"
    convert("custom-int8", checkpoint.path, bundle, modalities=BOTH, **OPTIONS)
    right = scores(checkpoint, bundle, tmp_path)
    assert not list(encoder_findings(list(right.values())))
    mixed = scores(mixed_up(checkpoint), bundle, tmp_path)
    assert [finding.name for finding in encoder_findings(list(mixed.values()))] == [
        "wrong vision encoder",
        "wrong audio encoder",
    ]
    [nonsense] = encoder_findings([EncoderScore(Modality.AUDIO, 12, math.nan, math.nan)])
    assert nonsense.evidence == "over 12 embeddings the relative error is nan, the worst cosine nan"
