"""Calibration's progress: all of it is reported, in proportion to what an op costs."""

from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pytest

from gemma_edge.converter.calibrate.effort import efforts
from gemma_edge.converter.calibrate.layers import calibrate
from gemma_edge.converter.calibrate.spool import Spool
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.quantize.recipes import Recipe


@pytest.mark.parametrize("fixture", ["tiny_gemma3", "tiny_gemma3n"])
def test_all_bytes_are_reported_as_they_are_done(fixture: str, request: pytest.FixtureRequest) -> None:
    checkpoint = Checkpoint.open(request.getfixturevalue(fixture))
    model = StreamingModel.open(checkpoint)
    recipe = Recipe.named("int4")
    storages = {spec.name: recipe.storage(spec) for spec in model.model.tensors.values()}
    reported: list[int] = []
    with TemporaryFile() as file:
        calibrate(checkpoint, model, storages, np.full((1, 32), 5), Spool(file), reported.append)
    assert sum(reported) == 2 * model.read_bytes(0)
    assert min(reported) >= 0
    assert len(reported) == len(model.body)


def test_rounding_counts_where_an_input_is_met_first(tiny_gemma3: Path) -> None:
    model = StreamingModel.open(Checkpoint.open(tiny_gemma3))
    linears = {op.weight.name: i for i, op in enumerate(model.body) if isinstance(op, ir.Linear)}
    plain, calibrated = efforts(model.body, (), 1024), efforts(model.body, linears, 1024)
    more = {name for name, i in linears.items() if calibrated[i] > plain[i]}
    assert {name.split(".", 3)[-1] for name in more if name.startswith("layers.1.")} == {
        "k_proj.weight", "o_proj.weight", "gate_proj.weight", "down_proj.weight",
    }  # fmt: skip
