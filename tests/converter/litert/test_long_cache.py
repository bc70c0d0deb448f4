"""Few queries over a long cache, in LiteRT as our runtime sets it up."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.litert.attention import SHORT_CACHE
from gemma_edge.converter.plan.cache_layout import CacheLayout
from gemma_edge.runtime.executors.litert.library import CompiledSection, aligned_zeros
from gemma_edge.runtime.executors.litert.partitions import partitions
from gemma_edge.runtime.formats.file_range import FileRange
from tests.converter.litert.test_attention import CHUNKS, TOLERANCE, Layer, worst_difference
from tests.converter.litert.tflite_runs import fill

LAYOUT = CacheLayout(SHORT_CACHE + 64, 4)
HEADS = [
    (4, 1),
    (4, 2),
    (16, 8),
    (16, 2),
]  # queries and KV heads; the last has more than one product for all heads takes


def section_of(layer: Layer, folder: Path) -> FileRange:
    """A file with the signatures verify, of 4 tokens, and run_1."""
    verify = layer.graph("verify", 4)
    verify.is_steps = True
    content = fill([verify, layer.graph("run_1", 1)], {}, {}, LAYOUT).content
    path = folder / "long.tflite"
    path.write_bytes(content)
    return FileRange(path, 0, len(content))


class Caches:
    """Keys and values of one layer, full of random numbers, and runs over them."""

    def __init__(self, section: FileRange) -> None:
        self._model = CompiledSection(section, 1, None)
        generator = np.random.default_rng(8)
        inputs = self._model.signatures["run_1"].inputs
        self._arrays = {name: aligned_zeros(tensor) for name, tensor in inputs.items() if name.startswith("kv_cache")}
        for cache in self._arrays.values():
            cache[...] = generator.standard_normal(cache.shape, np.float32)

    def run(self, name: str, rows: dict[str, NDArray[np.float32]], positions: Sequence[int]) -> NDArray[np.float32]:
        signature = self._model.signatures[name]
        given = {key: aligned_zeros(tensor) for key, tensor in signature.inputs.items() if key not in self._arrays}
        for key, values in rows.items():
            given[key][...] = values
        given["input_pos"][...] = positions
        y: NDArray[np.float32] = aligned_zeros(signature.outputs["y"])
        self._model.bind(name, {**self._arrays, **given, "y": y})()
        return y

    def close(self) -> None:
        self._model.close()


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_a_long_cache_gives_what_the_reference_does(heads: int, kv_heads: int) -> None:
    layout = CacheLayout(SHORT_CACHE + 64, 32)
    assert worst_difference(Layer(heads, kv_heads, window=None), layout, CHUNKS[:7]) < TOLERANCE


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_a_verification_of_a_long_cache_gives_what_steps_give(heads: int, kv_heads: int, tmp_path: Path) -> None:
    layer, start = Layer(heads, kv_heads, window=None), SHORT_CACHE + 3
    section = section_of(layer, tmp_path)
    rows = layer.rows(np.random.default_rng(5), 4)
    verifying, stepping = Caches(section), Caches(section)
    found = verifying.run("verify", rows, range(start, start + 4))
    for row in range(4):
        step = stepping.run("run_1", {name: values[:, row : row + 1] for name, values in rows.items()}, [start + row])
        assert np.array_equal(found[:, row : row + 1], step)
    verifying.close()
    stepping.close()


def test_xnnpack_takes_all_products_with_a_long_cache(tmp_path: Path) -> None:
    found = partitions(section_of(Layer(window=None), tmp_path), 1, None)
    assert found["run_1"].count == 1
    assert not any("FULLY_CONNECTED" in each.outside for each in found.values())
