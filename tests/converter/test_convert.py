"""`convert`: the same bytes every time, sizes known beforehand, a true report, and no half-written file.

The numbers inside a bundle are test_parity's and test_quality's business.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from string import digits
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma_edge.converter.calibrate.planning import lay_out, plan_for
from gemma_edge.converter.checkpoint.checkpoint import CheckpointError
from gemma_edge.converter.convert import convert
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize import stream
from gemma_edge.converter.quantize.recipes import ENCODER_ROLES, Recipe
from gemma_edge.converter.report import Report
from gemma_edge.converter.tensors import Role
from gemma_edge.runtime.formats.atomic import OutputError
from tools.tiny import write_tiny

SMALL: dict[str, Any] = {"context": 256, "prefill": (8, 32)}
VOLATILE = {"seconds", "peak_rss_bytes"}  # the only parts of a report that two runs may differ in

BLOCKWISE = """
[roles]
embedding = "int4"
ple = "int8"
head = "int4-b32"
attention = "int4-b128"
ffn = { encoding = "int4-b64", search = "absmax" }
altup = "fp16"
small = "int2"
router = "fp32"
norm = "fp32"
[floor]
values = 1024
columns_multiple_of = 32
"""


@pytest.fixture
def blockwise(tmp_path: Path) -> Path:
    path = tmp_path / "blockwise.toml"
    path.write_text(BLOCKWISE)
    return path


@pytest.fixture
def checkpoint(tiny_gemma3n: Path, tmp_path: Path) -> Path:
    """A copy of tiny-gemma3n to change."""
    return Path(shutil.copytree(tiny_gemma3n, tmp_path / "checkpoint"))


def change_tensors(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Store other tensors in a checkpoint of one file."""
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lasting(report: Report) -> dict[str, Any]:
    return {key: value for key, value in report.values.items() if key not in VOLATILE}


# ---------------------------------------------------------------- the same bytes


def test_twice_the_same_bytes_on_any_number_of_threads(
    tiny_gemma3n: Path, blockwise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_TASK_BYTES", 1 << 14)  # several tasks to a matrix, as in a large model
    reports: list[Report] = []
    for threads in (1, 4, 4):
        monkeypatch.setattr(stream, "THREADS", threads)
        out = tmp_path / f"run{len(reports)}" / "model"
        out.parent.mkdir()
        reports.append(convert("custom-int4", tiny_gemma3n, out, recipe=blockwise, **SMALL))
        assert sha256(out) == reports[0].values["output"]["sha256"]
    assert lasting(reports[0]) == lasting(reports[1]) == lasting(reports[2])


def test_the_size_of_a_step_does_not_show(
    tiny_gemma3n: Path, blockwise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert("custom-int4", tiny_gemma3n, tmp_path / "a", recipe=blockwise, **SMALL)
    monkeypatch.setattr(stream, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(stream, "_TASK_BYTES", 5000)
    convert("custom-int4", tiny_gemma3n, tmp_path / "b", recipe=blockwise, **SMALL)
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


def test_other_inputs_give_other_bytes(checkpoint: Path, tmp_path: Path) -> None:
    first = convert("custom-int8", checkpoint, tmp_path / "a", **SMALL)
    text = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(text | {"_name_or_path": "changes no number"}))
    second = convert("custom-int8", checkpoint, tmp_path / "b", **SMALL)
    # The uuid follows from the inputs' hashes, and nothing else changed.
    assert first.values["output"]["bytes"] == second.values["output"]["bytes"]
    a, b = ((tmp_path / name).read_bytes() for name in "ab")
    assert 0 < sum(x != y for x, y in zip(a, b, strict=True)) <= 36


# ---------------------------------------------------------------- the plan


CASES: dict[str, dict[str, Any]] = {
    "int4": {"target": "custom-int4"},
    "int8": {"target": "custom-int8"},
    "fp16": {"target": "custom-fp16"},
    "fp32": {"target": "custom-fp32"},
    "blockwise": {"target": "custom-int4", "recipe": "blockwise"},
    "fp16 cache": {"target": "custom-int4", "kv": "fp16"},
    "one prefill": {"target": "custom-int4", "prefill": (64,), "context": 64},
}


@pytest.mark.parametrize(("family", "case"), [("gemma3", "int4"), *(("gemma3n", case) for case in CASES)])
def test_the_planned_size_is_the_size(
    family: str, case: str, request: pytest.FixtureRequest, blockwise: Path, tmp_path: Path
) -> None:
    checkpoint = request.getfixturevalue(f"tiny_{family}")
    options = SMALL | CASES[case]
    if "recipe" in options:
        options["recipe"] = blockwise
    source, plan = plan_for(Target.parse(**options), checkpoint)
    planned = lay_out(plan, source)
    report = convert(checkpoint=checkpoint, out=tmp_path / "model", **options)
    assert (tmp_path / "model").stat().st_size == planned.nbytes == report.values["output"]["bytes"]
    assert sum(section["bytes"] for section in report.values["sections"]) <= planned.nbytes
    weights = sum(section.nbytes for section in planned.sections if section.name.startswith("tf_lite"))
    assert 0 < weights - sum(tensor.nbytes for tensor in plan.tensors) < 2**20  # the flatbuffers themselves
    assert sum(report.values["bytes_by_role"].values()) == sum(report.values["bytes_by_section"].values())
    assert sum(report.values["bytes_by_role"].values()) == sum(report.values["bytes_by_encoding"].values())


# ---------------------------------------------------------------- the report


def test_the_report(tiny_gemma3n: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.litertlm"
    report = convert("custom-int4", tiny_gemma3n, out, profile="phone-2gb", **SMALL)
    values = json.loads((tmp_path / "model.litertlm.json").read_text())
    assert values == report.values
    assert (values["target"], values["family"], values["profile"]) == ("custom-int4", "gemma3n", "phone-2gb")
    assert (values["context_tokens"], values["prefill_tokens"]) == (256, [8, 32])
    assert values["output"] == {"file": "model.litertlm", "bytes": out.stat().st_size, "sha256": sha256(out)}
    assert values["source"]["sha256"] == {path.name: sha256(path) for path in tiny_gemma3n.iterdir()}
    assert values["source"]["checkpoint"] == "tiny-gemma3n"
    assert values["recipe"]["name"] == "int4"
    assert {role: entry["encoding"] for role, entry in values["recipe"]["roles"].items()} == {
        role.value: storage.encoding.name
        for role, storage in Recipe.named("int4").roles.items()
        if role not in ENCODER_ROLES
    }
    assert set(values["bytes_by_role"]) == {role.value for role in Role if role not in ENCODER_ROLES}
    assert values["footprint"]["anon_bytes"] == sum(part["anon_bytes"] for part in values["footprint"]["parts"])
    assert values["not_converted"] == {}
    assert values["seconds"] > 0
    assert values["peak_rss_bytes"] > 2**20


def test_the_report_counts_the_caches(tiny_gemma3n: Path, tmp_path: Path) -> None:
    """5 layers own KV, K = 2, E = 32: 4 rings of window 64 + prefill 32, 1 full context."""
    report = convert("custom-fp32", tiny_gemma3n, tmp_path / "model", kv="fp16", **SMALL)
    kv = report.values["kv"]
    assert kv["type"] == "fp16"
    assert [(layer["layer"], layer["slots"]) for layer in kv["layers"]] == [
        (0, 96), (1, 96), (2, 96), (3, 256), (4, 96),
    ]  # fmt: skip
    assert kv["bytes"] == (4 * 96 + 256) * 2 * 32 * 2 * 2


def test_the_worst_errors_are_the_quantized_tensors_sorted(tiny_gemma3n: Path, tmp_path: Path) -> None:
    worst = convert("custom-int4", tiny_gemma3n, tmp_path / "a", **SMALL).values["worst_errors"]
    assert len(worst) == 10
    errors = [row["relative_rms"] for row in worst]
    assert errors == sorted(errors, reverse=True)
    assert {row["encoding"] for row in worst} == {"int4-b64"}
    # A quarter of a step for weights that spread over 2.5 of 7 steps: int4 loses about a tenth, int8 a hundredth.
    assert 0.08 < errors[-1] <= errors[0] < 0.2
    assert all(row["snr_db"] == pytest.approx(-20 * np.log10(row["relative_rms"])) for row in worst)
    int8 = convert("custom-int8", tiny_gemma3n, tmp_path / "b", **SMALL).values["worst_errors"]
    assert 0.003 < int8[0]["relative_rms"] < 0.02
    assert convert("custom-fp32", tiny_gemma3n, tmp_path / "c", **SMALL).values["worst_errors"] == []


# ---------------------------------------------------------------- checkpoints as they come


def test_towers_are_listed_as_not_converted(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    write_tiny("gemma3n-multimodal-bf16-shards", checkpoint)
    plain = convert("custom-int4", checkpoint, tmp_path / "plain", **SMALL)
    assert plain.values["not_converted"] == {}
    names = ["model.vision_tower.conv.weight", "model.vision_tower.norm.bias", "model.embed_audio.norm.weight"]
    save_file({name: torch.ones(3, 5) for name in names}, checkpoint / "towers.safetensors")
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(names, "towers.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    report = convert("custom-int4", checkpoint, tmp_path / "model", **SMALL)
    assert report.values["not_converted"] == {"vision_tower.": 2, "embed_audio.": 1}
    assert report.values["sections"] == plain.values["sections"]


def test_keys_and_values_that_no_layer_reads_are_accepted(checkpoint: Path, tmp_path: Path) -> None:
    """Official 3n checkpoints store them for layers that share another's."""
    names = [
        f"model.layers.{layer}.self_attn.{part}.weight"
        for layer in (5, 6, 7)
        for part in ("k_proj", "v_proj", "k_norm")
    ]
    change_tensors(checkpoint, lambda tensors: tensors.update({name: torch.ones(64, 128) for name in names}))
    report = convert("custom-int4", checkpoint, tmp_path / "model", **SMALL)
    assert sum(report.values["not_converted"].values()) == len(names)

    extra = "model.layers.5.self_attn.z_proj.weight"
    change_tensors(checkpoint, lambda tensors: tensors.update({extra: torch.ones(64, 128)}))
    with pytest.raises(CheckpointError, match=f"{extra} is not part of this model"):
        convert("custom-int4", checkpoint, tmp_path / "other", **SMALL)
    assert not (tmp_path / "other").exists()


# ---------------------------------------------------------------- failures leave nothing behind


def folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("name", ["model.layers.6.mlp.up_proj.weight", "model.norm.weight"])
def test_a_nan_is_found_by_name(checkpoint: Path, name: str, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[-1] = float("nan")

    change_tensors(checkpoint, spoil)
    out = folder(tmp_path / "out") / "model.litertlm"
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        convert("custom-int4", checkpoint, out, **SMALL)
    assert list(out.parent.iterdir()) == []


def test_a_failure_keeps_the_bundle_that_was_there(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.litertlm"
    before = convert("custom-int8", checkpoint, out, **SMALL)
    change_tensors(checkpoint, lambda tensors: tensors["model.norm.weight"].fill_(float("inf")))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        convert("custom-int8", checkpoint, out, **SMALL)
    assert sha256(out) == before.values["output"]["sha256"]
    assert json.loads((tmp_path / "model.litertlm.json").read_text()) == before.values


def test_a_directory_that_does_not_exist(tiny_gemma3n: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere does not exist; create it or choose another output"):
        convert("custom-int4", tiny_gemma3n, tmp_path / "nowhere" / "model.litertlm", **SMALL)


def test_a_report_that_cannot_be_written(tiny_gemma3n: Path, tmp_path: Path) -> None:
    report = folder(tmp_path / "model.litertlm.json")
    with pytest.raises(OutputError, match=r"model\.litertlm\.json: exists and is not a file; choose another output"):
        convert("custom-int4", tiny_gemma3n, tmp_path / "model.litertlm", **SMALL)
    assert list(tmp_path.iterdir()) == [report]


RUN = """
import os, resource, signal, sys
from pathlib import Path
from gemma_edge.converter.convert import convert
from gemma_edge.profiles.errors import GemmaEdgeError

out = Path(sys.argv[2])

def stage(name, total_bytes):
    return on_bytes if name == "convert" else lambda n: None

def on_bytes(n):
    pass

{body}
try:
    convert("custom-int4", sys.argv[1], out, context=256, prefill=(8, 32), stage=stage)
except GemmaEdgeError as error:
    sys.exit(str(error))
finally:
    print(sorted(path.name for path in out.parent.iterdir()))
"""


def run(body: str, checkpoint: Path, out: Path, mount: str | None = None) -> "subprocess.CompletedProcess[str]":
    """A conversion in a process of its own, which ends by printing what is in the directory of `out`.

    body: Python that may define on_bytes, called after every piece of weights. mount: options of a tmpfs that this
    process sees in place of that directory.
    """
    command = [sys.executable, "-c", RUN.replace("{body}", body), str(checkpoint), str(out)]
    if mount is not None:
        rootless = [] if os.geteuid() == 0 else ["--map-root-user"]
        namespace = ["unshare", "--mount", *rootless]
        if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], check=False).returncode:
            pytest.skip("mount namespaces are not to be had here")
        script = f"mount -t tmpfs -o {mount} none {shlex.quote(str(out.parent))} && exec {shlex.join(command)}"
        command = [*namespace, "sh", "-c", script]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_a_run_killed_half_way_leaves_no_bundle_and_the_next_one_tidies_up(tiny_gemma3n: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.litertlm"
    killed = run("def on_bytes(n): os.kill(os.getpid(), signal.SIGKILL)", tiny_gemma3n, out)
    assert killed.returncode == -signal.SIGKILL
    partials = sorted(
        path.name.removesuffix(".partial").rstrip(digits) for path in tmp_path.iterdir()
    )  # it was in the middle of writing
    assert partials == [".model.litertlm.", ".model.litertlm.json.", ".model.litertlm.lock"]
    report = convert("custom-int4", tiny_gemma3n, out, **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.litertlm", "model.litertlm.json"]
    assert sha256(out) == report.values["output"]["sha256"]


def test_an_interrupted_run_leaves_nothing(tiny_gemma3n: Path, tmp_path: Path) -> None:
    interrupted = run("def on_bytes(n): os.kill(os.getpid(), signal.SIGINT)", tiny_gemma3n, tmp_path / "model")
    assert interrupted.returncode == -signal.SIGINT
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_holds_no_such_file(tiny_gemma3n: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.litertlm"
    refused = run("resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))", tiny_gemma3n, out)
    assert refused.stderr == f"{out}: too large for this file system (FAT32 ends at 4 GiB); choose another disk\n"
    assert refused.stdout == "[]\n"


def test_a_disk_without_room(tiny_gemma3n: Path, tmp_path: Path) -> None:
    refused = run("", tiny_gemma3n, tmp_path / "model.litertlm", mount="size=1m")
    assert re.fullmatch(
        rf"{tmp_path}/model\.litertlm: disk full, \d MiB needed, 1 MiB free; free some space or choose another disk\n",
        refused.stderr,
    )
    assert refused.stdout == "[]\n"


FILL_THE_DISK = """
def on_bytes(n):
    with (out.parent / "other").open("ab", buffering=0) as file:
        try:
            while True: file.write(bytes(4096))
        except OSError: pass
"""


def test_a_disk_that_fills_up_half_way(tiny_gemma3n: Path, tmp_path: Path) -> None:
    failed = run(FILL_THE_DISK, tiny_gemma3n, tmp_path / "model.litertlm", mount="size=8m")
    assert re.fullmatch(
        rf"{tmp_path}/model\.litertlm: disk full, .*0 MiB free; free some space or choose another disk\n", failed.stderr
    )
    assert failed.stdout == "['other']\n"


def test_a_directory_that_cannot_be_written(tiny_gemma3n: Path, tmp_path: Path) -> None:
    refused = run("", tiny_gemma3n, tmp_path / "model.litertlm", mount="ro")
    assert refused.stderr == (
        f"{tmp_path}/model.litertlm: cannot write (Read-only file system, .model.litertlm.lock); choose a directory "
        "you may write to\n"
    )
