"""A family is one file: each, copied under a name that nobody knows, goes the whole way."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.models import family
from gemma_edge.converter.models.fields import ConfigError
from gemma_edge.converter.verify.verify import verify
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.text.sampler import SamplerConfig
from tools.tiny_towers import write_tiny_towers

NAMES = ("gemma3", "gemma3n", "gemma4")
SMALL: dict[str, Any] = {"context": 128, "prefill": (16,)}


def copied(name: str, repository: Path, folder: Path) -> ModuleType:
    """models/NAME.py as a module of its own: another FAMILY, other model types, and nothing in common."""
    source = (repository / "converter" / "models" / f"{name}.py").read_text(encoding="utf-8")
    for old in (f'FAMILY: Final = "{name}"', f'"{name}_text", "{name}"'):
        assert old in source, old
        source = source.replace(old, old.replace(name, f"invented-{name}"))
    source = source.replace(f'MULTIMODAL_TYPES = ("{name}",)', f'MULTIMODAL_TYPES = ("invented-{name}",)')
    path = folder / f"invented_{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(f"invented_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
        spec.loader.exec_module(module)
    return module


def renamed(checkpoint: Path) -> None:
    """Every model type in config.json, invented."""
    config = json.loads((checkpoint / "config.json").read_text())
    for part in (config, config.get("text_config", {})):
        if str(part.get("model_type")).startswith("gemma"):
            part["model_type"] = f"invented-{part['model_type']}"
    (checkpoint / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", autouse=True)
def invented(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The copies are the only families there are."""
    folder = tmp_path_factory.mktemp("families")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "FAMILIES", tuple(copied(name, repository, folder) for name in NAMES))
        yield


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("invented") / request.param
    shutil.copytree(request.getfixturevalue(f"tiny_{request.param}"), path)
    renamed(path)
    return path


def test_the_known_names_are_gone(tiny_gemma3: Path, tmp_path: Path) -> None:
    """Else the other tests would show nothing."""
    with pytest.raises(ConfigError, match="expected one of invented-gemma3_text, invented-gemma3, invented"):
        convert("custom-int8", tiny_gemma3, tmp_path / "out", **SMALL)


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
def test_the_whole_way(checkpoint: Path, container: str, tmp_path: Path) -> None:
    asked = [
        "--target",
        "custom-int8",
        "--checkpoint",
        str(checkpoint),
        "--format",
        container,
        "--profile",
        "phone-2gb",
    ]
    planned = CliRunner().invoke(main, ["plan", *asked, "--context", "128", "--prefill", "16", "--json"])
    assert planned.exit_code == 0, planned.output
    out = tmp_path / "model"
    report = convert("custom-int8", checkpoint, out, format=container, profile="phone-2gb", **SMALL).values
    assert report["family"] == f"invented-{checkpoint.name}"
    assert report["output"]["bytes"] == json.loads(planned.stdout)["bundle_bytes"]
    assert report["quality"]["verdict"] == "good"
    with (
        Engine(str(out), cache_dir=str(tmp_path)) as engine,
        engine.create_conversation(sampler_config=SamplerConfig(top_k=1), max_output_tokens=8) as conversation,
    ):
        assert str(conversation.send_message("In the beginning"))
    verified = verify(out, checkpoint, limit=128, window=32)
    assert not verified.findings
    assert verified.bundle.metrics["kl"].value < 0.1


def test_calibrated(checkpoint: Path, tmp_path: Path, repository: Path) -> None:
    container = "onnx" if checkpoint.name == "gemma3" else "litertlm"
    text = repository / "tests" / "fixtures" / "calibration.txt"
    convert("custom-int4", checkpoint, tmp_path / "plain", format=container, measure=False, **SMALL)
    told = convert(
        "custom-int4", checkpoint, tmp_path / "told", format=container, calibrate=text, measure=False, **SMALL
    )
    plain = json.loads((tmp_path / "plain.json").read_text())
    assert told.values["worst_errors"] != plain["worst_errors"]


def test_encoders(timm: None, tmp_path: Path) -> None:  # noqa: ARG001  tools.tiny_towers needs it
    write_tiny_towers(tmp_path / "checkpoint")
    renamed(tmp_path / "checkpoint")
    for container in ("litertlm", "onnx"):
        out = tmp_path / container
        report = convert("custom-int8", tmp_path / "checkpoint", out, format=container, measure=False, **SMALL)
        assert report.values["modalities"] == ["text", "vision", "audio"]
