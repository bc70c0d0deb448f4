"""From what layers and weights showed to faults with a name."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from gemma_edge.converter.verify.find.faults import WRONG_NORMS, Finding
from gemma_edge.converter.verify.find.layers import Comparison, LayerReport, TensorReport

_LOWEST_OUTPUT_SNR_DB = 15.0  # what a layer gives is off by 18 %: no scale that was moved on purpose
_LARGEST_DROP_DB = 30.0  # 32 times the error, from the last cache to the logits, over all layers that share one
_NOTICEABLE_KL = 0.01  # nats: where weights differ and predictions do not, a recipe has moved scales on purpose
_NAMED = 3


def weight_findings(comparison: Comparison) -> Iterator[Finding]:
    """Norms with the wrong offset, and weights that are not the checkpoint's; none where predictions hardly differ."""
    if comparison.weights_kl is None or comparison.weights_kl <= _NOTICEABLE_KL:
        return
    offset = comparison.offset_norms
    if offset:
        evidence = f"{len(offset)} norms differ from the checkpoint's by exactly 1: {_some(offset)}"
        yield Finding(WRONG_NORMS.name, WRONG_NORMS.meaning, evidence)
    output_db = {layer.layer: layer.output.snr_db for layer in comparison.layers if layer.output is not None}

    def is_wrong(tensor: TensorReport) -> bool:
        layer = layer_of(tensor.name)
        return (
            tensor.differs and tensor.name not in offset and (layer is None or output_db[layer] < _LOWEST_OUTPUT_SNR_DB)
        )

    def place(tensor: TensorReport) -> int:
        layer = layer_of(tensor.name)
        return -1 if layer is None else layer

    wrong = sorted(filter(is_wrong, comparison.tensors), key=place)  # what is in no layer comes before and after them
    for number, tensors in groupby(wrong, place):
        where = "outside the layers" if number < 0 else f"in layer {number}"
        told = [f"{t.name}: {t.snr_db:.1f} dB, cosine {t.cosine:.4f}, {t.gain:.4g} times as large" for t in tensors]
        yield Finding(
            f"wrong weights {where}", "what is stored is not the checkpoint's weight, folded and rounded", _some(told)
        )


def computation_findings(layers: Sequence[LayerReport], left: float) -> list[Finding]:
    """Where the runtime began to compute something else than the weights say, if it did.

    left: the squared difference of the logits, as a share of theirs.
    """
    meaning = "the runtime computes something else than the bundle's weights give; it agrees with them before"
    last: LayerReport | None = None
    for layer in layers:
        if layer.cache_snr_db is not None:
            last = layer
        if layer.departs:
            evidence = f"{layer.cache_snr_db:.1f} dB between the runtime's cache and the same layer in numpy"
            return [Finding(f"wrong computation in or before layer {layer.layer}", meaning, evidence)]
    logits_db = -10 * math.log10(left) if left else math.inf
    if last is None or last.cache_snr_db is None or last.cache_snr_db - logits_db < _LARGEST_DROP_DB:
        return []
    evidence = (
        f"{logits_db:.1f} dB between the runtime's logits and those of numpy, {last.cache_snr_db:.1f} in that layer"
    )
    return [Finding(f"wrong computation after layer {last.layer}", meaning, evidence)]


def layer_of(name: str) -> int | None:
    """layers.7.mlp.up_proj.weight -> 7; None for what belongs to no layer."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else None


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return "; ".join(names[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
