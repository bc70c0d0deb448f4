"""The directory to the byte: its files, their sizes, its configuration, and the report."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gemma_edge.converter.calibrate.planning import lay_out, plan_for
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.onnx import data as onnx_data
from gemma_edge.converter.onnx.data import DataFiles
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.recipes import RecipeError
from gemma_edge.converter.quantize.stored import StoredWeight
from gemma_edge.converter.tokenizer.added_tokens import TokenizerError
from gemma_edge.converter.tokenizer.chat_template import gemma_template
from gemma_edge.runtime.formats.atomic import OutputError
from gemma_edge.runtime.formats.encoding import Encoding

SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "int4": "_q4"}
SIDE_FILES = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "llm_metadata.pb", "digests.json",
}  # fmt: skip


def files(directory: Path) -> dict[str, int]:
    return {
        path.relative_to(directory).as_posix(): path.stat().st_size for path in directory.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("precision", SUFFIXES)
@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_every_byte_is_known_before_one_is_written(
    family: str, precision: str, tiny_gemma3: Path, tiny_gemma3n: Path, tmp_path: Path
) -> None:
    checkpoint = {"gemma3": tiny_gemma3, "gemma3n": tiny_gemma3n}[family]
    source, plan = plan_for(Target.parse(f"custom-{precision}", format="onnx"), checkpoint)
    planned = {section.name: section.nbytes for section in lay_out(plan, source).sections}
    report = convert(f"custom-{precision}", checkpoint, tmp_path / "model", format="onnx").values
    assert files(tmp_path / "model") == planned
    assert report["output"]["bytes"] == sum(planned.values())
    assert {section["name"]: section["bytes"] for section in report["sections"]} == planned
    graphs = {"gemma3": ["model"], "gemma3n": ["embed_tokens", "decoder_model_merged"]}[family]
    names = {f"onnx/{graph}{SUFFIXES[precision]}.onnx" for graph in graphs}
    genai = {"genai_config.json"} if family == "gemma3" else set()
    assert set(planned) == SIDE_FILES | genai | names | {f"{name}_data" for name in names}
    data = sum(nbytes for name, nbytes in planned.items() if name.endswith("_data"))
    weights = sum(report["bytes_by_role"].values())
    assert weights <= data < weights + onnx_data.ALIGNMENT * 2 * len(plan.tensors)


def test_the_same_inputs_give_the_same_bytes(tiny_gemma3n: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        digests.append(convert("custom-int4", tiny_gemma3n, tmp_path / name, format="onnx").values["output"]["sha256"])
        listing = "".join(
            f"{hashlib.sha256((tmp_path / name / file).read_bytes()).hexdigest()}  {file}\n"
            for file in sorted(files(tmp_path / name), key=lambda file: tmp_path / name / file)
        )
        assert digests[-1] == hashlib.sha256(listing.encode()).hexdigest()
        assert json.loads((tmp_path / f"{name}.json").read_text())["output"]["file"] == name
    assert digests[0] == digests[1]


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def test_configuration(tiny_gemma3: Path, tiny_gemma3n: Path, tmp_path: Path) -> None:
    convert("custom-int4", tiny_gemma3, tmp_path / "3", context=256, format="onnx")
    config = read(tmp_path / "3" / "config.json")
    assert (config["model_type"], config["architectures"]) == ("gemma3_text", ["Gemma3ForCausalLM"])
    assert config["transformers.js_config"] == {"dtype": "q4", "use_external_data_format": {"model_q4.onnx": 1}}
    genai = read(tmp_path / "3" / "genai_config.json")["model"]
    assert genai["context_length"] == 256
    assert genai["eos_token_id"] == [1, 11]  # <eos> and the fixture's <end_of_turn>
    assert genai["decoder"]["filename"] == "onnx/model_q4.onnx"

    convert("custom-fp32", tiny_gemma3n, tmp_path / "3n", format="onnx")
    config = read(tmp_path / "3n" / "config.json")
    assert (config["model_type"], config["architectures"]) == ("gemma3n", ["Gemma3nForConditionalGeneration"])
    assert config["text_config"]["model_type"] == "gemma3n_text"
    data_files = {"embed_tokens.onnx": 1, "decoder_model_merged.onnx": 1}
    assert config["transformers.js_config"] == {"dtype": "fp32", "use_external_data_format": data_files}


def test_data_files_stay_below_what_a_browser_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_data, "LARGEST_FILE_BYTES", 3 << 20)
    data = DataFiles("model.onnx")
    sizes = (1 << 20, 1 << 20, 2 << 20, 5 << 20, 1 << 10)
    placed = [
        data.place(StoredWeight(str(i), (nbytes // 4096, 1024), Encoding.parse("fp32")), is_table=False)
        for i, nbytes in enumerate(sizes)
    ]
    assert [weight.file for weight in placed] == [
        "model.onnx_data", "model.onnx_data", "model.onnx_data_1", "model.onnx_data_2", "model.onnx_data_3",
    ]  # fmt: skip
    assert [weight.data_offset for weight in placed] == [0, 1 << 20, 0, 0, 0]
    assert data.sizes["model.onnx_data_2"] == 5 << 20


def test_columns_that_no_block_fits_are_named(tiny_gemma3n: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    roles = ("embedding", "ple", "head", "attention", "ffn", "altup", "small", "norm")
    lines = [f'{role} = "fp32"' for role in roles]
    recipe.write_text("[roles]\nrouter = 'int8'\n" + "\n".join(lines))
    with pytest.raises(RecipeError) as caught:
        convert("custom-fp32", tiny_gemma3n, tmp_path / "out", recipe=recipe, format="onnx")
    assert str(caught.value) == (
        "layers.0.altup.prediction_coefs.weight: 4 columns do not split into blocks of 16, as int8 in ONNX does; "
        f"use fp16 or fp32 (recipe {recipe}, roles.router)"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "message"), [("[]", "a list, expected an object"), ("{", "unreadable (")])
def test_a_tokenizer_configuration_beside_a_template_file(
    text: str, message: str, tiny_gemma3: Path, tmp_path: Path
) -> None:
    """The template is taken from its own file, so that this is where the configuration is read first."""
    checkpoint = Path(shutil.copytree(tiny_gemma3, tmp_path / "checkpoint"))
    (checkpoint / "chat_template.jinja").write_text(gemma_template())
    (checkpoint / "tokenizer_config.json").write_text(text)
    with pytest.raises(TokenizerError) as caught:
        convert("custom-int8", checkpoint, tmp_path / "out", format="onnx")
    assert str(caught.value).startswith(f"{checkpoint / 'tokenizer_config.json'}: {message}")
    assert sorted(tmp_path.iterdir()) == [checkpoint]


def test_what_exists_is_not_replaced(tiny_gemma3: Path, tmp_path: Path) -> None:
    convert("custom-int4", tiny_gemma3, tmp_path / "model", format="onnx")
    before = files(tmp_path / "model")
    with pytest.raises(OutputError, match="exists and is not an empty directory; remove it or choose another output"):
        convert("custom-int8", tiny_gemma3, tmp_path / "model", format="onnx")
    assert files(tmp_path / "model") == before


def test_the_command_line_plans_a_directory(tiny_gemma3n: Path) -> None:
    arguments = ["plan", "--target", "custom-int4", "--checkpoint", str(tiny_gemma3n), "--format", "onnx"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "onnx/decoder_model_merged_q4.onnx_data" in result.output
    assert "int4-b128" in result.output
