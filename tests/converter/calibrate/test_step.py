"""`convert --calibrate` and `--recipe auto`: what is written, and what is refused."""

import hashlib
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gemma_edge.converter.calibrate import sensitivity, step
from gemma_edge.converter.checkpoint.spelling import EMBEDDING
from gemma_edge.converter.convert import convert
from gemma_edge.converter.plan.target import Target, TargetError, calibration_text
from gemma_edge.converter.quantize.recipes import RecipeError
from gemma_edge.converter.tensors import HEAD
from gemma_edge.converter.tokenizer.windows import TextError
from gemma_edge.runtime.formats.atomic import OutputError
from tests.converter.checkpoint.adapters import write_adapter

SMALL: dict[str, Any] = {"context": 256, "prefill": (16,)}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short text, for speed."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(calibration_text("built-in").content[:3000])
    return path


def test_the_same_text_gives_the_same_bytes_of_the_same_size(tiny_gemma3n: Path, text: Path, tmp_path: Path) -> None:
    reports = [
        convert("custom-int4", tiny_gemma3n, tmp_path / name, calibrate=calibrate, encoding=["embedding=int8"], **SMALL)
        for name, calibrate in (("plain", None), ("first", text), ("second", text))
    ]
    plain, first, second = (sha256(tmp_path / name) for name in ("plain", "first", "second"))
    assert first == second != plain
    assert len({report.values["output"]["bytes"] for report in reports}) == 1
    assert "calibration" not in reports[0].values
    assert reports[1].values["calibration"] == {
        "text": "calibration.txt",
        "sha256": hashlib.sha256(text.read_bytes()).hexdigest(),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        name + suffix for name in ("plain", "first", "second") for suffix in ("", ".json")
    )  # no temporary file is left


@pytest.mark.parametrize("format_", ["onnx"])
def test_other_formats_take_calibrated_weights_too(tiny_gemma3: Path, text: Path, format_: str, tmp_path: Path) -> None:
    reports = [
        convert(
            "custom-int4", tiny_gemma3, tmp_path / str(calibrate is None), calibrate=calibrate, format=format_, **SMALL
        )
        for calibrate in (None, text)
    ]
    assert reports[0].values["output"]["sha256"] != reports[1].values["output"]["sha256"]
    assert reports[0].values["output"]["bytes"] == reports[1].values["output"]["bytes"]


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
def test_a_merged_adapter_is_calibrated_too(tiny_gemma3: Path, text: Path, container: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", tiny_gemma3)
    options = {"lora": adapter, "format": container, **SMALL}
    plain = convert("custom-int4", tiny_gemma3, tmp_path / "plain", **options).values
    both = convert("custom-int4", tiny_gemma3, tmp_path / "both", calibrate=text, **options).values
    assert both["source"]["lora"] == plain["source"]["lora"]
    assert both["calibration"]["text"] == "calibration.txt"
    assert 0 < both["quality"]["kl"] < plain["quality"]["kl"]


def test_a_text_that_cannot_be_read_is_named(tiny_gemma3: Path, tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"nowhere.txt: cannot be read as text \(.*\); give a file in UTF-8$"):
        convert("custom-int4", tiny_gemma3, tmp_path / "out", calibrate=tmp_path / "nowhere.txt")
    (tmp_path / "short.txt").write_text("And it was so.")
    with pytest.raises(TextError, match=r"^short.txt: found \d tokens, expected at least 16; give a longer text$"):
        convert("custom-int4", tiny_gemma3, tmp_path / "out", calibrate=tmp_path / "short.txt", **SMALL)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_activations_do_not_fit_is_refused(
    tiny_gemma3: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes = 64 << 20
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
    convert("custom-int4", tiny_gemma3, tmp_path / "plain", **SMALL)
    with pytest.raises(OutputError, match=r"out: disk full, 2\d\d MiB needed, 64 MiB free;"):
        convert("custom-int4", tiny_gemma3, tmp_path / "out", calibrate=text, **SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wanted", ["1700kB", "1300kB"])
def test_a_measured_recipe_fits_its_budget(
    tiny_gemma3: Path, text: Path, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "LAYER_GROUPS", 2)
    monkeypatch.setattr(step, "MEASURING_TOKENS", 256)
    report = convert(
        "custom-int4", tiny_gemma3, tmp_path / "out", recipe="auto", max_bytes=wanted, calibrate=text, **SMALL
    )
    limit = int(wanted.removesuffix("kB")) * 1000
    assert 0.9 * limit < report.values["output"]["bytes"] <= limit
    assert (tmp_path / "out").stat().st_size == report.values["output"]["bytes"]
    chosen = report.values["recipe"]["tensors"]
    assert len(set(chosen.values())) > 1
    assert report.values["recipe"]["name"] == f"auto, int4, at most {limit} bytes"


def test_a_text_that_measured_encodings_leave_nothing_for_is_not_used(
    tiny_gemma3: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "LAYER_GROUPS", 2)
    monkeypatch.setattr(step, "MEASURING_TOKENS", 256)
    options = {"recipe": "auto", "max_bytes": "8MB", **SMALL}
    report = convert("custom-int4", tiny_gemma3, tmp_path / "out", calibrate=text, **options).values
    assert set(report["recipe"]["tensors"].values()) == {"int8"}
    assert "calibration" not in report
    convert("custom-int4", tiny_gemma3, tmp_path / "plain", **options)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "out").read_bytes()


def test_encodings_that_are_measured_lose_less_than_those_of_the_recipe(
    tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "LAYER_GROUPS", 2)
    monkeypatch.setattr(step, "MEASURING_TOKENS", 256)
    plain = convert("custom-int4", tiny_gemma3, tmp_path / "plain", accept_loss=True, **SMALL).values
    size = f"{plain['output']['bytes'] + 2048} B"
    chosen = convert("custom-int4", tiny_gemma3, tmp_path / "auto", recipe="auto", max_bytes=size, **SMALL).values
    assert chosen["output"]["bytes"] <= plain["output"]["bytes"] + 2048
    assert chosen["quality"]["kl"] < plain["quality"]["kl"]
    assert EMBEDDING not in chosen["recipe"]["tensors"]  # it is in the head's table, as in the recipe int4
    assert HEAD in chosen["recipe"]["tensors"]


def test_a_budget_that_nothing_fits_is_refused(tiny_gemma3: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        convert("custom-int4", tiny_gemma3, tmp_path / "out", recipe="auto", max_bytes="300kB", **SMALL)
    assert re.fullmatch(
        r"max-bytes 300,000: the smallest bundle of this model has \d,\d{3},\d{3} bytes; "
        "give at least that, or take a smaller model",
        str(refused.value),
    )


def test_requests_that_make_no_sense_are_refused() -> None:
    for recipe, max_bytes in (("auto", None), (None, "2.6GB")):
        with pytest.raises(TargetError) as refused:
            Target.parse("e2b-int4", recipe=recipe, max_bytes=max_bytes)
        assert str(refused.value) == (
            "recipe auto and max-bytes: expected both or none; give --recipe auto --max-bytes 2.6GB"
        )
    with pytest.raises(TargetError) as refused:
        Target.parse("e2b-int4", recipe="auto", max_bytes="much")
    assert str(refused.value) == "max-bytes 'much': expected a number with its unit, such as 2.6GB or 900MiB"
