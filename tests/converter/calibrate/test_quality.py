"""What calibration is for: at equal size, predictions on other text move far less than with plain rounding."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pytest

from gemma_edge.converter.calibrate.layers import calibrate
from gemma_edge.converter.calibrate.measure import ReferenceText, RoundedWeights
from gemma_edge.converter.calibrate.spool import Spool
from gemma_edge.converter.calibrate.step import calibration_windows
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.plan.target import calibration_text
from gemma_edge.converter.quantize.quantize import Search
from gemma_edge.converter.quantize.recipes import Recipe

EVALUATED_TOKENS = 4096
WINDOW_TOKENS = 256


@pytest.mark.parametrize("fixture", ["tiny_gemma3", "tiny_gemma3n"])
def test_calibrated_int4_loses_less_than_half_of_what_plain_rounding_does(
    fixture: str, val_bin: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint = Checkpoint.open(request.getfixturevalue(fixture))
    model = StreamingModel.open(checkpoint)
    ids = np.fromfile(val_bin, np.uint16)[:EVALUATED_TOKENS]
    reference = ReferenceText.of(model, ids.astype(np.int32).reshape(-1, WINDOW_TOKENS))
    recipe = Recipe.named("int4")
    storages = {spec.name: recipe.storage(spec) for spec in model.model.tensors.values()}
    nearest = {name: replace(storage, search=Search.ABSMAX) for name, storage in storages.items()}
    with TemporaryFile() as file:
        text = calibration_windows(calibration_text(val_bin.with_name("calibration.txt")), model.model, checkpoint)[::4]
        quantizers = calibrate(checkpoint, model, storages, text, Spool(file), lambda _n: None)
        found = reference.divergence(RoundedWeights(checkpoint, model, storages, quantizers))
    plain = reference.divergence(RoundedWeights(checkpoint, model, nearest))
    usual = reference.divergence(RoundedWeights(checkpoint, model, storages))  # what `convert` writes without the flag
    print(f"{fixture}: round to nearest {plain}, searched {usual}, calibrated {found}")
    assert found.kl < 0.5 * plain.kl
    assert found.kl < 0.8 * usual.kl
    assert found.top1 > plain.top1
