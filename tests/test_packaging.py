"""What installs: one namespaced package, its data files and two console scripts."""

import configparser
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gemma_edge.converter.cli import main
from tests.wheels import LAYERS, wheel_of_copy
from tools.release.archives import check_wheel

# What the extras install, as imported.
EXTRAS_MODULES = (
    "ai_edge_litert",
    "flatbuffers",
    "gguf",
    "google",
    "litert_lm",
    "litert_lm_builder",
    "llguidance",
    "matplotlib",
    "minijinja",
    "model_signing",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "PIL",
    "python_multipart",
    "re2",
    "safetensors",
    "sentencepiece",
    "snakemake",
    "soundfile",
    "soxr",
    "starlette",
    "tokenizers",
    "torch",
    "transformers",
    "uvicorn",
)


@pytest.fixture(scope="module")
def pyproject(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    path = wheel_of_copy(repository, tmp_path_factory.mktemp("wheel"))
    check_wheel(path)
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_layers_and_nothing_else(wheel: zipfile.ZipFile, repository: Path) -> None:
    files = [path for layer in LAYERS for path in (repository / layer).rglob("*") if path.is_file()]
    packable = [path for path in files if "__pycache__" not in path.parts and path.suffix != ".md"]
    sources = {path.relative_to(repository).as_posix() for path in packable}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == {f"gemma_edge/{source}" for source in sources}
    assert any(name.endswith(".toml") for name in packed)


def test_the_console_scripts_name_functions_that_exist(wheel: zipfile.ZipFile, repository: Path) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(name).decode())
    scripts = dict(entries["console_scripts"])
    assert set(scripts) == {"convert", "gemma-edge"}
    for target in scripts.values():
        module, function = target.split(":")
        source = repository / Path(*module.split(".")[1:]).with_suffix(".py")
        assert f"def {function}(" in source.read_text(encoding="utf-8")


def test_the_pytest_plugin_is_announced(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(name).decode())
    assert dict(entries["pytest11"]) == {"gemma_edge": "gemma_edge.runtime.measure.pytest_plugin.plugin"}
    assert "gemma_edge/runtime/measure/pytest_plugin/plugin.py" in wheel.namelist()


def test_the_wheel_carries_the_licence(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert "Apache License" in wheel.read(name).decode()


def test_the_base_install_shows_its_help() -> None:
    """The commands explain themselves where no extra is installed."""
    script = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS_MODULES}))  # None: importing one of these fails
import gemma_edge.profiles
from gemma_edge.converter.cli import main
main(["--help"])
"""
    helped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert helped.returncode == 0, helped.stderr
    assert "convert" in helped.stdout


def test_type_checkers_see_the_layers_under_the_installed_names(repository: Path) -> None:
    for layer in LAYERS:
        assert (repository / ".types" / "gemma_edge" / layer).resolve() == repository / layer


def _name(requirement: str) -> str:
    return re.split(r"[\[=<>]", requirement)[0].lower().replace("_", "-")


def test_every_requirement_is_constrained_to_one_version(repository: Path, pyproject: dict[str, Any]) -> None:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert not [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)]  # no hosts, paths or local versions
    versions = {_name(pin): pin.split("==")[1] for pin in pins}
    project = pyproject["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [requirement for group in groups for requirement in group if _name(requirement) != project["name"]]
    assert {_name(requirement) for requirement in requirements} <= set(versions)
    for requirement in requirements:
        if "==" in requirement:
            assert requirement.split("==")[1] == versions[_name(requirement)]


def test_the_changelog_begins_with_this_version(repository: Path, pyproject: dict[str, Any]) -> None:
    changes = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d|unreleased)$", changes, flags=re.MULTILINE)
    assert versions[0][0] == pyproject["project"]["version"]
    assert all(day != "unreleased" for _, day in versions[1:])
    said = CliRunner().invoke(main, ["--version"], prog_name="gemma-edge")
    assert said.output == f"gemma-edge, version {versions[0][0]}\n"
