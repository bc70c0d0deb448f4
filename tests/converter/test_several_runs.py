"""Several conversions with one output, and conversions that are killed: one bundle with its own report, or none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.converter.plan.output import reader_of
from gemma_edge.runtime.formats.atomic import OutputError

SMALL: dict[str, Any] = {"context": 256, "prefill": (8, 32), "measure": False}
FORMATS = ("litertlm", "onnx")

WAITING = """
import sys, time
from gemma_edge.converter.convert import convert
def stage(name, total_bytes):
    if name == "convert":
        print("converting", flush=True)
        time.sleep(600)
    return lambda n: None
convert("custom-int8", sys.argv[1], sys.argv[2], format=sys.argv[3], context=256, prefill=(8, 32), stage=stage)
"""

DIES_BETWEEN_TWO_RENAMES = """
import os, sys
from pathlib import Path
from gemma_edge.converter.convert import convert
replace, count = Path.replace, 0
def counted(path, target):
    global count
    count += 1
    if count == 2:
        os.kill(os.getpid(), 9)
    return replace(path, target)
Path.replace = counted
convert("custom-int4", sys.argv[1], sys.argv[2], format=sys.argv[3], context=256, prefill=(8, 32), measure=False)
"""

SEVERAL = """
import os, sys
from gemma_edge.converter.cli import main
import gemma_edge.converter.convert
pids = []
for number in range(int(sys.argv[4])):
    if not (pid := os.fork()):
        os.dup2(os.open(f"{sys.argv[5]}/{number}", os.O_WRONLY | os.O_CREAT, 0o666), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        main(["convert", "--target", "custom-int8", "--checkpoint", sys.argv[1], "--out", sys.argv[2],
              "--format", sys.argv[3], "--context", "256", "--prefill", "8,32", "--no-measure"])
    pids.append(pid)
print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
"""


def run(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("container", FORMATS)
def test_the_second_run_is_told_who_writes_it(container: str, tiny_gemma3: Path, tmp_path: Path) -> None:
    """Under any of its names; and once the first is killed, nothing is in the way."""
    out = tmp_path / "model"
    (tmp_path / "other").symlink_to(out)
    command = [sys.executable, "-c", WAITING, str(tiny_gemma3), str(out), container]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "converting\n"
        try:
            for name in (out, tmp_path / "other", tmp_path / ".." / tmp_path.name / "model"):
                with pytest.raises(OutputError) as caught:
                    convert("custom-int8", tiny_gemma3, name, format=container, **SMALL)
                assert str(caught.value) == f"{name}: process {first.pid} is writing it; wait, or choose another output"
        finally:
            first.kill()
    convert("custom-int8", tiny_gemma3, out, format=container, **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.json", "other"]


@pytest.mark.parametrize(("container", "count"), [("litertlm", 6), ("onnx", 12)])
def test_several_runs_at_once(container: str, count: int, tiny_gemma3: Path, tmp_path: Path) -> None:
    """Some wait too long to be refused by the lock: a file they write again, a directory is there already."""
    out, errors = tmp_path / "model", tmp_path / "errors"
    errors.mkdir()
    done = run(SEVERAL, tiny_gemma3, out, container, count, errors)
    assert not done.stderr
    statuses = [int(status) for status in done.stdout.split()]
    texts = [(errors / str(number)).read_text() for number in range(count)]
    assert statuses.count(0) >= 1
    assert container == "litertlm" or statuses.count(0) == 1
    for status, text in zip(statuses, texts, strict=True):
        assert "Traceback" not in text
        refused = "is writing it; wait, or choose another output" in text or "is not an empty directory; " in text
        assert refused == (status == 1)
    report = json.loads((tmp_path / "model.json").read_text())
    found = reader_of(out).inspect(out)
    assert "report" not in found
    assert report["output"]["bytes"] == found["bytes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors", "model", "model.json"]


@pytest.mark.parametrize("container", FORMATS)
def test_killed_between_two_renames(container: str, tiny_gemma3: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    killed = run(DIES_BETWEEN_TWO_RENAMES, tiny_gemma3, out, container)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()  # its report alone is there
    convert("custom-int4", tiny_gemma3, out, format=container, **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.json"]
    assert "report" not in reader_of(out).inspect(out)


@pytest.mark.parametrize("precision", ["int4", "int8", "fp32"])
def test_killed_between_two_renames_over_an_older_bundle(precision: str, tiny_gemma3: Path, tmp_path: Path) -> None:
    """Of int4, two bundles of one size: the report is known by the digest alone."""
    out = tmp_path / "model"
    old = convert(f"custom-{precision}", tiny_gemma3, out, context=512, prefill=(8, 32), measure=False)
    content = out.read_bytes()
    killed = run(DIES_BETWEEN_TWO_RENAMES, tiny_gemma3, out, "litertlm")
    assert killed.returncode == -signal.SIGKILL
    assert out.read_bytes() == content
    found = reader_of(out).inspect(out)
    assert found["quality"] is None
    assert found["report"] == "model.json is another bundle's; convert again to have this one's"
    assert json.loads((tmp_path / "model.json").read_text())["output"] != old.values["output"]
    new = convert("custom-int4", tiny_gemma3, out, **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.json"]
    found = reader_of(out).inspect(out)
    assert found["quality"] == new.values["quality"]
    assert "report" not in found


@pytest.mark.parametrize("lock", ["link", "folder", "pipe"])
def test_a_lock_that_is_none(lock: str, tiny_gemma3: Path, tmp_path: Path) -> None:
    place, target = tmp_path / ".model.lock", tmp_path / "mine"
    target.write_bytes(b"mine")
    if lock == "link":
        place.symlink_to(target)
    elif lock == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    with pytest.raises(OutputError, match=r"model: cannot write \(.*, \.model\.lock\); choose a directory you may"):
        convert("custom-int8", tiny_gemma3, tmp_path / "model", **SMALL)
    assert target.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "mine"]
