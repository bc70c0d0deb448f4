"""What a checkpoint directory may look like: configuration, shards and index, and what it is refused for."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from tests.converter.checkpoint.checkpoint_files import EMBEDDING, NORM, one_line, two_tensors, write_raw

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a config.json and no weights yet."""
    (tmp_path / "config.json").write_text('{"model_type": "gemma3_text"}')
    return tmp_path


class TestDirectory:
    def test_not_a_directory(self, tmp_path: Path) -> None:
        assert one_line(lambda: Checkpoint.open(tmp_path / "no")) == (
            f"{tmp_path}/no: not a directory; expected one with config.json and model.safetensors"
        )

    def test_no_config(self, tmp_path: Path) -> None:
        write_raw(tmp_path / "model.safetensors", two_tensors())
        assert one_line(lambda: Checkpoint.open(tmp_path)) == (
            f"{tmp_path}: no config.json; expected a checkpoint in Hugging Face format"
        )

    @pytest.mark.parametrize("text", [b'{"model_type": ', b"", b"\xff\xfe\x00"])
    def test_config_is_not_json(self, text: bytes, directory: Path) -> None:
        (directory / "config.json").write_bytes(text)
        message = one_line(lambda: Checkpoint.open(directory))
        assert message.startswith(f"{directory}/config.json: not JSON (")
        assert message.endswith("); download it again")

    def test_config_is_no_object(self, directory: Path) -> None:
        (directory / "config.json").write_text("[1]")
        assert one_line(lambda: Checkpoint.open(directory)) == (
            f"{directory}/config.json: a JSON object was expected; download it again"
        )

    @pytest.mark.parametrize(
        ("file_name", "expected"),
        [
            ("adapter_model.safetensors", "a LoRA adapter, not a model; merge it into its base model first"),
            ("model-1-of-2.safetensors", "found model-1-of-2.safetensors, expected model.safetensors or "
             "model.safetensors.index.json; download model.safetensors.index.json"),
            ("pytorch_model.bin", "found pytorch_model.bin, expected model.safetensors or "
             "model.safetensors.index.json; load it with transformers and save_pretrained() it"),
            ("consolidated.pth", "found consolidated.pth, expected model.safetensors or "
             "model.safetensors.index.json; load it with transformers and save_pretrained() it"),
            ("README.md", "no model.safetensors or model.safetensors.index.json; expected a checkpoint in"),
        ],
    )  # fmt: skip
    def test_no_weights(self, file_name: str, expected: str, directory: Path) -> None:
        (directory / file_name).write_bytes(b"")
        assert one_line(lambda: Checkpoint.open(directory)).startswith(f"{directory}: {expected}")

    def test_no_decoder(self, directory: Path) -> None:
        write_raw(
            directory / "model.safetensors", {"bert.embed": {"dtype": "F32", "shape": [36], "data_offsets": [0, 144]}}
        )
        assert one_line(lambda: Checkpoint.open(directory)) == (
            f"{directory}: no embed_tokens.weight among 1 tensors; expected it behind one of model.language_model., "
            "language_model.model., model.: not a Gemma checkpoint, or an incomplete one"
        )

    def test_input_files_and_their_hashes(self, tmp_path: Path) -> None:
        for file in (FIXTURES / "tiny-gemma3").iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "model-00001-of-00001.safetensors").write_bytes(b"not in use")
        (tmp_path / "README.md").write_text("not an input")
        checkpoint = Checkpoint.open(tmp_path)
        hashed_bytes: list[int] = []
        hashes = checkpoint.sha256(hashed_bytes.append)
        names = ["config.json", "generation_config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json"]
        assert list(hashes) == [*names, "model.safetensors"]
        for name, digest in hashes.items():
            assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert sum(hashed_bytes) == sum(file.stat().st_size for file in checkpoint.input_files())

    def test_hash_of_a_hub_snapshot_is_of_the_bytes_not_the_blobs_name(self, directory: Path) -> None:
        (directory / "blobs").mkdir()
        blob = directory / "blobs" / ("0" * 64)  # the hub names blobs by SHA-256; this one has been tampered with
        write_raw(blob, two_tensors())
        (directory / "model.safetensors").symlink_to(blob)
        hashed_bytes: list[int] = []
        digest = Checkpoint.open(directory).sha256(hashed_bytes.append)["model.safetensors"]
        assert digest == hashlib.sha256(blob.read_bytes()).hexdigest()


class TestIndex:
    """A model in two shards: the embedding in a.safetensors, the norm in b.safetensors."""

    @pytest.fixture
    def shards(self, directory: Path) -> Path:
        save_file({"model.embed_tokens.weight": torch.ones(8, 4)}, directory / "a.safetensors")
        save_file({"model.norm.weight": torch.full((4,), 2.0)}, directory / "b.safetensors")
        self.write_index(
            directory, {"model.embed_tokens.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}
        )
        return directory

    @staticmethod
    def write_index(directory: Path, weight_map: object) -> None:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def test_shards_are_one_checkpoint(self, shards: Path) -> None:
        checkpoint = Checkpoint.open(shards)
        checkpoint.match([EMBEDDING, NORM], [])
        assert checkpoint.read("norm.weight").tolist() == [2, 2, 2, 2]
        assert [file.name for file in checkpoint.input_files()][1:] == [
            "model.safetensors.index.json", "a.safetensors", "b.safetensors",
        ]  # fmt: skip

    def test_a_single_file_wins_as_in_transformers(self, shards: Path) -> None:
        write_raw(shards / "model.safetensors", two_tensors())
        assert {t.file.name for t in Checkpoint.open(shards).tensors.values()} == {"model.safetensors"}

    def test_not_json(self, shards: Path) -> None:
        (shards / "model.safetensors.index.json").write_text("{")
        assert one_line(lambda: Checkpoint.open(shards)).startswith(f"{shards}/model.safetensors.index.json: not JSON")

    @pytest.mark.parametrize("weight_map", [None, {}, [], {"model.norm.weight": 1}])
    def test_no_weight_map(self, weight_map: object, shards: Path) -> None:
        self.write_index(shards, weight_map)
        assert one_line(lambda: Checkpoint.open(shards)) == (
            f"{shards}/model.safetensors.index.json: no weight_map from tensor to file name; download it again"
        )

    def test_absent_shard(self, shards: Path) -> None:
        (shards / "b.safetensors").unlink()
        assert one_line(lambda: Checkpoint.open(shards)) == (
            f"{shards}/model.safetensors.index.json: names b.safetensors, which is absent; download it as well"
        )

    @pytest.mark.parametrize("file_name", ["../b.safetensors", "/etc/passwd", "sub/b.safetensors"])
    def test_shard_outside_the_directory(self, file_name: str, shards: Path) -> None:
        self.write_index(shards, {"model.norm.weight": file_name})
        assert one_line(lambda: Checkpoint.open(shards)) == (
            f"{shards}/model.safetensors.index.json: names {file_name!r}; expected a file name without directories"
        )

    @pytest.mark.parametrize(
        ("name", "file_name"), [("model.x", "a.safetensors"), ("model.embed_tokens.weight", "b.safetensors")]
    )
    def test_tensor_that_is_not_where_the_index_says(self, name: str, file_name: str, shards: Path) -> None:
        weight_map = {"model.embed_tokens.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}
        self.write_index(shards, weight_map | {name: file_name, "model.other": "a.safetensors"})
        assert one_line(lambda: Checkpoint.open(shards)).startswith(
            f"{shards}/model.safetensors.index.json: says {name} is in {file_name}, which has no such tensor"
        )

    def test_shard_with_a_name_that_is_too_long(self, shards: Path) -> None:
        self.write_index(shards, {"model.norm.weight": "x" * 300})
        assert one_line(lambda: Checkpoint.open(shards)) == (
            f"{shards}/model.safetensors.index.json: names {'x' * 300}, which is absent; download it as well"
        )

    def test_tensor_in_two_shards(self, shards: Path) -> None:
        save_file(
            {"model.norm.weight": torch.ones(4), "model.embed_tokens.weight": torch.ones(8, 4)},
            shards / "b.safetensors",
        )
        assert one_line(lambda: Checkpoint.open(shards)) == (
            f"{shards}: model.embed_tokens.weight is in both a.safetensors and b.safetensors; keep one"
        )

    def test_tensor_that_the_index_does_not_list_is_seen(self, shards: Path) -> None:
        save_file({"model.norm.weight": torch.ones(4), "model.extra": torch.ones(1)}, shards / "b.safetensors")
        checkpoint = Checkpoint.open(shards)
        assert "model.extra is not part of this model" in one_line(lambda: checkpoint.match([EMBEDDING, NORM], []))
