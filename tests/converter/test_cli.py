"""The command line as its user meets it: what is printed where, as text and as JSON, and errors as one line."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from safetensors.torch import load_file, save_file

from gemma_edge.converter import cli
from gemma_edge.converter import report as conversion_report
from gemma_edge.converter.cli import extra_with, main
from gemma_edge.converter.models.encoders import Modality
from gemma_edge.converter.plan.format import KVType
from gemma_edge.converter.progress import bars
from gemma_edge.converter.quantize.recipes import Recipe
from gemma_edge.profiles.device import load_profile
from gemma_edge.profiles.sizes import format_bytes

SMALL = ("--target", "custom-int4", "--context", "256", "--prefill", "8,32")

PROFILE = """
description = "What the smallest profile allows"
architecture = "aarch64"
isa = ["neon"]
cores = 4
ram_bytes = "256 MiB"
budget_bytes = "64 MiB"
memory_bytes_per_s = "1 GB"
storage_bytes_per_s = "100 MB"
"""


def gemma_edge(*arguments: object) -> Result:
    """In this process, on a screen wide enough for every table."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env={"COLUMNS": "250"})


def output_of(*arguments: object) -> str:
    result = gemma_edge(*arguments)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def json_of(*arguments: object) -> Any:
    return json.loads(output_of(*arguments, "--json"))


def error_of(*arguments: object) -> str:
    """The one line on stderr."""
    result = gemma_edge(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def converted(tiny_gemma3n: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle and what converting it printed."""
    out = tmp_path_factory.mktemp("cli") / "model.litertlm"
    return out, output_of("convert", *SMALL, "--checkpoint", tiny_gemma3n, "--out", out)


# ---------------------------------------------------------------- commands


def test_convert_prints_what_its_report_says(converted: tuple[Path, str]) -> None:
    out, text = converted
    values = json.loads(out.with_name("model.litertlm.json").read_text())
    assert values["output"]["bytes"] == out.stat().st_size
    assert f"model.litertlm  {format_bytes(out.stat().st_size)}" in text
    assert values["output"]["sha256"] in text
    assert "custom-int4, context 256" in text
    for role, nbytes in values["bytes_by_role"].items():
        assert cells(text, role)[3] == format_bytes(nbytes)
    for row in values["worst_errors"][:5]:
        assert cells(text, row["tensor"])[1:] == [row["encoding"], f"{row['relative_rms']:.4f}", f"{row['snr_db']:.1f}"]
    assert cells(text, "needed")[3] == format_bytes(
        values["footprint"]["anon_bytes"] + values["footprint"]["file_bytes"]
    )


def test_convert_as_json(tiny_gemma3n: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.litertlm"
    values = json_of("convert", *SMALL, "--checkpoint", tiny_gemma3n, "--out", out, "--kv", "fp16")
    assert values == json.loads((tmp_path / "model.litertlm.json").read_text())
    assert values["kv"]["type"] == "fp16"


def test_plan_knows_the_bundle_to_the_byte(converted: tuple[Path, str], tiny_gemma3n: Path) -> None:
    values = json_of("plan", *SMALL, "--checkpoint", tiny_gemma3n)
    report = json.loads(converted[0].with_name("model.litertlm.json").read_text())
    assert values["bundle_bytes"] == converted[0].stat().st_size
    assert {key: report[key] for key in values if key in report} == {
        key: value for key, value in values.items() if key in report
    }
    assert {"target", "kv", "recipe", "bytes_by_role", "bytes_by_section", "sections", "footprint"} <= values.keys()


def test_plan_prints_the_same(tiny_gemma3n: Path) -> None:
    arguments = ("plan", *SMALL, "--checkpoint", tiny_gemma3n, "--profile", "phone-2gb")
    values, text = json_of(*arguments), output_of(*arguments)
    for section in values["sections"]:
        assert cells(text, section["name"]) == [section["name"], f"{section['bytes']:,}"]
    assert cells(text, "file, with header and padding")[1] == f"{values['bundle_bytes']:,}"
    for part in values["footprint"]["parts"]:
        sizes = [part["anon_bytes"], part["file_bytes"], part["anon_bytes"] + part["file_bytes"]]
        assert cells(text.partition("file-backed")[2], part["name"])[1:4] == [format_bytes(size) for size in sizes]
    assert cells(text, "budget")[3] == "2.00 GiB"


def test_inspect(converted: tuple[Path, str]) -> None:
    values, text = json_of("inspect", converted[0]), output_of("inspect", converted[0])
    assert values["bytes"] == converted[0].stat().st_size
    for section in values["sections"]:
        assert section["name"] in text
        assert section["sha256"] in text


def test_targets() -> None:
    values, text = json_of("targets"), output_of("targets")
    assert len(values) == 24
    by_name = {row["target"]: row for row in values}
    assert by_name["e2b-int4"]["repository"] == "google/gemma-3n-E2B-it"
    assert by_name["custom-fp32"]["repository"] is None
    for name, row in by_name.items():
        recipe = Recipe.named(name.rpartition("-")[2])
        assert row["encodings"] == {role.value: storage.encoding.name for role, storage in recipe.roles.items()}
        assert cells(text, name)[1] == (row["repository"] or "(--checkpoint DIR)")


def cells(text: str, first: str) -> list[str]:
    """The row of a printed table whose first cell is `first`."""
    rows = ([cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines())
    return next(row for row in rows if row[:1] == [first])


def test_both_console_scripts_convert() -> None:
    """`convert` and `gemma-edge convert`, as pip installed them."""
    shown = []
    for command in (("convert", "--help"), ("gemma-edge", "convert", "--help")):
        script = Path(sys.executable).with_name(command[0])
        shown.append(subprocess.run([script, *command[1:]], check=True, capture_output=True, text=True).stdout)
    assert shown[0] == shown[1]
    assert shown[0].startswith("Usage: gemma-edge convert [OPTIONS]")


def test_help_and_defaults(tiny_gemma3: Path) -> None:
    text = " ".join(output_of("convert", "--help").split())
    names = ("target", "checkpoint", "profile", "context", "prefill", "format", "kv", "recipe", "encoding", "fit")
    for name in (*names, "json", "out"):
        assert f"--{name} " in text
    assert "[default: 16,128, as far as the context allows]" in text
    assert "[default: 4096, or the model's maximum]" in text
    values = json_of("plan", "--target", "custom-int8", "--checkpoint", tiny_gemma3)
    assert (values["prefill_tokens"], values["context_tokens"], values["kv"]["type"]) == ([16, 128], 2048, "fp32")


# ---------------------------------------------------------------- errors


def test_an_unknown_target(tiny_gemma3n: Path, tmp_path: Path) -> None:
    arguments = ("--target", "e3b-int4", "--checkpoint", tiny_gemma3n)
    assert error_of("convert", *arguments, "--out", tmp_path / "model").startswith(
        "target 'e3b-int4': expected {gemma4-e4b,"
    )
    assert error_of("plan", *arguments).endswith("`gemma-edge targets` lists them")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_shape(tiny_gemma3: Path) -> None:
    assert "the checkpoint has family gemma3, expected gemma3n; layers" in error_of(
        "plan", "--target", "e2b-int4", "--checkpoint", tiny_gemma3
    )


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert error_of("plan", *SMALL, "--checkpoint", missing) == (
        f"{missing}: no such directory or file: {tmp_path} has no nowhere, it is empty; correct the path"
    )
    assert error_of("plan", *SMALL, "--checkpoint", tmp_path) == (
        f"{tmp_path}: no config.json; expected a checkpoint in Hugging Face format"
    )


def test_custom_without_a_checkpoint() -> None:
    assert (
        error_of("plan", *SMALL) == "custom: has no official checkpoint; pass --checkpoint with a directory or org/name"
    )


def test_over_budget(tiny_gemma3n: Path, tmp_path: Path) -> None:
    profile = tmp_path / "tight.toml"
    profile.write_text(PROFILE)
    footprint = json_of("plan", *SMALL, "--checkpoint", tiny_gemma3n)["footprint"]
    needed_bytes = footprint["anon_bytes"] + footprint["file_bytes"]
    missing_bytes = needed_bytes - load_profile(str(profile)).budget.budget_bytes
    assert missing_bytes > 0
    arguments = (*SMALL, "--checkpoint", tiny_gemma3n, "--profile", profile)
    for command in (("plan",), ("convert", "--out", tmp_path / "model.litertlm")):
        result = gemma_edge(*command, *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        *table, message = result.stderr.splitlines()
        assert message.startswith(f"error: custom-int4 at 256 tokens on tight: needs {format_bytes(needed_bytes)} (")
        assert f"the budget is 64 MiB, {format_bytes(missing_bytes)} too much; " in message
        text = "\n".join(table)
        for part in footprint["parts"]:
            assert cells(text, part["name"])[3] == format_bytes(part["anon_bytes"] + part["file_bytes"])
        assert cells(text, "missing")[3] == format_bytes(missing_bytes)
    assert list(tmp_path.iterdir()) == [profile]


def test_an_output_that_cannot_be(tiny_gemma3n: Path, tmp_path: Path) -> None:
    arguments = ("convert", *SMALL, "--checkpoint", tiny_gemma3n, "--out")
    assert error_of(*arguments, tmp_path / "no" / "model").endswith(
        "does not exist; create it or choose another output"
    )
    assert error_of(*arguments, tmp_path).endswith("exists and is not a file; choose another output")


def test_a_name_that_is_too_long() -> None:
    name = "x" * 300
    assert error_of("inspect", name) == f"{name}: cannot read (File name too long); check the path"


def test_what_a_file_says_is_no_command_to_the_terminal(tiny_gemma3n: Path, tmp_path: Path) -> None:
    """A message is one line, whatever a checkpoint calls its tensors."""
    checkpoint = Path(shutil.copytree(tiny_gemma3n, tmp_path / "checkpoint"))
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(
        tensors | {"\x1b[2J\nerror: none": tensors["model.norm.weight"].clone()}, checkpoint / "model.safetensors"
    )
    assert error_of("plan", *SMALL, "--checkpoint", checkpoint) == (
        f"{checkpoint}: \\x1b[2J\\nerror: none is not part of this model; "
        "convert the checkpoint that config.json describes"
    )


def test_a_bundle_that_is_none(tiny_gemma3n: Path) -> None:
    path = tiny_gemma3n / "config.json"
    assert error_of("inspect", path).startswith(f"{path}: not a .litertlm bundle")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prefill", "16;32"), "'16;32': expected a comma-separated list of numbers, such as 16,128"),
        (("--kv", "int8"), "'int8' is not one of 'fp32', 'fp16'"),
        (("--context", "long"), "'long' is not a valid integer"),
    ],
)
def test_usage(arguments: tuple[str, ...], message: str) -> None:
    result = gemma_edge("plan", "--target", "custom-int4", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("onnx_ir", "onnx"),
        ("onnxruntime", "onnx"),
        ("minijinja", "litert"),
        ("google.protobuf", "litert"),
        ("PIL", "encoders"),
        ("soundfile", "encoders"),
        ("matplotlib.pyplot", "plot"),
        ("gguf", "gguf"),
    ],
)
def test_the_extra_of_a_package_is_the_one_that_has_it(module: str, extra: str) -> None:
    assert extra_with(module) == extra


def test_formats_that_are_not_written() -> None:
    asked = ("plan", "--target", "custom-int4", "--format")
    assert (
        error_of(*asked, "ggml")
        == "format 'ggml': expected litertlm, onnx, gguf or compressed-tensors; use one of them"
    )
    assert error_of(*asked, "task") == (
        "format 'task': MediaPipe's bundles are not written any more; use --format litertlm, for LiteRT-LM, which "
        "has taken the place of MediaPipe's LLM Inference"
    )


@pytest.mark.parametrize("package", ["ai_edge_litert", "sentencepiece"])
def test_a_missing_extra(package: str, tiny_gemma3n: Path) -> None:
    """In a process where the package cannot be imported."""
    program = f"import sys; sys.modules[{package!r}] = None\nfrom gemma_edge.converter.cli import main; main()"
    command = [sys.executable, "-c", program, "plan", *SMALL, "--checkpoint", str(tiny_gemma3n)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: this needs the package {package}; pip install 'gemma-edge[litert]'\n"


# ---------------------------------------------------------------- progress


def shown_by(console: Console) -> str:
    with bars(console) as stage:
        on_bytes = stage("convert", 1000)
        for _ in range(10):
            on_bytes(100)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_progress_is_for_terminals() -> None:
    assert shown_by(Console(file=io.StringIO())) == ""
    shown = shown_by(Console(file=io.StringIO(), force_terminal=True, width=100))
    assert "convert" in shown
    assert "kB" in shown or "bytes" in shown


def test_no_progress_into_a_pipe(tiny_gemma3n: Path, tmp_path: Path) -> None:
    program = "from gemma_edge.converter.cli import main; main()"
    arguments = ("convert", *SMALL, "--checkpoint", str(tiny_gemma3n), "--out", str(tmp_path / "model"), "--json")
    result = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    assert result.stderr == ""
    assert json.loads(result.stdout)["output"]["file"] == "model"


def test_choices_are_those_of_the_program() -> None:
    """The command line lists them itself, as it answers --help without importing what knows them."""
    assert tuple(KVType) == cli.KV_TYPES
    assert tuple(Modality) == cli.MODALITIES


def test_peak_memory_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    linux = conversion_report.peak_rss_bytes()
    assert linux is not None
    monkeypatch.setattr(conversion_report, "_STATUS", Path("/nowhere"))
    without_proc = conversion_report.peak_rss_bytes()  # begins with what the parent had
    assert without_proc is not None
    assert 0.9 * linux <= without_proc  # the kernel counts for each processor by itself
    monkeypatch.setattr(sys, "platform", "darwin")  # which counts in bytes
    mac = conversion_report.peak_rss_bytes()
    assert mac is not None
    assert without_proc <= mac * 1024 < 2 * without_proc
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows has none
    assert conversion_report.peak_rss_bytes() is None
