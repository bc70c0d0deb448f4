"""The same list as rules of Snakemake, run by its local executor."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gemma_edge.converter.batch.joblist import read_list
from gemma_edge.converter.batch.memory import PROCESS_BYTES, planned_bytes
from gemma_edge.converter.batch.workflow import before, inputs_to_watch, megabytes, outputs_of
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert

LIST = """
[defaults]
target = "custom-int4"
context = 256
prefill = [8, 32]
measure = false

[[job]]
checkpoint = "{checkpoint}"
out = "a b.litertlm"

[[job]]
checkpoint = "{checkpoint}"
out = "folder"
format = "onnx"
"""


@pytest.fixture
def listed(tiny_gemma3: Path, tmp_path: Path) -> Path:
    path = tmp_path / "list.toml"
    path.write_text(LIST.format(checkpoint=tiny_gemma3))
    return path


def test_what_the_workflow_asks_of_a_job(listed: Path, tiny_gemma3: Path) -> None:
    file, folder = read_list(listed)
    assert f"{tiny_gemma3}/model.safetensors" in inputs_to_watch(file)
    assert [Path(path).name for path in outputs_of(file)] == [
        "a b.litertlm", "a b.litertlm.json", "a b.litertlm.job.json",
    ]  # fmt: skip
    assert [Path(path).name for path in outputs_of(folder)] == ["folder.json", "folder.job.json"]
    assert before(file) == ""
    assert before(folder) == f"rm -rf {listed.parent}/folder &&"
    assert 0 <= megabytes(file) * 10**6 - planned_bytes(file, tiny_gemma3) - PROCESS_BYTES < 10**6


def test_what_is_on_the_hub_or_broken_is_the_jobs_own_affair(tmp_path: Path) -> None:
    """The workflow is read all the same."""
    (tmp_path / "empty").mkdir()
    path = tmp_path / "list.toml"
    row = '[[job]]\ntarget = "1b-int4"\ncheckpoint = "{}"\nout = "{}"\n'
    path.write_text(row.format("google/gemma-3-1b-it", "a") + row.format("empty", "b"))
    hub, empty = read_list(path)
    assert inputs_to_watch(hub) == inputs_to_watch(empty) == []
    assert megabytes(hub) == megabytes(empty) == 4430  # 4 GiB and what watches over it


def test_snakemake_and_batch_finish_what_the_other_began(listed: Path, tiny_gemma3: Path, tmp_path: Path) -> None:
    pytest.importorskip("snakemake")
    batch = ["batch", str(listed), "--jobs", "1", "--memory", "1GiB"]
    assert CliRunner().invoke(main, [*batch, "--only", "a b.litertlm"]).exit_code == 0
    printed = CliRunner().invoke(main, [*batch, "--print-snakefile"])
    (tmp_path / "Snakefile").write_text(printed.stdout)
    command = [sys.executable, "-m", "snakemake", "--config", f"list={listed}", "--cores", "1"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("localrule convert_") == 1  # the folder's: the file is there, with its record
    reference = tmp_path / "reference"
    convert("custom-int4", tiny_gemma3, reference, format="onnx", context=256, prefill=(8, 32), measure=False)
    names = {path.relative_to(reference) for path in reference.rglob("*") if path.is_file()}
    assert names == {
        path.relative_to(tmp_path / "folder") for path in (tmp_path / "folder").rglob("*") if path.is_file()
    }
    assert all((reference / name).read_bytes() == (tmp_path / "folder" / name).read_bytes() for name in names)
    assert "2 unchanged" in CliRunner().invoke(main, batch, env={"COLUMNS": "200"}).stdout
