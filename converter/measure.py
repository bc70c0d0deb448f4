"""What a conversion lost, measured while it runs: the weights that are being stored, against the checkpoint's own.

A text of at least MEASURED_TOKENS tokens goes through both, side by side, in a thread that follows the ones that store:
no matrix is read or rounded twice. Where kernels take int8, inputs are rounded as there, so that the figures are those
of the bundle as it runs; what is left out are the bits of sums in another order, and a KV cache in fp16.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.activations import round_blocks, round_tokens
from gemma_edge.converter.calibrate.measure import StoredWeights
from gemma_edge.converter.checkpoint import Checkpoint
from gemma_edge.converter.emit.onnx_data import scale_block
from gemma_edge.converter.evaluate import StreamingModel
from gemma_edge.converter.evaluate_machine import Hooks, Inputs
from gemma_edge.converter.plan import Plan
from gemma_edge.converter.progress import Stage
from gemma_edge.converter.side_by_side import Compared, SideBySide
from gemma_edge.converter.stream import NO_ROUNDS, Look, Round
from gemma_edge.converter.tap import Tap
from gemma_edge.converter.target import Format
from gemma_edge.converter.windows import windows_of

Float32 = NDArray[np.float32]

TEXT: Final = "built-in"
MEASURED_TOKENS: Final = 256
"""More would be more certain, and take as much longer: two runs of E2B over so many are 2.5 TFLOP."""

WINDOW_TOKENS: Final = 64
"""The windows lie all over the text. Its parts differ more than longer windows would: Gemma 3 270M, int4 in blocks of
32, loses 0.3 nats in most of them and up to 2.4 where the checkpoint knows a speech by heart."""


@dataclass(frozen=True)
class Measurement:
    """A measurement under way. look: is shown all that is stored, see stream.Look."""

    look: Look
    windows: NDArray[np.integer[Any]]
    _tap: Tap
    _compared: Future[Compared]

    def result(self) -> Compared:
        """What was found, once all is stored. Raises CheckpointError as reading does."""
        self._tap.close()
        return self._compared.result()


@contextmanager
def measuring(
    plan: Plan, tokenizer: bytes, source: Checkpoint, rounds: Mapping[str, Round], stage: Stage
) -> Iterator[Measurement]:
    """Measure while the block stores the bundle. tokenizer: a serialised SentencePiece model."""
    windows = measured_windows(tokenizer, plan.context_tokens)
    model = StreamingModel(source, plan.model)
    tap = Tap(Counter(op.weight.name for op in model.linears), plan.storages)
    on_bytes = stage("measure", model.body_bytes + model.head_bytes(1))
    side_by_side = SideBySide(model, tap.pairs, bundle_hooks(plan, model, source, rounds), on_bytes)

    def compare() -> Compared:
        try:
            with np.errstate(all="ignore"):  # a model that computes no numbers is told by its figures
                return side_by_side.compare(windows)
        finally:
            tap.close()

    with ThreadPoolExecutor(1, thread_name_prefix="measure") as pool:
        try:
            yield Measurement(tap.put, windows, tap, pool.submit(compare))
        finally:
            tap.close()


def measured_windows(tokenizer: bytes, context_tokens: int) -> NDArray[np.integer[Any]]:
    """[B, T] of the text that `verify` reads, too: those of `verify --limit 256 --window 64`."""
    text = (files("gemma_edge.converter.verify") / "text.txt").read_text("utf-8")
    window_tokens = min(WINDOW_TOKENS, context_tokens)
    count = -(-MEASURED_TOKENS // window_tokens)
    return windows_of(text, "the built-in text", tokenizer, tokens=window_tokens, count=count)


def bundle_hooks(
    plan: Plan, model: StreamingModel, source: Checkpoint, rounds: Mapping[str, Round] = NO_ROUNDS
) -> Hooks:
    """For a run that computes what the bundle of this plan does."""
    return Hooks(weights=StoredWeights(source, model, plan.storages, rounds), inputs=kernel_inputs(plan))


def kernel_inputs(plan: Plan) -> Inputs:
    """What linear layers multiply in the plan's format: where their weights are integers, inputs rounded to int8."""
    storages = plan.storages
    is_onnx = plan.target.format is Format.ONNX

    def rounded(name: str, x: Float32) -> Float32:
        encoding = storages[name].encoding
        if encoding.kind == "float":
            return x
        if is_onnx:
            return round_blocks(x, scale_block(plan.specs[name].shape, encoding, is_table=False))
        return round_tokens(x)

    return rounded
