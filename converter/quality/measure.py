"""What a conversion lost, measured while it runs: the weights that are being stored, against the checkpoint's own.

A text of at least 256 tokens goes through both, side by side, in a thread that follows the ones that store:
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

from gemma_edge.converter.calibrate.measure import RoundedWeights
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import Hooks
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.output import output_of
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.progress import Stage
from gemma_edge.converter.quality.side_by_side import Compared, SideBySide
from gemma_edge.converter.quality.tap import Tap
from gemma_edge.converter.quantize.recipes import Placement
from gemma_edge.converter.quantize.stream import NO_QUANTIZERS, Look, Quantizer
from gemma_edge.converter.tokenizer.windows import windows_of

TEXT: Final = "built-in"


@dataclass(frozen=True)
class Extent:
    """How much of the text is read. tokens: at most. window_tokens: of one window, at most."""

    tokens: int
    window_tokens: int


WHOLE: Final = Extent(1024, 256)
"""What `verify` reads unless told otherwise: all of the text."""

SHORT: Final = Extent(256, 64)
"""Of large models, as two runs of E2B over so many tokens are 2.5 TFLOP already. The windows lie all over the text. Its
parts differ much: in most of them Gemma 3 270M loses little in four bits, more where it knows a speech by heart, most
where it has read 200 words of that."""

_LARGE: Final = 1_500_000_000  # values of a decoder, without its tables


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
    plan: Plan, tokenizer: bytes, source: Checkpoint, quantizers: Mapping[str, Quantizer], stage: Stage
) -> Iterator[Measurement]:
    """Measure while the block stores the bundle. tokenizer: a serialised SentencePiece model."""
    windows = measured_windows(tokenizer, plan.context_tokens, extent_of(plan.model))
    model = StreamingModel(source, plan.model)
    tap = Tap(Counter(op.weight.name for op in model.linears), plan.storages)
    on_bytes = stage("measure", model.body_bytes + model.head_bytes(1))
    side_by_side = SideBySide(model, tap.pairs, bundle_hooks(plan, model, source, quantizers), on_bytes)

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


def extent_of(model: Model) -> Extent:
    """How much is read of this model."""
    values = sum(spec.values for spec in model.tensors.values() if Placement.of(spec.role) is Placement.RESIDENT)
    return SHORT if values > _LARGE else WHOLE


def measured_windows(tokenizer: bytes, context_tokens: int, extent: Extent) -> NDArray[np.integer[Any]]:
    """[B, T] of the text that `verify` reads, too: with `--limit` and `--window` as in `extent`, the same."""
    text = (files("gemma_edge.converter.quality") / "text.txt").read_text("utf-8")
    window_tokens = min(extent.window_tokens, context_tokens)
    count = max(1, extent.tokens // window_tokens)
    return windows_of(text, "the built-in text", tokenizer, tokens=window_tokens, count=count)


def bundle_hooks(
    plan: Plan, model: StreamingModel, source: Checkpoint, quantizers: Mapping[str, Quantizer] = NO_QUANTIZERS
) -> Hooks:
    """For a run that computes what the bundle of this plan does."""
    inputs = output_of(plan.target.format).kernel_inputs(plan)
    return Hooks(weights=RoundedWeights(source, model, plan.storages, quantizers), inputs=inputs)
