"""Our int4 beside that of ai-edge-quantizer and llama.cpp, on one model and one text, at equal size.

    python -m tools.compare_recipes CHECKPOINT TOKENS.bin [--tokens 8192] --calibrate TEXT

Attention, feed-forward and per-layer embedding matrices are stored by each recipe's own code (the packages
ai-edge-quantizer and gguf), everything else as our int4 recipe says; the float32 model is run with what is read back.
TOKENS.bin holds uint16 token ids (tests/fixtures/val.bin); TEXT is what calibration reads, built-in unless given
(tests/fixtures/calibration.txt, of the kind that the fixtures were trained on); neither shares anything with the other.
The result for the trained fixtures is in converter/QUALITY.md.
"""

import argparse
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.layers import calibrate
from gemma_edge.converter.calibrate.measure import Divergence, StoredWeights, Yardstick
from gemma_edge.converter.calibrate.spool import Spool
from gemma_edge.converter.calibrate.step import calibration_text, calibration_windows
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import Hooks
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.quantize.quantize import Search
from gemma_edge.converter.quantize.recipes import Recipe, Storage
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.runtime.formats.encoding import Encoding

Float32 = NDArray[np.float32]
WINDOW_TOKENS = 256
COMPARED = (Role.ATTENTION, Role.FFN, Role.PLE)
CALIBRATED_ALGORITHMS = ("gptq", "oscar")
NO_GRAMS: Mapping[str, Float32] = MappingProxyType({})


@dataclass(frozen=True)
class Foreign:
    """Another project's way to store a matrix. restored: name, rows [n, k] -> what is read back. nbytes: by shape."""

    name: str
    restored: Callable[[str, Float32], Float32]
    nbytes: Callable[[tuple[int, ...]], int]


def llama_cpp(kind: str) -> Foreign:
    """A format of llama.cpp, as its own Python package quantizes and reads it."""
    import gguf

    format_ = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[format_]

    def restored(_name: str, rows: Float32) -> Float32:
        back: Float32 = gguf.quants.dequantize(gguf.quants.quantize(rows, format_), format_)
        return back

    return Foreign(f"llama.cpp {kind}", restored, lambda shape: shape[0] * shape[1] // block * block_bytes)


def ai_edge(algorithm: str, block: int, grams: Mapping[str, Float32] = NO_GRAMS) -> Foreign:
    """An algorithm of ai-edge-quantizer for FULLY_CONNECTED weights in symmetric int4.

    grams: of each matrix' inputs, for algorithms that calibrate. A matrix without, the table, is stored by "octav".
    """
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor

    granularity = qtyping.QuantGranularity[f"BLOCKWISE_{block}" if block else "CHANNELWISE"]
    config = qtyping.TensorQuantizationConfig(4, symmetric=True, granularity=granularity)
    recipe = qtyping.OpQuantizationConfig(
        weight_tensor_config=config, compute_precision=qtyping.ComputePrecision.INTEGER
    )
    op = qtyping.OpInfo(None, qtyping.TFLOperationName.FULLY_CONNECTED, 0, recipe)

    def restored(name: str, rows: Float32) -> Float32:
        is_calibrated = algorithm in CALIBRATED_ALGORITHMS and name in grams
        chosen = "octav" if algorithm in CALIBRATED_ALGORITHMS and not is_calibrated else algorithm
        module: Any = importlib.import_module(f"ai_edge_quantizer.algorithms.uniform_quantize.{chosen}")
        seen = {"hessian": 2 * grams[name].copy(), "mu2": grams[name].diagonal()} if is_calibrated else {}
        given = {"activation_tensor_qsv": seen} if is_calibrated else None
        stored = module.get_tensor_quant_params(op, config, tensor_content=rows, tensor_qsv=given)
        back: Float32 = uniform_quantize_tensor.uniform_dequantize(stored.quantized_data, stored).astype(np.float32)
        # oscar scales columns, and has the inputs multiplied by the inverse as an op of its own.
        back *= (stored.custom_algorithm_param or {}).get("multiplier", np.float32(1))
        return back

    encoding = Encoding("int", 4, block)
    return Foreign(f"ai-edge-quantizer {algorithm}{_blocks(block)}", restored, encoding.nbytes)


@dataclass(frozen=True)
class Comparison:
    """One model and one text."""

    checkpoint: Checkpoint
    model: StreamingModel
    yardstick: Yardstick
    recipe: Recipe
    text: str | Path

    @classmethod
    def of(cls, path: Path, windows: NDArray[np.int32], text: str | Path) -> "Comparison":
        """Run the float32 model."""
        checkpoint = Checkpoint.open(path)
        model = StreamingModel.open(checkpoint)
        return cls(checkpoint, model, Yardstick.of(model, windows), Recipe.named("int4-fast"), text)

    def storages(self, block: int, search: Search, with_layers: bool = True) -> dict[str, Storage]:
        """Our int4 recipe, with scales per block where the matrix is compared and may have them.

        with_layers: also for each layer's part of a row of per-layer embeddings, as bundles have them.
        """
        recipe = self.recipe.with_blocks(block) if block else self.recipe
        specs = self._specs if with_layers else [replace(spec, parts=1) for spec in self._specs]
        return {spec.name: replace(recipe.storage(spec), search=search) for spec in specs}

    def nbytes(self, storages: dict[str, Storage]) -> int:
        """Of all tensors."""
        return sum(storages[spec.name].encoding.nbytes(spec.shape) for spec in self._specs)

    def ours(self, block: int, search: Search, with_layers: bool) -> Iterator[tuple[str, int, Divergence]]:
        """Each value rounded for itself."""
        storages = self.storages(block, search, with_layers)
        name = "round to nearest" if search is Search.ABSMAX else "least squared error"
        weights = StoredWeights(self.checkpoint, self.model, storages)
        yield f"ours, {name}{_blocks(block, with_layers)}", self.nbytes(storages), self.yardstick.divergence(weights)

    def calibrated(self, block: int, with_layers: bool) -> Iterator[tuple[str, int, Divergence]]:
        """--calibrate with the given text."""
        storages = self.storages(block, Search.MSE, with_layers)
        with TemporaryFile() as file:
            rounds = calibrate(self.checkpoint, self.model, storages, self._text(), Spool(file), lambda _n: None)
            weights = StoredWeights(self.checkpoint, self.model, storages, rounds)
            name = f"ours, calibrated{_blocks(block, with_layers)}"
            yield name, self.nbytes(storages), self.yardstick.divergence(weights)

    def foreign(self, theirs: Foreign) -> Iterator[tuple[str, int, Divergence]]:
        """Another project's rounding of the compared roles, ours of the rest."""
        storages = self.storages(0, Search.MSE, with_layers=False)
        compared = {spec.name: spec for spec in self._specs if spec.role in COMPARED}
        own = StoredWeights(self.checkpoint, self.model, storages)

        def weights(name: str, first: int, rows: Float32) -> Float32:
            return theirs.restored(name, rows) if name in compared else own(name, first, rows)

        nbytes = self.nbytes(storages)
        nbytes += sum(theirs.nbytes(s.shape) - storages[s.name].encoding.nbytes(s.shape) for s in compared.values())
        yield theirs.name, nbytes, self.yardstick.divergence(weights)

    def grams(self) -> dict[str, Float32]:
        """Mean of x x^T over the inputs x of every compared matrix, on the text that ours are calibrated on."""
        found: dict[str, Float32] = {}
        compared = {spec.name for spec in self._specs if spec.role in COMPARED}

        def note(name: str, inputs: Float32) -> None:
            if name in compared:
                found[name] = inputs.T @ inputs / np.float32(len(inputs))

        self.model.hidden(self._text(), Hooks(note))
        return found

    def _text(self) -> NDArray[np.integer[Any]]:
        return calibration_windows(calibration_text(self.text), self.model.model, self.checkpoint)

    @property
    def _specs(self) -> list[TensorSpec]:
        return list(self.model.model.tensors.values())


def _blocks(block: int, with_layers: bool = False) -> str:
    return f", blocks of {block}" if block else ", a scale per row" + " and layer" * with_layers


def rows(comparison: Comparison) -> Iterator[tuple[str, int, Divergence]]:
    """The lines of the table, one size after another."""
    grams = comparison.grams()
    for block in (0, 32):
        yield from comparison.ours(block, Search.ABSMAX, with_layers=bool(block))
        for algorithm in ("naive_min_max_quantize", "octav", *CALIBRATED_ALGORITHMS):
            yield from comparison.foreign(ai_edge(algorithm, block, grams))
        if block:
            yield from comparison.foreign(llama_cpp("Q4_0"))
        for with_layers in (True,) if block else (False, True):
            yield from comparison.ours(block, Search.MSE, with_layers)
            yield from comparison.calibrated(block, with_layers)
    yield from comparison.foreign(llama_cpp("Q4_1"))
    yield from comparison.foreign(llama_cpp("Q5_0"))


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tokens_file", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--calibrate", default="built-in")
    arguments = parser.parse_args()

    ids = np.fromfile(arguments.tokens_file, np.uint16, arguments.tokens // WINDOW_TOKENS * WINDOW_TOKENS)
    windows = ids.astype(np.int32).reshape(-1, WINDOW_TOKENS)
    print(f"| {arguments.checkpoint.name}, {windows.size} tokens | KiB | KL, 1e-3 nats | top-1 |\n|---|---|---|---|")
    for name, nbytes, found in rows(Comparison.of(arguments.checkpoint, windows, arguments.calibrate)):
        print(f"| {name} | {nbytes / 1024:.1f} | {found.kl * 1e3:.3f} | {found.top1:.4f} |", flush=True)


if __name__ == "__main__":
    main()
