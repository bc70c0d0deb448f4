"""Activations on disk: whether they are, how many bytes they take, and what a full disk does."""

import weakref
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.disk_arrays import _Files, arrays_in
from gemma_edge.converter.calibrate.layers import calibrate
from gemma_edge.converter.calibrate.spool import Spool
from gemma_edge.converter.calibrate.step import activation_bytes_per_token, calibration_windows
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.plan.target import calibration_text
from gemma_edge.converter.quantize.recipes import Recipe
from gemma_edge.runtime.memory.reading import read_memory_exact


def test_they_are_no_anonymous_memory(tmp_path: Path) -> None:
    before = read_memory_exact()
    array = arrays_in(tmp_path)((64, 1 << 18))
    array[:] = 1
    after = read_memory_exact()
    assert after.anon_bytes - before.anon_bytes < array.nbytes / 4
    assert after.anon_bytes + after.file_bytes + after.shmem_bytes >= before.anon_bytes + array.nbytes
    assert not list(tmp_path.iterdir())


def test_files_serve_again_and_never_take_more_than_arrays_did(tmp_path: Path) -> None:
    files = _Files(tmp_path)
    first, second = files.allocate((3, 1000)), files.allocate((500,))
    part = first[1:]
    del first
    assert not files.spare  # a part of it is in use
    del part
    assert [memory.size for memory in files.spare] == [3000]
    again = files.allocate((1000, 3))
    assert not files.spare
    assert again.shape == (1000, 3)
    del again, second
    large = files.allocate((3200,))
    assert files.living + sum(memory.nbytes for memory in files.spare) <= files.peak == 14000
    del large
    assert files.living == 0


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device|File too large"):
        arrays_in(tmp_path)((1 << 24, 1 << 24))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])
def test_they_take_what_a_conversion_asks_the_disk_for(name: str, val_bin: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(val_bin.parent / name)
    living = peak = 0

    def counted(shape: tuple[int, ...]) -> NDArray[np.float32]:
        nonlocal living, peak
        array = arrays_in(tmp_path)(shape)
        living += array.nbytes
        peak = max(peak, living)
        weakref.finalize(array.base, freed, array.nbytes)
        return array

    def freed(nbytes: int) -> None:
        nonlocal living
        living -= nbytes

    model = StreamingModel.open(checkpoint, counted)
    windows = calibration_windows(calibration_text("built-in"), model.model, checkpoint)[:8]
    recipe = Recipe.named("int4")
    storages = {spec.name: recipe.storage(spec) for spec in model.model.tensors.values()}
    with (tmp_path / "spool").open("w+b") as spool:
        calibrate(checkpoint, model, storages, windows, Spool(spool), lambda _: None)
    asked = windows.size * activation_bytes_per_token(model.model)
    assert 0.5 * asked < peak <= asked
    assert living == 0
