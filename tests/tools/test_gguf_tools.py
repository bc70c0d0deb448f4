"""The tools around GGUF files, as they are called."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from gemma_edge.converter.convert import convert
from gemma_edge.converter.models.family import Model
from tools import gguf_oracle, gguf_real, gguf_writer

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_a_written_file_is_compared_with_a_directory_of_its_values(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "model.gguf"
    shutil.copytree(FIXTURES / "tiny-gemma3", source)
    (source / "tokenizer.model").unlink()
    written = CliRunner().invoke(
        gguf_writer.main, [str(source), str(path), "--type", "Q8_0", "--embedding-type", "F16"]
    )
    assert written.exit_code == 0, written.output
    arguments = [str(path), str(source), str(tmp_path / "work"), "--target", "custom-int8", "--texts", "300"]
    done = CliRunner().invoke(gguf_real.main, arguments)
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert values["different_bytes"] == {}
    assert values["tokenizer"]["texts"] == 300
    assert values["tokenizer"]["scripts"] >= 60
    assert values["tokenizer"]["different"] == 0


def test_bundles_that_differ(tmp_path: Path) -> None:
    for out, context in (("one", 192), ("other", 192), ("longer", 256)):
        encoding = ("ffn=int4",) if out == "other" else ()
        convert(
            "custom-int8", FIXTURES / "tiny-gemma3", tmp_path / out, context=context, prefill=(8,), encoding=encoding
        )
    assert gguf_real.different_bytes(tmp_path / "one", tmp_path / "one") == {}
    assert "file size" in gguf_real.different_bytes(tmp_path / "one", tmp_path / "other")
    assert gguf_real.different_bytes(tmp_path / "one", tmp_path / "longer")


def test_a_tensor_that_gguf_has_no_name_for(tiny_gemma3: Path) -> None:
    table = gguf_oracle.name_table(Model.from_json(json.loads((tiny_gemma3 / "config.json").read_bytes())))
    assert gguf_oracle.gguf_name(table, "layers.0.mlp.up_proj.weight") == "blk.0.ffn_up.weight"
    with pytest.raises(ValueError, match=r"^layers\.0\.mlp\.new\.weight: gguf has no name for it$"):
        gguf_oracle.gguf_name(table, "layers.0.mlp.new.weight")
