"""Processes without what is mostly there: a home, /proc, an open input, room for the output. One line each."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.memory.reading import ProcMissingError, read_memory

PROGRAM = "from gemma_edge.converter.cli import main; main()"
NO_HOME = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"
WITHOUT_HOME: tuple[str, ...] = ("HOME", "XDG_CACHE_HOME")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Callable[[str, str], Path]) -> Path:
    return tiny_bundle("gemma3", "int8")


@pytest.fixture(scope="module")
def cache(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed weights."""
    folder = tmp_path_factory.mktemp("cache")
    Engine(str(bundle), cache_dir=str(folder)).close()
    return folder


def gemma_edge(
    *arguments: object, before: str = "", redirect: str = "", without: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = shlex.join([sys.executable, "-c", before + PROGRAM, *map(str, arguments)])
    environment = {name: value for name, value in os.environ.items() if name not in without}
    return subprocess.run(
        ["sh", "-c", f"{command} {redirect}"], capture_output=True, text=True, check=False, timeout=300, env=environment
    )


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line."""
    assert done.returncode, done.stdout
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "Error: "))]
    assert len(lines) == 1, done.stderr
    return lines[0].partition(" ")[2]


@pytest.mark.parametrize("command", ["run", "litert-lm", "bench"])
def test_no_home(command: str, bundle: Path) -> None:
    arguments: list[object] = {
        "run": ["run", bundle, "--prompt", "x"],
        "litert-lm": ["run", bundle, "--prompt", "x", "--executor", "litert-lm"],
        "bench": ["bench", bundle, "--runs", 1, "--profile", "phone-2gb"],
    }[command]
    assert error_of(gemma_edge(*arguments, without=WITHOUT_HOME, before=NO_HOME)) == (
        f"user {os.geteuid()} has no home folder for packed weights: HOME is not set, and no account says; pass "
        'cache_dir (--cache-dir), ":nocache" to pack at every start, or set XDG_CACHE_HOME'
    )


@pytest.mark.parametrize("option", ["--cache-dir", "XDG_CACHE_HOME", ":nocache"])
def test_no_home_is_no_matter_where_another_place_is_named(option: str, bundle: Path, cache: Path) -> None:
    named, before, without = ["--cache-dir", option], NO_HOME, WITHOUT_HOME
    if option == "XDG_CACHE_HOME":
        before = f"import os; os.environ['XDG_CACHE_HOME'] = {str(cache)!r}\n{NO_HOME}"
        named, without = [], WITHOUT_HOME[:1]
    elif option == "--cache-dir":
        named = ["--cache-dir", str(cache)]
    done = gemma_edge("run", bundle, "--prompt", "x", "--max-output-tokens", 2, *named, before=before, without=without)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("executor", ["litert", "litert-lm"])
def test_a_home_that_cannot_be_written(executor: str, bundle: Path) -> None:
    before = "import os; os.environ['HOME'] = '/proc/1'; os.environ.pop('XDG_CACHE_HOME', None)\n"
    done = gemma_edge("run", bundle, "--prompt", "x", "--executor", executor, before=before)
    folder = "/proc/1/.cache/gemma-edge" + ("/litert_lm" if executor == "litert-lm" else "")
    assert error_of(done) == (
        f"cannot write the weight cache in {folder} (No such file or directory); choose another cache_dir"
    )


def test_closed_input(bundle: Path, cache: Path, tmp_path: Path) -> None:
    """A prompt needs none, not even to pack weights; chatting does."""
    chat = gemma_edge("run", bundle, "--cache-dir", cache, redirect="<&-")
    assert error_of(chat) == "standard input is closed, so there is nothing to chat with; give --prompt"
    for folder in (cache, tmp_path / "cold"):
        done = gemma_edge(
            "run", bundle, "--cache-dir", folder, "--prompt", "x", "--max-output-tokens", 2, redirect="<&-"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
    done = gemma_edge("bench", bundle, "--cache-dir", cache, "--runs", 1, "--prefill", 8, "--decode", 2, redirect="<&-")
    assert done.returncode == 0, done.stderr


FULL = "standard output cannot be written (No space left on device); free some space"


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("command", ["run", "inspect", "plan", "targets"])
def test_a_full_disk_behind_the_output(
    command: str, unbuffered: bool, bundle: Path, cache: Path, tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1" if unbuffered else "")
    commands: dict[str, list[object]] = {
        "run": ["run", bundle, "--prompt", "x", "--max-output-tokens", 2, "--cache-dir", cache],
        "inspect": ["inspect", bundle, "--json"],
        "plan": ["plan", "--target", "custom-int8", "--checkpoint", tiny_gemma3],
        "targets": ["targets"],
    }
    done = gemma_edge(*commands[command], redirect=">/dev/full")
    assert (error_of(done), done.returncode) == (FULL, 1)


def test_a_bundle_is_written_whoever_reads_of_it(tiny_gemma3: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    options = ("--target", "custom-int8", "--checkpoint", tiny_gemma3, "--context", 256, "--no-measure", "--out", out)
    assert error_of(gemma_edge("convert", *options, redirect=">/dev/full")) == FULL
    content = out.read_bytes()
    assert gemma_edge("convert", *options, redirect=">&- 2>&-").returncode == 0
    assert out.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.json"]


@pytest.mark.parametrize("command", ["run", "bench", "verify"])
def test_no_proc(command: str, bundle: Path, cache: Path, tiny_gemma3: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("takes root and unshare, to take /proc away")
    arguments: list[object] = {
        "run": ["run", bundle, "--prompt", "x", "--cache-dir", cache],
        "bench": ["bench", bundle, "--runs", 1, "--cache-dir", cache],
        "verify": ["verify", bundle, "--checkpoint", tiny_gemma3, "--window", 64],
    }[command]
    program = shlex.join([sys.executable, "-c", PROGRAM, *map(str, arguments)])
    script = f"mount -t tmpfs none /proc && {program}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip("this container may not mount")
    assert "LiteRT did not load it, and /proc/cpuinfo cannot be read: make it readable" in error_of(done) or (
        "/proc is not mounted, where memory is read and LiteRT looks for the kernels of this CPU; mount it (mount -t "
        "proc proc /proc)" in error_of(done)
    )


def test_memory_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_edge.runtime.memory.reading._PROC", tmp_path)
    with pytest.raises(ProcMissingError, match=r"^/.* is not mounted, where memory is read and LiteRT looks for"):
        read_memory()
    with pytest.raises(ProcessLookupError, match=r"^no process 1$"):
        read_memory(1)


def test_a_home_that_no_shell_has_put_in(
    bundle: Path, tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(bundle, tmp_path / "bundle.litertlm")
    with Engine("~/bundle.litertlm", cache_dir="~/cache") as engine:
        with engine.create_conversation() as conversation:
            conversation.send_message("x", max_output_tokens=2)
            conversation.save_cache("~/saved")
        assert engine.load_cache("~/saved")
    convert("custom-int8", tiny_gemma3, "~/made", context=256, measure=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bundle.litertlm", "cache", "made", "made.json", "saved",
    ]  # fmt: skip
    done = gemma_edge("inspect", "~/made", "--json")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("lines", "replies", "status"),
    [
        (["x", "{long}", "x"], 2, 1),
        (["{long}", "{long}", "x"], 1, 1),
        (["{long}"], 0, 1),
        (["x", "x"], 2, 0),
    ],
)
def test_a_chat_goes_on_after_a_message_that_is_too_long(
    lines: list[str], replies: int, status: int, bundle: Path, cache: Path
) -> None:
    typed = "".join(line.format(long="a b c d e " * 300) + "\n" for line in lines)
    command = [sys.executable, "-c", PROGRAM, "run", str(bundle), "--cache-dir", str(cache), "--greedy"]
    done = subprocess.run(
        [*command, "--max-output-tokens", "4"], input=typed, capture_output=True, text=True, check=False
    )
    assert (len(done.stdout.splitlines()), done.returncode) == (replies, status)
    assert done.stderr.count("error: context overflow: ") == sum("{" in line for line in lines)
