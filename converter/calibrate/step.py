"""The part of a conversion that runs text through the checkpoint: before a byte of the bundle is written."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.disk_arrays import arrays_in
from gemma_edge.converter.calibrate.layers import calibrate, is_calibrated
from gemma_edge.converter.calibrate.spool import Spool
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.products import one_thread_each
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.plan.target import BUILT_IN_TEXT, CalibrationText, Target, TargetError, calibration_text
from gemma_edge.converter.progress import Stage
from gemma_edge.converter.quantize.balance import balanced
from gemma_edge.converter.quantize.recipes import ENCODER_ROLES
from gemma_edge.converter.quantize.stream import NO_QUANTIZERS, Quantizer
from gemma_edge.converter.tensors import Role
from gemma_edge.converter.tokenizer.windows import token_windows

WINDOW_TOKENS: Final = 256
LARGEST_TOKENS: Final = 16_384
MEASURING_TOKENS: Final = 1024
MEASURING_WINDOW_TOKENS: Final = 128
BALANCING_WINDOWS: Final = 2
BALANCING_WINDOW_TOKENS: Final = 64
ACTIVATION_BYTES: Final = 4 << 30
"""What the activations of both runs may take together, on disk."""


@contextmanager
def calibrated(plan: Plan, source: Checkpoint, directory: Path, stage: Stage) -> Iterator[Mapping[str, Quantizer]]:
    """How to round, by tensor name, while the block runs; nothing special where no text was asked for.

    directory: takes temporary files of `spool_bytes`.
    """
    text = plan.target.calibration
    if text is None:
        yield NO_QUANTIZERS
        return
    windows = calibration_windows(text, plan.model, source)
    model = StreamingModel(source, plan.model, arrays_in(directory))
    with TemporaryFile(dir=directory) as file:
        on_bytes = stage("calibrate", 2 * model.read_bytes(0))
        with one_thread_each():
            yield calibrate(source, model, plan.storages, windows, Spool(file), on_bytes)


def check_calibration(plan: Plan) -> None:
    """Raises TargetError where a text was given, and nothing would be rounded for it."""
    if plan.target.calibration is not None and not rounds_for_a_text(plan):
        raise TargetError(
            f"calibrate: recipe {plan.target.recipe.name} has no weights below 8 bits that could be rounded for a "
            "text; leave --calibrate out"
        )


def rounds_for_a_text(plan: Plan) -> bool:
    """Whether any weight has less than 8 bits and is multiplied: a table's rows are only read."""
    rounded = (t for t in plan.tensors if t.spec.role is not Role.EMBEDDING and t.spec.role not in ENCODER_ROLES)
    return any(is_calibrated(tensor.storage) for tensor in rounded)


def calibration_windows(text: CalibrationText, model: Model, source: Checkpoint) -> NDArray[np.integer[Any]]:
    """As much of a text as its activations leave room for, [B, WINDOW_TOKENS]."""
    return _windows(text, model, source, WINDOW_TOKENS, _calibration_tokens(model) // WINDOW_TOKENS)


def measuring_windows(request: Target, model: Model, source: Checkpoint) -> NDArray[np.integer[Any]]:
    """What the loss of an encoding is measured on: some of the calibration text, or of the built-in one."""
    text = request.calibration or calibration_text(BUILT_IN_TEXT)
    return _windows(text, model, source, MEASURING_WINDOW_TOKENS, MEASURING_TOKENS // MEASURING_WINDOW_TOKENS)


def balanced_plan(plan: Plan, source: Checkpoint, stage: Stage) -> Plan:
    """With columns scaled, where the recipe says so; it takes one run of a short text through the checkpoint."""
    if not plan.target.recipe_for(plan.model).balance:
        return plan
    integers = {name: s.encoding.kind == "int" and s.grid is None for name, s in plan.storages.items()}
    windows = _windows(calibration_text(BUILT_IN_TEXT), plan.model, source, BALANCING_WINDOW_TOKENS, BALANCING_WINDOWS)
    on_bytes = stage("balance", StreamingModel(source, plan.model).body_bytes)
    return plan.with_folds(balanced(source, plan.model, integers, windows, on_bytes))


def _windows(
    text: CalibrationText, model: Model, source: Checkpoint, tokens: int, count: int
) -> NDArray[np.integer[Any]]:
    vocabulary = model.config.vocab_size
    return token_windows(text.content, text.name, source.side_path, vocabulary, tokens=tokens, count=count)


def _calibration_tokens(model: Model) -> int:
    """At most; whole windows."""
    tokens = min(LARGEST_TOKENS, ACTIVATION_BYTES // activation_bytes_per_token(model))
    return max(1, tokens // WINDOW_TOKENS) * WINDOW_TOKENS


def activation_bytes_per_token(model: Model) -> int:
    """Of both runs, where most values are alive: inside the feed-forward part of a layer."""
    config = model.config
    streams, hidden, per_layer = config.residual_streams, config.ffn_width, config.ple_values
    return 2 * 4 * ((2 * streams + 4) * config.width + 3 * hidden + per_layer)


def spool_bytes(plan: Plan) -> int:
    """What `calibrated` needs on disk for a while."""
    if plan.target.calibration is None:
        return 0
    layers = {tensor.spec.name: tensor for tensor in plan.tensors if tensor.spec.role not in (Role.PLE, Role.HEAD)}
    weight_bytes = sum(tensor.nbytes for tensor in layers.values() if is_calibrated(tensor.storage))
    return weight_bytes + _calibration_tokens(plan.model) * activation_bytes_per_token(plan.model)
