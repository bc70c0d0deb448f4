"""Where a drafter comes from, a directory or the hub, and what reports and statements say of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.converter.batch.joblist import read_list
from gemma_edge.converter.batch.work import inputs_of
from gemma_edge.converter.convert import convert
from gemma_edge.converter.provenance.beside import BILL, PROVENANCE, beside, describe
from tests.converter.checkpoint.hub_server import COMMIT, Hub, serve
from tests.drafters import NAME, OPTIONS
from tools.tiny import write_tiny
from tools.tiny_drafter import write_drafter

REPOSITORY = "google/gemma-4-E2B-it-assistant"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model and its assistant."""
    folder = tmp_path_factory.mktemp("drafter")
    write_tiny(NAME, folder / "model")
    write_drafter(NAME, folder / "assistant")
    return folder


def planned(folder: Path, drafter: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    """`gemma-edge plan`, as a fresh process sees this hub and no other."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    command = [sys.executable, "-m", "gemma_edge.converter", "plan", "--target", "custom-int4", "--drafter", drafter]
    return subprocess.run(
        [*command, "--checkpoint", str(folder / "model"), "--prefill", "8,32", "--context", "128"],
        env=kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_it_comes_from_the_hub_as_a_checkpoint_does(folder: Path, tmp_path: Path) -> None:
    files = {file.name: file.read_bytes() for file in (folder / "assistant").iterdir()}
    with serve(Hub(REPOSITORY, files | {"README.md": b"#"})) as hub:
        shown = planned(folder, f"{REPOSITORY}@main", hub.endpoint, tmp_path)
        endpoint = hub.endpoint
    assert shown.returncode == 0, shown.stderr
    assert "tf_lite_mtp_drafter" in shown.stdout
    assert hub.fetched() == {"config.json", "model.safetensors"}
    refused = planned(folder, REPOSITORY, endpoint, tmp_path / "empty")
    assert refused.returncode == 1
    assert refused.stderr.endswith("; connect and try again, or pass --drafter with a directory\n")


def test_statements_tell_its_revision_from_the_models(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--google--assistant" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder / "assistant")
    bundle = tmp_path / "pair.litertlm"
    convert("custom-int4", folder / "model", bundle, drafter=snapshot, **OPTIONS)
    describe(bundle, "org/anna")
    built: Any = json.loads(beside(bundle, PROVENANCE).read_bytes())["predicate"]["buildDefinition"]
    commits = {each["name"]: each["digest"].get("gitCommit") for each in built["resolvedDependencies"]}
    assert commits["drafter/model.safetensors"] == COMMIT
    assert commits["model.safetensors"] is None
    assert built["internalParameters"]["drafter"]["revision"] == COMMIT
    _, model, drafter = json.loads(beside(bundle, BILL).read_bytes())["metadata"]["component"]["pedigree"]["ancestors"]
    assert (model["name"], drafter["name"], drafter["version"]) == ("model", "drafter", COMMIT)
    assert "model.safetensors" in {file["name"] for file in drafter["components"]}


def test_a_list_of_jobs_watches_its_files(folder: Path) -> None:
    job = '[[job]]\ntarget = "custom-int4"\ncheckpoint = "model"\ndrafter = "assistant"\nout = "a.litertlm"\n'
    (folder / "list.toml").write_text(job)
    [read] = read_list(folder / "list.toml")
    assert read.request["drafter"] == str(folder / "assistant")
    assert {"model.safetensors", "drafter/model.safetensors"} <= inputs_of(read, folder / "model").keys()
