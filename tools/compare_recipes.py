"""Our ways to store weights beside those of ai-edge-quantizer and llama.cpp, on one model and one text, at equal size.

    python -m tools.compare_recipes CHECKPOINT [--tokens-file TOKENS.bin] [--tokens 8192] [--calibrate TEXT]

Attention, feed-forward and per-layer embedding matrices are stored by each recipe's own code (the packages
ai-edge-quantizer and gguf), everything else as our recipe `int4-fast` says; the model is run in float32 with what is
read back. Ours is balanced and turned, as bundles are. Then our recipes int4 and int8 whole, as they ship.

The text is a third each of tests/fixtures/heldout: prose, languages, code. For models with a tokenizer of their own,
TOKENS.bin holds uint16 token ids (tests/fixtures/val.bin). TEXT is what calibration reads, built-in unless given; the
two have nothing in common. What the table says of the real Gemma and of the fixtures is in converter/QUALITY.md.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from types import MappingProxyType
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.layers import calibrate
from gemma_edge.converter.calibrate.measure import RoundedWeights
from gemma_edge.converter.calibrate.planning import plan_for
from gemma_edge.converter.calibrate.spool import Spool
from gemma_edge.converter.calibrate.step import balanced_plan, calibration_windows
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import NO_HOOKS, Hooks, Substitute
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.plan.target import Target, calibration_text
from gemma_edge.converter.progress import silent
from gemma_edge.converter.quality.figures import Quality, QualitySums
from gemma_edge.converter.quantize.recipes import Storage
from gemma_edge.converter.quantize.stream import NO_QUANTIZERS, Quantizer
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.runtime.formats.encoding import Encoding
from tools.heldout import NAMES, heldout_windows

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
class Ours:
    """A plan of ours: what is stored how, and the model whose weights are turned and balanced for that."""

    plan: Plan
    model: StreamingModel

    @classmethod
    def of(cls, checkpoint: Path, target: str, recipe: str | None = None) -> "Ours":
        """As `convert --target TARGET --recipe RECIPE` decides."""
        source, plan = plan_for(Target.parse(target, recipe=recipe), checkpoint)
        plan = balanced_plan(plan, source, silent)
        return cls(plan, StreamingModel(source, plan.model))

    def storages(self, block: int = 0) -> dict[str, Storage]:
        """The plan's, or with int4 matrices in blocks."""
        recipe = self.plan.target.recipe_for(self.plan.model)
        recipe = recipe.with_blocks(block) if block else recipe
        return {spec.name: recipe.storage(spec) for spec in self.specs}

    @property
    def specs(self) -> list[TensorSpec]:
        """Of all tensors."""
        return list(self.plan.model.tensors.values())


@dataclass(frozen=True)
class Line:
    """Of the table. nbytes: of all tensors."""

    name: str
    nbytes: int
    quality: Quality


@dataclass(frozen=True)
class Comparison:
    """One checkpoint, its text [B, T], and what the head reads of that in float32, [B * T, D]."""

    path: Path
    checkpoint: Checkpoint
    model: StreamingModel
    windows: NDArray[np.int32]
    exact: Float32
    text: str | Path

    @classmethod
    def of(cls, path: Path, windows: NDArray[np.int32], text: str | Path) -> "Comparison":
        """Run the float32 model."""
        checkpoint, plan = plan_for(Target.parse("custom-fp32"), path)
        model = StreamingModel(checkpoint, plan.model)
        return cls(path, checkpoint, model, windows, model.hidden(windows, NO_HOOKS), text)

    def ours(self, name: str, ours: Ours, storages: Mapping[str, Storage], *, calibrate_: bool = False) -> Line:
        """With every value rounded for itself, or for the text."""
        nbytes = sum(storages[spec.name].encoding.nbytes(spec.shape) for spec in ours.specs)
        with TemporaryFile() as file:
            quantizers: Mapping[str, Quantizer] = NO_QUANTIZERS
            if calibrate_:
                text = self.calibration_windows()
                quantizers = calibrate(self.checkpoint, ours.model, storages, text, Spool(file), lambda _n: None)
            weights = RoundedWeights(self.checkpoint, ours.model, storages, quantizers)
            return Line(name, nbytes, self._quality(ours.model, weights))

    def foreign(self, theirs: Foreign, rest: Ours) -> Line:
        """Another project's rounding of the compared roles, ours of the rest, nothing turned or balanced."""
        specs = self.model.model.tensors
        recipe = rest.plan.target.recipe_for(self.model.model)
        storages = {spec.name: recipe.storage(replace(spec, parts=1)) for spec in specs.values()}
        compared = {name for name, spec in specs.items() if spec.role in COMPARED and len(spec.shape) == 2}
        own = RoundedWeights(self.checkpoint, self.model, storages)

        def weights(name: str, first: int, rows: Float32) -> Float32:
            return theirs.restored(name, rows) if name in compared else own(name, first, rows)

        sizes = (theirs.nbytes if name in compared else storages[name].encoding.nbytes for name in specs)
        nbytes = sum(size(spec.shape) for size, spec in zip(sizes, specs.values(), strict=True))
        return Line(theirs.name, nbytes, self._quality(self.model, weights))

    def grams(self) -> dict[str, Float32]:
        """Mean of x x^T over the inputs x of every compared matrix, on the text that ours are calibrated on."""
        found: dict[str, Float32] = {}
        compared = {name for name, spec in self.model.model.tensors.items() if spec.role in COMPARED}

        def note(name: str, inputs: Float32) -> None:
            if name in compared:
                found[name] = inputs.T @ inputs / np.float32(len(inputs))

        self.model.hidden(self.calibration_windows(), Hooks(note))
        return found

    def calibration_windows(self) -> NDArray[np.integer[Any]]:
        """Token ids [B, T]."""
        return calibration_windows(calibration_text(self.text), self.model.model, self.checkpoint)

    def _quality(self, model: StreamingModel, weights: Substitute) -> Quality:
        hooks = Hooks(None, weights)
        found = model.hidden(self.windows, hooks)
        sums = QualitySums.of(self.windows)
        runs = self.model.logit_columns([(self.exact, NO_HOOKS)]), model.logit_columns([(found, hooks)])
        for (first, exact), (_, stored) in zip(*runs, strict=True):
            sums.add(first, next(exact), next(stored))
        return sums.quality()


def lines(comparison: Comparison) -> Iterator[Line]:
    """One size after another."""
    fast = Ours.of(comparison.path, "custom-int4", "int4-fast")
    grams = comparison.grams()
    for block in (0, 32):
        for algorithm in ("naive_min_max_quantize", "octav", *CALIBRATED_ALGORITHMS):
            yield comparison.foreign(ai_edge(algorithm, block, grams), fast)
        if block:
            yield comparison.foreign(llama_cpp("Q4_0"), fast)
        storages = fast.storages(block)
        yield comparison.ours(f"ours{_blocks(block)}", fast, storages)
        yield comparison.ours(f"ours, calibrated{_blocks(block)}", fast, storages, calibrate_=True)
    for kind in ("Q4_1", "Q5_0", "Q8_0"):
        yield comparison.foreign(llama_cpp(kind), fast)
    for target in ("custom-int4", "custom-int8"):
        shipped = Ours.of(comparison.path, target)
        yield comparison.ours(f"ours, --target {target}", shipped, shipped.storages())
        if target == "custom-int4":
            name = f"ours, --target {target} --calibrate"
            yield comparison.ours(name, shipped, shipped.storages(), calibrate_=True)


def _blocks(block: int) -> str:
    return f", blocks of {block}" if block else ", a scale per row"


def _heldout(checkpoint: Path, tokens: int) -> NDArray[np.int32]:
    """Windows of all three texts."""
    vocabulary = Checkpoint.open(checkpoint).text_config["vocab_size"]
    count = -(-tokens // (WINDOW_TOKENS * len(NAMES)))
    texts = [heldout_windows(name, checkpoint, vocabulary, tokens=WINDOW_TOKENS, count=count) for name in NAMES]
    return np.concatenate(texts)


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--tokens-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="uint16 token ids, for models with a tokenizer of their own.",
)
@click.option("--tokens", default=8192, show_default=True)
@click.option("--calibrate", default="built-in", show_default=True, help="The text that calibration reads.")
def main(checkpoint: Path, tokens_file: Path | None, tokens: int, calibrate: str) -> None:
    """Print the table as Markdown."""
    if tokens_file is None:
        windows = _heldout(checkpoint, tokens)
    else:
        ids = np.fromfile(tokens_file, np.uint16, tokens // WINDOW_TOKENS * WINDOW_TOKENS)
        windows = ids.astype(np.int32).reshape(-1, WINDOW_TOKENS)
    title = f"{checkpoint.name}, {windows.size} tokens"
    click.echo(f"| {title} | MB | KL, 1e-3 nats | top-1, % | perplexity |\n|---|---|---|---|---|")
    for line in lines(Comparison.of(checkpoint, windows, calibrate)):
        found = line.quality
        figures = f"{found.kl * 1e3:.3f} | {found.top1 * 100:.1f} | x {found.perplexity_ratio:.4f}"
        click.echo(f"| {line.name} | {line.nbytes / 1e6:.2f} | {figures} |")


if __name__ == "__main__":
    main()
