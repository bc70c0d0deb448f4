"""When signal to noise tells of a mistake, and when only of rounding that adds up from layer to layer."""

import pytest

from gemma_edge.converter.verify.find.findings import computation_findings, layer_of
from gemma_edge.converter.verify.find.layers import LayerReport, layer_reports
from gemma_edge.converter.verify.measure.similarity import Similarity


def _layers(*cache_snr_db: float | None) -> list[LayerReport]:
    """Layers whose keys are so far off; None: without a cache."""
    found = {
        ("keys", layer): Similarity(1.0, 1.0, 1.0, 10 ** (-snr_db / 10))
        for layer, snr_db in enumerate(cache_snr_db)
        if snr_db is not None
    }
    return list(layer_reports(range(len(cache_snr_db)), found))


def test_noise_that_adds_up_is_no_mistake() -> None:
    """As measured on the synthetic E2B, whose random weights double every difference."""
    layers = _layers(41.8, 31.3, 24.5, 19.3, 15.5, 12.3, 9.8, 7.8, 6.1, None, None)
    assert not any(layer.departs for layer in layers)
    assert computation_findings(layers, left=0.9) == []


@pytest.mark.parametrize(
    ("cache_snr_db", "layer"), [((3.0, 2.0), 0), ((48.0, 47.0, 17.0, 16.0), 2), ((45.0, 30.0, None, 12.0), 3)]
)
def test_a_sudden_drop_is_one_and_is_told_once(cache_snr_db: tuple[float | None, ...], layer: int) -> None:
    layers = _layers(*cache_snr_db)
    assert [report.layer for report in layers if report.departs] == [layer]
    [finding] = computation_findings(layers, left=0.9)
    assert finding.name == f"wrong computation in or before layer {layer}"
    assert finding.evidence.startswith(f"{cache_snr_db[layer]} dB between the runtime's cache and")


def test_a_drop_behind_the_last_cache_shows_in_the_logits() -> None:
    layers = _layers(48.0, 47.0, None, None)
    assert computation_findings(layers, left=1e-4) == []
    [finding] = computation_findings(layers, left=0.1)
    assert finding.name == "wrong computation after layer 1"
    assert finding.evidence == "10.0 dB between the runtime's logits and those of numpy, 47.0 in that layer"


def test_without_a_cache_nothing_is_said() -> None:
    assert computation_findings(_layers(None, None), left=0.9) == []


def test_the_layer_of_a_weight() -> None:
    assert layer_of("layers.12.mlp.up_proj.weight") == 12
    assert layer_of("altup_projections.0.weight") is None
