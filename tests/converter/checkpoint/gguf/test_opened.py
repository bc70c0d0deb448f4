"""A GGUF file wherever a checkpoint is taken: found, refused in one line, planned, merged, verified, reported."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from click.testing import CliRunner
from rich.console import Console

from gemma_edge.converter import report
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, CheckpointError, read_config
from gemma_edge.converter.checkpoint.gguf import opened as gguf_opened
from gemma_edge.converter.checkpoint.gguf.file import read_gguf
from gemma_edge.converter.checkpoint.gguf.values import TYPES
from gemma_edge.converter.checkpoint.lora import merged
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.tokenizer.tokenizer import SAMPLES
from gemma_edge.converter.verify.cli import verify_main
from gemma_edge.runtime.formats.atomic import OutputError
from gemma_edge.runtime.formats.litertlm import Bundle, SectionKind
from tests.converter.checkpoint.adapters import write_adapter
from tests.converter.checkpoint.checkpoint_files import one_line
from tests.converter.checkpoint.gguf.gguf_files import Raw, small
from tools.gguf_oracle import write_float32_directory
from tools.gguf_writer import write_gguf

FIXTURES = Path(__file__).parents[3] / "fixtures"
SMALL: dict[str, Any] = {"context": 192, "prefill": (8, 32)}
IMATRIX = {"quantize.imatrix.file": "calibration/imatrix.dat", "quantize.imatrix.dataset": "wiki.txt",
           "quantize.imatrix.entries_count": 42, "quantize.imatrix.chunks_count": 7}  # fmt: skip


@pytest.fixture(scope="module")
def gguf3n(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny-3n-Q8_0.gguf"
    write_gguf(FIXTURES / "tiny-gemma3n", path, "Q8_0", embedding_kind="F16", metadata=IMATRIX)
    return path


# ---------------------------------------------------------------- found


def test_a_directory_that_holds_one(gguf3n: Path, tmp_path: Path) -> None:
    shutil.copy(gguf3n, tmp_path)
    for name in ("mmproj-F16.gguf", "imatrix_unsloth.gguf", "README.md", "config.json"):
        (tmp_path / name).write_bytes(b"{}")
    assert Checkpoint.open(tmp_path).path == tmp_path / gguf3n.name
    assert read_config(tmp_path) == Checkpoint.open(gguf3n).config


def test_a_directory_that_holds_several(tmp_path: Path) -> None:
    for kind in ("Q4_0", "Q5_1", "Q8_0", "F16"):
        (tmp_path / f"m-{kind}.gguf").write_bytes(b"")
    assert one_line(lambda: Checkpoint.open(tmp_path)) == (
        f"{tmp_path}: holds 4 GGUF files (m-F16.gguf, m-Q4_0.gguf, m-Q5_1.gguf and 1 more), expected one; "
        f"name it: {tmp_path}/m-F16.gguf"
    )


def test_safetensors_are_taken_before_a_gguf_beside_them(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "tiny-gemma3", tmp_path / "both")
    (tmp_path / "both" / "m.gguf").write_bytes(b"")
    assert Checkpoint.open(tmp_path / "both").origin is None


def test_a_file_by_another_name(gguf3n: Path, tmp_path: Path) -> None:
    shutil.copy(gguf3n, tmp_path / "sha256-0123")
    assert Checkpoint.open(tmp_path / "sha256-0123").origin is not None


def test_side_files_go_with_the_checkpoint(gguf3n: Path) -> None:
    source = Checkpoint.open(gguf3n)
    side = source.side_path
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in side.iterdir()} == names
    del source
    assert not side.parent.exists()


def test_a_temporary_directory_that_is_full(gguf3n: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert one_line(lambda: Checkpoint.open(gguf3n)).endswith(
        f": cannot hold the tokenizer of {gguf3n.name} (No space left on device); free 40 MB, or set TMPDIR"
    )


# ---------------------------------------------------------------- parts


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    write_gguf(FIXTURES / "tiny-gemma3", tmp_path / "m.gguf", "Q8_0", split_tensors=30)
    return sorted(tmp_path.glob("m-*.gguf"))


def test_a_split_file_is_read_by_any_of_its_parts(parts: list[Path], tmp_path: Path) -> None:
    assert [path.name for path in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    (tmp_path / "whole").mkdir()
    write_gguf(FIXTURES / "tiny-gemma3", tmp_path / "whole" / "m.gguf", "Q8_0")
    whole = Checkpoint.open(tmp_path / "whole")
    for path in (*parts, tmp_path):
        source = Checkpoint.open(path)
        assert source.path == parts[0]
        assert source.input_files() == parts
        assert source.provenance["gguf"]["parts"] == 3
        assert source.config == whole.config
        assert source.tensors.keys() == whole.tensors.keys()
        name = "layers.5.mlp.down_proj.weight"
        np.testing.assert_array_equal(source.read(name), whole.read(name))
    assert sorted(source.sha256(lambda _: None)) == [path.name for path in parts]


def test_a_part_that_is_absent(parts: list[Path]) -> None:
    parts[1].unlink()
    assert one_line(lambda: Checkpoint.open(parts[0])) == (
        f"{parts[0]}: a part of 3, {parts[1].name} absent; download all of them"
    )


def test_parts_of_different_files(parts: list[Path]) -> None:
    shutil.copy(parts[2], parts[1])
    assert one_line(lambda: Checkpoint.open(parts[0])) == (
        f"{parts[1]}: split.no is 2, expected 1 in part 2 of 3; keep the parts' names, and download all of them again"
    )


def test_a_part_by_another_name(parts: list[Path], tmp_path: Path) -> None:
    shutil.copy(parts[0], tmp_path / "other.gguf")
    assert one_line(lambda: Checkpoint.open(tmp_path / "other.gguf")) == (
        f"{tmp_path}/other.gguf: split.count is 3, expected 1 in part 1 of 1; keep the parts' names, "
        "and download all of them again"
    )


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    for number in range(2):
        raw = small()
        raw.metadata |= {"split.no": number, "split.count": 2, "split.tensors.count": 4}
        raw.write(tmp_path / f"m-0000{number + 1}-of-00002.gguf")
    path = tmp_path / "m-00001-of-00002.gguf"
    assert one_line(lambda: Checkpoint.open(path)) == (
        f"{path}: token_embd.weight, output_norm.weight in more than one part, expected one; download all of them again"
    )


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.type": "imatrix"}, "an importance matrix, not a model; give the GGUF that was quantized with it"),
        ({"general.architecture": "gemma3", "general.type": "adapter"}, "a LoRA adapter, not a model; give its base "
         "model, and the adapter as PEFT saves it with --lora"),
        ({"general.architecture": "clip"}, "encoders without a text model; give the text model's GGUF, or the "
         "safetensors checkpoint for images"),
        ({"general.architecture": "clip", "general.type": "mmproj"}, "encoders without a text model; give the text "
         "model's GGUF, or the safetensors checkpoint for images"),
        ({"general.architecture": "gemma3", "general.type": "dataset"}, "general.type is 'dataset', expected model"),
        ({"general.architecture": "gemma3", "general.type": 3}, "general.type is '3', expected model"),
        ({"general.architecture": "llama"}, "general.architecture is 'llama', expected gemma3 or gemma3n; only these "
         "can be converted"),
        ({}, "general.architecture is 'None', expected gemma3 or gemma3n; only these can be converted"),
    ],
)  # fmt: skip
def test_what_is_no_gemma_text_model(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = Raw(metadata).write(tmp_path / "a.gguf")
    for read in (Checkpoint.open, read_config):
        assert one_line(lambda read=read: read(path)) == f"{path}: {message}"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["v.blk.0.attn_q.weight", "blk.0.attn_q.bias", "rope_freqs.weight", "mm.x"])
def test_a_tensor_of_no_text_model(name: str, tmp_path: Path) -> None:
    raw = small()
    raw.add(name, np.ones((1, 32), np.float32))
    path = raw.write(tmp_path / "a.gguf")
    assert one_line(lambda: Checkpoint.open(path)) == (
        f"{path}: {name} is no tensor of a Gemma 3 or Gemma 3n text model as llama.cpp writes it; "
        "use a GGUF of the text model alone"
    )


def test_matrices_that_are_not_stacked(tmp_path: Path) -> None:
    raw = small()
    raw.add("altup_proj.weight", np.ones((3, 32), np.float32))
    path = raw.write(tmp_path / "a.gguf")
    assert one_line(lambda: Checkpoint.open(path)) == (
        f"{path}: altup_proj.weight has the shape [3, 32], expected a stack of matrices; "
        "convert the model anew with llama.cpp"
    )


def edited(path: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy with other metadata, written by hand."""
    file, data = read_gguf(path), path.read_bytes()
    raw = Raw(dict(file.metadata))
    for tensor in file.tensors.values():
        content = data[tensor.offset : tensor.offset + tensor.nbytes]
        raw.tensors[tensor.name] = (TYPES[tensor.type].number, tensor.shape, content)
    change(raw.metadata)
    return raw.write(out)


def test_metadata_of_another_model(gguf3n: Path, tmp_path: Path) -> None:
    path = edited(gguf3n, tmp_path / "a.gguf", lambda values: values.update({"gemma3n.embedding_length": 64}))
    message = one_line(lambda: convert("custom-int8", path, tmp_path / "out", **SMALL))
    assert message.endswith(" by config.json; they belong to different models")


def test_an_output_in_place_of_the_input(gguf3n: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(gguf3n, path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"model\.gguf: is part of the checkpoint that is converted; choose another"):
        convert("custom-int8", path, path, **SMALL)
    assert path.read_bytes() == before


# ---------------------------------------------------------------- used


def test_the_report_names_the_file_its_types_and_its_importance_matrix(gguf3n: Path, tmp_path: Path) -> None:
    report = convert("custom-int8", gguf3n, tmp_path / "out.litertlm", **SMALL)
    source = json.loads((tmp_path / "out.litertlm.json").read_text())["source"]
    assert source["checkpoint"] == gguf3n.name
    assert list(source["sha256"]) == [gguf3n.name]
    facts = source["gguf"]
    assert (facts["architecture"], facts["name"], facts["parts"]) == ("gemma3n", "tiny", 1)
    assert facts["mixed_quantization"] is True
    assert facts["importance_matrix"] == {"file": "calibration/imatrix.dat", "dataset": "wiki.txt",
                                          "entries_count": 42, "chunks_count": 7}  # fmt: skip
    assert report.values["source"]["gguf"] == facts
    text = io.StringIO()
    report.print(Console(file=text, width=300))
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(facts["tensors_by_type"].items()))
    assert (
        f"from a GGUF, Q8_0: {kinds} tensors, a mixed quantization, weighed by an importance matrix (chunks_count 7, "
        "dataset wiki.txt, entries_count 42, file calibration/imatrix.dat)\n"
    ) in text.getvalue()


def test_one_type_and_no_importance_matrix(tmp_path: Path) -> None:
    write_gguf(FIXTURES / "tiny-gemma3", tmp_path / "a.gguf", "Q8_0")
    facts = Checkpoint.open(tmp_path / "a.gguf").provenance["gguf"]
    assert facts["importance_matrix"] is None
    assert report.quantized_line(facts | {"file_type": None}).startswith("from a GGUF, type not named: 37 F32, ")
    assert report.quantized_line(facts) == (
        "from a GGUF, Q8_0: 37 F32, 43 Q8_0 tensors, one type of matrix, no importance matrix named"
    )


@pytest.mark.parametrize(("number", "name"), [(15, "Q4_K_M"), (0, "F32"), (999, "999"), (None, None)])
def test_the_quantization_by_its_name(number: int | None, name: str | None) -> None:
    assert gguf_opened._file_type(number) == name


def test_a_revision_is_that_of_the_snapshot(gguf3n: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / ("0123456789abcdef" * 2 + "01234567") / "sub"
    snapshot.mkdir(parents=True)
    shutil.copy(gguf3n, snapshot)
    assert Checkpoint.open(snapshot / gguf3n.name).revision == snapshot.parent.name
    assert Checkpoint.open(gguf3n).revision is None


def test_plan_verify_and_their_command_lines(gguf3n: Path, tmp_path: Path) -> None:
    runner, out = CliRunner(), str(tmp_path / "out.litertlm")
    common = ["--target", "custom-int8", "--checkpoint", str(gguf3n), "--context", "192", "--prefill", "8"]
    planned = runner.invoke(main, ["plan", *common, "--json"])
    assert planned.exit_code == 0, planned.output
    converted = runner.invoke(main, ["convert", *common, "--out", out, "--json"])
    assert converted.exit_code == 0, converted.output
    assert json.loads(planned.stdout)["bundle_bytes"] == Path(out).stat().st_size
    arguments = [out, "--checkpoint", str(gguf3n), "--limit", "256", "--window", "64", "--json"]
    verified = runner.invoke(verify_main, arguments)
    assert verified.exit_code == 0, verified.output
    values = json.loads(verified.stdout)
    assert values["checkpoint"] == gguf3n.name
    assert values["findings"] == []


def test_calibration(gguf3n: Path, tmp_path: Path) -> None:
    report = convert("custom-int4", gguf3n, tmp_path / "out", calibrate="built-in", measure=False, **SMALL)
    assert report.values["calibration"]["text"] == "built-in"


@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_onnx_has_a_tokenizer_of_its_own(family: str, tmp_path: Path) -> None:
    write_gguf(FIXTURES / f"tiny-{family}", tmp_path / "a.gguf", "Q8_0")
    convert("custom-int8", tmp_path / "a.gguf", tmp_path / "out", format="onnx", **SMALL)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("text_config", config)["model_type"] == f"{family}_text"
    original = tokenizers.Tokenizer.from_file(str(FIXTURES / f"tiny-{family}" / "tokenizer.json"))
    found = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    for text in SAMPLES:
        assert found.encode(text).ids == original.encode(text).ids


def test_an_adapter_is_merged_as_into_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(FIXTURES / "tiny-gemma3", path, "Q4_0")
    write_float32_directory(path, FIXTURES / "tiny-gemma3", tmp_path / "directory")
    adapter = write_adapter(tmp_path / "adapter", FIXTURES / "tiny-gemma3")
    one, other = (merged(Checkpoint.open(source), adapter) for source in (path, tmp_path / "directory"))
    for name in ("layers.2.self_attn.q_proj.weight", "layers.3.mlp.up_proj.weight", "layers.1.input_layernorm.weight"):
        np.testing.assert_array_equal(one.read(name), other.read(name))
    assert one.side_path != path
    report = convert("custom-int4", path, tmp_path / "out", lora=adapter, **SMALL)
    assert report.values["source"]["lora"]["merged_tensors"] == 12
    assert report.values["source"]["gguf"]["architecture"] == "gemma3"
    assert report.values["trained_grid"]["tensors"] == 42 + 1 - 12  # with the head; what was merged into left its grid
    assert sorted(report.values["source"]["sha256"]) == ["adapter_config.json", "adapter_model.safetensors", path.name]


def test_stop_tokens_are_the_files(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "tiny-gemma3", tmp_path / "source")
    (tmp_path / "source" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 50]}))
    write_gguf(tmp_path / "source", tmp_path / "a.gguf", "Q8_0")
    for source, out in (("a.gguf", "one"), ("source", "other")):
        convert("custom-int8", tmp_path / source, tmp_path / out, **SMALL)
    one, other = (Bundle.open(tmp_path / out) for out in ("one", "other"))
    assert one.read(one.section(SectionKind.LLM_METADATA)) == other.read(other.section(SectionKind.LLM_METADATA))


def test_the_evaluator_reads_it(gguf3n: Path) -> None:
    assert StreamingModel.open(Checkpoint.open(gguf3n)).model.family == "gemma3n"


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    raw = small()
    path = raw.write(tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match=r"has no gemma3\.block_count, which the model's config\.json"):
        Checkpoint.open(path)
