"""Processes of ours: with nothing from the folder where one stands, and none where Python is inside another program."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.measure.bench import Benchmark, measure
from gemma_edge.runtime.measure.compare_process import ModelProcess
from gemma_edge.runtime.packing.child import ChildError, has_interpreter, python_command

TinyBundle = Callable[[str, str], Path]

START = """
import sys
{changes}
from gemma_edge.runtime import Engine
Engine(sys.argv[1], cache_dir=sys.argv[2]).close()
print("started")
"""


@pytest.fixture
def traps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: modules in it say that they were imported."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in ("numpy", "json", "pickle", "click", "multiprocessing", "gemma_edge", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(folder)
    return tmp_path / "ran"


def test_what_packs_weights_is_not_in_the_current_folder(tiny_bundle: TinyBundle, traps: Path, tmp_path: Path) -> None:
    from gemma_edge.runtime.engine import Engine

    Engine(str(tiny_bundle("gemma3", "int8")), cache_dir=str(tmp_path / "cache")).close()
    assert list((tmp_path / "cache").glob("*.xnnpack"))
    assert not traps.exists()


def test_what_packs_an_onnx_directory_is_not(tiny_gemma3: Path, traps: Path, tmp_path: Path) -> None:
    from gemma_edge.runtime.engine import Engine

    convert("custom-int8", tiny_gemma3, tmp_path / "onnx", format="onnx", context=256, measure=False)
    Engine(str(tmp_path / "onnx"), cache_dir=str(tmp_path / "cache")).close()
    assert list((tmp_path / "cache").glob("*.onnx"))
    assert not traps.exists()


def test_what_measures_is_not(tiny_bundle: TinyBundle, traps: Path, tmp_path: Path) -> None:
    bundle, cache = str(tiny_bundle("gemma3", "int8")), str(tmp_path / "cache")
    assert measure(Benchmark(bundle, Backend.CPU(thread_count=1), 8, 2, cache_dir=cache)).anon_bytes > 0
    with ModelProcess(bundle, 1, cache) as process:
        assert process.tokenize("x")
    assert not traps.exists()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("litert", "sys.executable, sys.frozen = '{app}', True"),  # PyInstaller
        ("onnx", "sys.executable, sys.frozen = '{app}', True"),
        ("litert", "sys.executable = '{app}'"),  # a program with Python inside
        ("litert", "sys.executable = ''"),
        ("litert", "sys.executable = '{app}/python'"),  # Nuitka's, which is not there
        ("litert", "from gemma_edge.runtime.packing import child; child.__compiled__ = 1"),  # Nuitka, too
    ],
)
def test_an_app_packs_by_itself(
    kind: str, changes: str, tiny_bundle: TinyBundle, tiny_gemma3: Path, tmp_path: Path
) -> None:
    """And is not started again, which would wait for itself."""
    model = tmp_path / "model"
    if kind == "litert":
        model = tiny_bundle("gemma3", "int8")
    else:
        convert("custom-int8", tiny_gemma3, model, format="onnx", context=256, measure=False)
    app = tmp_path / "app"
    app.write_text(f"#!/bin/sh\ntouch {tmp_path}/again\n")
    app.chmod(0o755)
    script = START.format(changes=changes.format(app=app))
    command = [sys.executable, "-c", script, str(model), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
    assert not (tmp_path / "again").exists()
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.suffix != ".json"] == [
        ".xnnpack" if kind == "litert" else ".onnx"
    ]


def test_an_app_that_calls_itself_python_is_told(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    """It is started again, and does not wait for the lock of its parent for ever."""
    app = tmp_path / "python-app"
    script = START.format(changes=f"sys.executable = {str(app)!r}")
    (tmp_path / "main.py").write_text(script)
    bundle, cache = tiny_bundle("gemma3", "int8"), tmp_path / "cache"
    app.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/main.py {bundle} {cache}\n")
    app.chmod(0o755)
    done = subprocess.run([app], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "was started to pack weights, and is not Python but an app; set sys.frozen in the app" in done.stderr


@pytest.mark.parametrize("name", ["python", "python3.11", "Python.exe", "pypy3", ".python3-wrapped"])
def test_what_is_python(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy("/bin/true", tmp_path / name)
    monkeypatch.setattr(sys, "executable", str(tmp_path / name))
    assert has_interpreter()
    assert python_command("a.b", "c")[1:] == ["-P", "-m", "a.b", "c"]


@pytest.mark.parametrize("name", ["uwsgi", "blender", "my-python-app", "httpd"])
def test_what_is_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy("/bin/true", tmp_path / name)
    monkeypatch.setattr(sys, "executable", str(tmp_path / name))
    assert os.access(sys.executable, os.X_OK)
    assert not has_interpreter()
    with pytest.raises(ChildError) as caught:
        python_command("a.b")
    assert str(caught.value) == (
        f"a measurement needs Python in a process of its own, and {tmp_path / name} is not Python; run it with an "
        "installed gemma-edge"
    )
