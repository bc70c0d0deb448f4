"""The uuid of a bundle: the same for the same bytes, however they were asked for, and another for others."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.converter import identity as module
from gemma_edge.converter.convert import convert
from gemma_edge.runtime.formats.litertlm import Bundle

SMALL: dict[str, Any] = {"context": 128, "prefill": (16,), "measure": False}


@pytest.fixture
def recipe(repository: Path, tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    shutil.copy(repository / "converter" / "quantize" / "recipe_data" / "int8.toml", path)
    return path


def test_how_a_request_is_spelled_changes_no_byte(
    tiny_gemma3: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(recipe, "other.toml")
    asked: list[dict[str, Any]] = [
        {"target": "custom-int8"},
        {"target": "custom-int8", "recipe": "mine.toml"},
        {"target": "custom-int8", "recipe": str(recipe)},
        {"target": "custom-int8", "recipe": "other.toml"},
        {"target": "custom-int8", "profile": "phone-2gb"},
        {"target": "custom-int4", "recipe": recipe},
    ]
    written = set()
    for number, options in enumerate(asked):
        convert(checkpoint=tiny_gemma3, out=f"{number}.litertlm", **options, **SMALL)
        written.add(Path(f"{number}.litertlm").read_bytes())
    assert len(written) == 1


def test_what_changes_bytes_changes_the_uuid(
    tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    def uuid(**options: Any) -> str:
        convert(checkpoint=tiny_gemma3, out=tmp_path / "model", **{"target": "custom-int8", **SMALL, **options})
        return str(Bundle.open(tmp_path / "model").system["uuid"])

    text = repository / "tests" / "fixtures" / "calibration.txt"
    found = [
        uuid(), uuid(context=64), uuid(prefill=(32,)), uuid(kv="fp16"), uuid(encoding=("attention=fp16",)),
        uuid(target="custom-int4"), uuid(target="custom-int4", calibrate=text),
    ]  # fmt: skip
    monkeypatch.setattr(module, "version", lambda _: "another")
    found.append(uuid())
    assert len(set(found)) == len(found)
