"""The safetensors writer: what others read from it, and what an interruption leaves behind."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gemma_edge.converter.checkpoint.slices.shards import Header, write_shards

TENSORS = {f"t{i}": Header("F32", (i + 1, 8)) for i in range(20)}  # 6720 bytes


def values(name: str) -> Iterator[bytes]:
    rows, columns = TENSORS[name].shape
    for row in range(rows):
        yield np.full(columns, row, np.float32).tobytes()


@pytest.mark.parametrize(("shards", "files"), [(1, 1), (2, 2), (3, 3), (7, 7), (100, 19)])
def test_safetensors_reads_every_tensor_back(shards: int, files: int, tmp_path: Path) -> None:
    paths = write_shards(tmp_path, TENSORS, values, shards)
    assert len(paths) == files  # two of the smallest share one when 100 are asked for
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards > 1)
    read = {name: array for path in paths for name, array in load_file(path).items()}
    assert read.keys() == TENSORS.keys()
    for name, array in read.items():
        np.testing.assert_array_equal(array, np.frombuffer(b"".join(values(name)), np.float32).reshape(array.shape))
    if shards == 3:
        sizes = [path.stat().st_size for path in paths]
        assert max(sizes) - min(sizes) < 1500


def test_interrupted_writing_leaves_no_index_and_no_partial_file(tmp_path: Path) -> None:
    def interrupted(name: str) -> Iterator[bytes]:
        if name == "t15":
            raise KeyboardInterrupt
        return values(name)

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, TENSORS, interrupted, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["model-00001-of-00003.safetensors"]


def test_wrong_number_of_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="t0: 31 bytes, expected 32"):
        write_shards(tmp_path, TENSORS, lambda name: [b"".join(values(name))[:-1]], 1)
    assert list(tmp_path.iterdir()) == []
