"""Checkpoints: what is read equals what was stored, and tensors that do not fit the model are refused by name."""

import errno
import json
import os
import tracemalloc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, CheckpointError, read_json_object
from gemma_edge.converter.checkpoint.safetensors_file import read_header
from gemma_edge.converter.checkpoint.slices.shards import Header, write_shards
from gemma_edge.converter.tensors import Role, TensorSpec
from tests.converter.checkpoint.checkpoint_files import (
    EMBEDDING,
    HEAD,
    NORM,
    TIED_HEAD,
    one_line,
    two_tensors,
    write_raw,
)

FIXTURES = Path(__file__).parents[2] / "fixtures"
TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a config.json and no weights yet."""
    (tmp_path / "config.json").write_text('{"model_type": "gemma3_text"}')
    return tmp_path


def save(directory: Path, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    save_file(dict(tensors), directory / "model.safetensors")
    return Checkpoint.open(directory)


def random_tensor(dtype: str, *shape: int) -> torch.Tensor:
    """Values over all that is read of the dtype, subnormals, zeros of both signs and the largest ones included."""
    info = torch.finfo(TORCH_DTYPES[dtype])
    largest = min(info.max, float(np.nextafter(np.float32(2.0**40), np.float32(0))) if dtype == "F32" else 2.0**39)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator) * torch.logspace(-7, 4, shape[-1])
    values.view(-1)[:6] = torch.tensor([0.0, -0.0, largest, -largest, info.tiny, info.tiny / 4])
    return values.to(TORCH_DTYPES[dtype])


class TestReading:
    @pytest.mark.parametrize("fixture", ["tiny-gemma3", "tiny-gemma3n"])
    def test_every_tensor_of_a_real_checkpoint(self, fixture: str) -> None:
        checkpoint = Checkpoint.open(FIXTURES / fixture)
        expected = load_file(FIXTURES / fixture / "model.safetensors")
        assert checkpoint.tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            values = checkpoint.read(name.removeprefix("model."))
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, tensor.float().numpy())

    @pytest.mark.parametrize("dtype", TORCH_DTYPES)
    @pytest.mark.parametrize("chunk_bytes", [1, 100, 8 << 20])
    def test_rows_together_are_the_tensor(self, dtype: str, chunk_bytes: int, directory: Path) -> None:
        tensor = random_tensor(dtype, 37, 11)
        checkpoint = save(directory, {"model.embed_tokens.weight": tensor})
        next_row = 0
        for first, rows in checkpoint.rows("embed_tokens.weight", chunk_bytes):
            assert first == next_row
            assert rows.dtype == np.float32
            expected = tensor[first : first + len(rows)].float().numpy()
            np.testing.assert_array_equal(rows.view(np.uint32), expected.view(np.uint32))  # the sign of zero too
            next_row += len(rows)
        assert next_row == 37

    def test_a_range_of_rows(self, directory: Path) -> None:
        tensor = random_tensor("BF16", 37, 11)
        checkpoint = save(directory, {"model.embed_tokens.weight": tensor})
        chunks = [(first, rows.copy()) for first, rows in checkpoint.rows("embed_tokens.weight", 110, 5, 23)]
        assert [first for first, _ in chunks] == [5, 10, 15, 20]
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in chunks]), tensor[5:23].float().numpy())
        assert list(checkpoint.rows("embed_tokens.weight", start=37)) == []
        for start, stop in ((-1, 5), (6, 5), (0, 38)):
            with pytest.raises(ValueError, match=f"rows {start}:{stop} of 37"):
                next(checkpoint.rows("embed_tokens.weight", 8, start, stop))

    def test_threads_read_the_same_tensor_at_once(self, directory: Path) -> None:
        tensor = random_tensor("BF16", 4000, 64)
        checkpoint = save(directory, {"model.embed_tokens.weight": tensor})

        def part(start: int) -> np.ndarray[Any, Any]:
            rows = checkpoint.rows("embed_tokens.weight", 1024, start, start + 500)
            return np.concatenate([chunk.copy() for _, chunk in rows])

        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(part, range(0, 4000, 500)))
        np.testing.assert_array_equal(np.concatenate(parts), tensor.float().numpy())

    def test_memory_is_three_chunks_and_reused(self, directory: Path) -> None:
        write_shards(
            directory,
            {"model.embed_tokens.weight": Header("BF16", (32_768, 256))},  # 16 MiB
            lambda _: [bytes(16 << 20)],
            shards=1,
        )
        checkpoint = Checkpoint.open(directory)
        tracemalloc.start()
        addresses = {rows.ctypes.data for _, rows in checkpoint.rows("embed_tokens.weight", 1 << 20)}
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(addresses) == 1
        assert peak_bytes < 3.2 * (1 << 20)

    @pytest.mark.parametrize("dtype", TORCH_DTYPES)
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2.0**41, -(2.0**64), 3e38])
    def test_values_that_are_no_numbers_are_refused_by_name(self, dtype: str, value: float, directory: Path) -> None:
        tensor = random_tensor(dtype, 20, 4)
        tensor[13, 2] = value  # infinite in 16 bits
        checkpoint = save(directory, {"model.embed_tokens.weight": tensor, "model.norm.weight": tensor[0].clone()})
        expected = (
            "model.embed_tokens.weight: holds NaN, Inf or a value above 1e+12, expected weights; "
            "the checkpoint is damaged, get it again"
        )
        assert one_line(lambda: checkpoint.read("embed_tokens.weight")) == expected
        assert one_line(lambda: list(checkpoint.rows("embed_tokens.weight", 16))) == expected
        assert len(list(checkpoint.rows("embed_tokens.weight", stop=13))) == 1
        assert np.isfinite(checkpoint.read("norm.weight")).all()

    def test_every_bit_pattern_of_16_bits_is_judged_as_torch_judges_it(self, directory: Path) -> None:
        patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).reshape(-1, 1)
        for dtype in (torch.bfloat16, torch.float16):
            stored = patterns.view(dtype)
            checkpoint = save(directory, {"model.embed_tokens.weight": stored})
            for row in range(0, 2**16, 61):
                finite = bool((stored[row].float().abs() < 2.0**40).all())
                try:
                    ((_, values),) = checkpoint.rows("embed_tokens.weight", start=row, stop=row + 1)
                except CheckpointError:
                    assert not finite
                else:
                    assert finite
                    assert values[0, 0] == stored[row, 0].float().item()

    def test_a_file_that_shrinks_while_it_is_read(self, directory: Path) -> None:
        write_raw(directory / "model.safetensors", two_tensors())
        checkpoint = Checkpoint.open(directory)
        write_raw(directory / "model.safetensors", two_tensors(), bytes(140))
        assert one_line(lambda: checkpoint.read("norm.weight")) == (
            f"{directory}/model.safetensors: ends inside model.norm.weight; it was changed while being read"
        )

    def test_a_disk_that_fails(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_raw(directory / "model.safetensors", two_tensors())
        checkpoint = Checkpoint.open(directory)

        def fail(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "preadv", fail)
        for name, read in (
            ("model.safetensors", lambda: checkpoint.read("norm.weight")),
            ("model.safetensors", lambda: list(checkpoint.rows("embed_tokens.weight"))),
            ("config.json", lambda: checkpoint.sha256(lambda _: None)),
        ):
            assert one_line(read) == (
                f"{directory}/{name}: cannot be read (Input/output error); check its permissions, and the disk"
            )

    def test_files_that_cannot_be_opened(self, directory: Path) -> None:
        write_raw(directory / "model.safetensors", two_tensors())
        checkpoint = Checkpoint.open(directory)
        (directory / "model.safetensors").unlink()
        assert one_line(lambda: checkpoint.read("norm.weight")) == (
            f"{directory}/model.safetensors: cannot be read (No such file or directory); "
            "check its permissions, and the disk"
        )
        for read in (read_header, read_json_object):
            assert one_line(partial(read, directory)) == (
                f"{directory}: cannot be read (Is a directory); check its permissions, and the disk"
            )

    def test_reading_what_is_not_there(self, directory: Path) -> None:
        write_raw(directory / "model.safetensors", two_tensors())
        checkpoint = Checkpoint.open(directory)
        expected = f"{directory}: layers.0.x missing; the checkpoint is incomplete"
        assert one_line(lambda: checkpoint.read("layers.0.x")) == expected
        assert one_line(lambda: next(checkpoint.rows("layers.0.x"))) == expected


class TestNames:
    @pytest.mark.parametrize("prefix", ["model.", "model.language_model.", "language_model.model."])
    def test_decoder_prefixes(self, prefix: str, directory: Path) -> None:
        checkpoint = save(directory, {prefix + "embed_tokens.weight": torch.ones(8, 4), "model.x.y": torch.ones(1)})
        assert checkpoint.prefix == prefix
        tensor = checkpoint.resolve("embed_tokens.weight")
        assert tensor is not None
        assert tensor.name == prefix + "embed_tokens.weight"
        assert checkpoint.resolve("norm.weight") is None

    @pytest.mark.parametrize("name", ["lm_head.weight", "language_model.lm_head.weight"])
    def test_head_names(self, name: str, directory: Path) -> None:
        checkpoint = save(directory, {"model.embed_tokens.weight": torch.ones(8, 4), name: torch.zeros(8, 4)})
        head = checkpoint.resolve("lm_head.weight")
        assert head is not None
        assert head.name == name
        assert checkpoint.match([EMBEDDING, HEAD], []).groups == {}
        assert not checkpoint.read("lm_head.weight").any()

    def test_text_config_is_the_decoders_part(self, directory: Path) -> None:
        write_raw(directory / "model.safetensors", two_tensors())
        assert Checkpoint.open(directory).text_config == {"model_type": "gemma3_text"}
        nested = {"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}}
        (directory / "config.json").write_text(json.dumps(nested))
        checkpoint = Checkpoint.open(directory)
        assert checkpoint.config == nested
        assert checkpoint.text_config == {"model_type": "gemma3n_text"}
        (directory / "config.json").write_text('{"text_config": 3}')
        checkpoint = Checkpoint.open(directory)
        assert one_line(lambda: checkpoint.text_config).endswith("config.json: text_config is 3; expected an object")

    def test_revision_is_the_commit_of_a_hub_snapshot(self, tmp_path: Path) -> None:
        commit = "0123456789abcdef0123456789abcdef01234567"
        for path, revision in ((tmp_path / "snapshots" / commit, commit), (tmp_path / "snapshots" / "mine", None)):
            path.mkdir(parents=True)
            (path / "config.json").write_text("{}")
            write_raw(path / "model.safetensors", two_tensors())
            assert Checkpoint.open(path).revision == revision


class TestMatch:
    @pytest.fixture
    def checkpoint(self, directory: Path) -> Checkpoint:
        write_raw(directory / "model.safetensors", two_tensors())
        return Checkpoint.open(directory)

    def test_all_claimed(self, checkpoint: Checkpoint) -> None:
        unconverted = checkpoint.match([EMBEDDING, NORM, TIED_HEAD], [])
        assert unconverted.groups == {}
        assert unconverted.nbytes == 0

    def test_what_stays_behind_is_listed_by_the_prefix_that_allows_it(self, directory: Path) -> None:
        tensors = {
            "model.language_model.embed_tokens.weight": torch.ones(8, 4),
            "model.language_model.layers.20.self_attn.k_proj.weight": torch.ones(2, 4),
            "model.language_model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
            "model.language_model.rotary_emb_local.inv_freq": torch.ones(2),
            "model.vision_tower.timm_model.conv.weight": torch.ones(3, dtype=torch.float16),
            "vision_tower.steps": torch.ones(1, dtype=torch.int64),
            "multi_modal_projector.mm_input_projection_weight": torch.ones(4),
        }
        checkpoint = save(directory, tensors)
        ignored = ["vision_tower.", "multi_modal_projector.", "audio_tower.", "layers.20.self_attn.k_proj."]
        unconverted = checkpoint.match([EMBEDDING], ignored)
        assert {group: {t.name for t in tensors} for group, tensors in unconverted.groups.items()} == {
            "layers.20.self_attn.k_proj.": {"model.language_model.layers.20.self_attn.k_proj.weight"},
            "inv_freq (follows from config.json)": {
                "model.language_model.layers.0.self_attn.rotary_emb.inv_freq",
                "model.language_model.rotary_emb_local.inv_freq",
            },
            "vision_tower.": {"model.vision_tower.timm_model.conv.weight", "vision_tower.steps"},
            "multi_modal_projector.": {"multi_modal_projector.mm_input_projection_weight"},
        }
        assert unconverted.nbytes == 32 + 8 + 8 + 6 + 8 + 16

    @pytest.mark.parametrize("name", ["lm_head.weight", "language_model.lm_head.weight"])
    def test_a_tied_head_may_be_stored_as_a_copy_but_not_as_another(self, name: str, directory: Path) -> None:
        embedding = random_tensor("BF16", 8, 4)
        for copy in (embedding.clone(), embedding.float()):
            checkpoint = save(directory, {"model.embed_tokens.weight": embedding, name: copy})
            unconverted = checkpoint.match([EMBEDDING, TIED_HEAD], [])
            assert [t.name for t in unconverted.groups["lm_head (equals embed_tokens)"]] == [name]
        other = embedding.clone()
        other[7, 3] = 0.0
        for head in (other, other.float()):
            checkpoint = save(directory, {"model.embed_tokens.weight": embedding, name: head})
            assert one_line(lambda: checkpoint.match([EMBEDDING, TIED_HEAD], [])) == (  # noqa: B023
                f"{name}: differs from model.embed_tokens.weight, which config.json says is the head; "
                'set "tie_word_embeddings": false there, or remove the tensor'
            )

    def test_missing_tensors(self, checkpoint: Checkpoint) -> None:
        missing = [TensorSpec(f"layers.{i}.x", f"layers.{i}.x", (4,), Role.NORM) for i in range(5)]
        assert one_line(lambda: checkpoint.match([EMBEDDING, NORM, missing[0]], [])) == (
            f"{checkpoint.path}: layers.0.x is missing; incomplete checkpoint, or config.json of another"
        )
        assert one_line(lambda: checkpoint.match([EMBEDDING, NORM, *missing], [])) == (
            f"{checkpoint.path}: layers.0.x, layers.1.x, layers.2.x and 2 more are missing; "
            "incomplete checkpoint, or config.json of another"
        )

    def test_unclaimed_tensor(self, checkpoint: Checkpoint) -> None:
        assert one_line(lambda: checkpoint.match([EMBEDDING], ["vision_tower."])) == (
            f"{checkpoint.path}: model.norm.weight is not part of this model; "
            "convert the checkpoint that config.json describes"
        )

    @pytest.mark.parametrize("shape", [(4, 8), (8, 5), (32,), (8, 4, 1)])
    def test_wrong_shape(self, shape: tuple[int, ...], checkpoint: Checkpoint) -> None:
        spec = TensorSpec("embed_tokens.weight", "embed_tokens.weight", shape, Role.EMBEDDING)
        assert one_line(lambda: checkpoint.match([spec, NORM], [])) == (
            f"model.embed_tokens.weight: shape [8, 4], expected {list(shape)} by config.json; "
            "they belong to different models"
        )

    @pytest.mark.parametrize(
        ("dtype", "name"), [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.float8_e4m3fn, "F8_E4M3"),
                            (torch.int32, "I32"), (torch.bool, "BOOL")],
    )  # fmt: skip
    def test_wrong_dtype(self, dtype: torch.dtype, name: str, directory: Path) -> None:
        checkpoint = save(directory, {"model.embed_tokens.weight": torch.ones(8, 4).to(dtype)})
        assert one_line(lambda: checkpoint.match([EMBEDDING], [])) == (
            f"model.embed_tokens.weight: dtype {name}, expected BF16, F16, F32; use the checkpoint before quantisation"
        )
