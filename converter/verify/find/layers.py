"""Layer by layer: the checkpoint, what the bundle's weights should give, and what the bundle really gave.

Three computations of the same few tokens (see verify/measure/walks.py for the first two):
- the checkpoint, in numpy: the reference;
- the same graph in numpy with the bundle's own weights, dequantized: beside the reference, it shows what storing the
  weights cost, in every weight and after every layer;
- the bundle in its runtime, whose keys and values lie in its KV cache: beside the second, they show a layer that
  computes something else than its weights say.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.converter.verify.find.bundle_weights import BundleWeights
from gemma_edge.converter.verify.measure.scores import log_softmax
from gemma_edge.converter.verify.measure.similarity import Similarity, SimilaritySums
from gemma_edge.converter.verify.measure.subject import CachedRows
from gemma_edge.converter.verify.measure.walks import Walked

Float32 = NDArray[np.float32]

_LOWEST_SNR_DB: Mapping[str, float] = {
    "fp32": 100.0, "fp16": 55.0, "int8": 25.0, "head+3": 20.0, "int4": 6.0, "int2": 0.5,
}  # fmt: skip
"""Below it a weight is not the checkpoint's. Half of what the worst trained tensors reach, in decibels."""

_LOWEST_RUNTIME_SNR_DB, _LARGEST_DROP_DB, _FIRST_SNR_DB = 20.0, 15.0, 45.0
"""Keys or values below the first, after a drop of more than the second from one layer to the next, are not what the
weights give. Activations rounded to int8 leave about the third, and less from layer to layer: it stays above 45 in the
trained fixtures, and falls by up to 11 a layer where weights are random, as in the synthetic E2B."""


@dataclass(frozen=True)
class TensorReport:
    """One weight as it is stored against the checkpoint's, folded. gain: by what factor it is too large."""

    name: str
    encoding: str
    snr_db: float
    cosine: float
    gain: float

    @property
    def differs(self) -> bool:
        """Whether it is another weight: a wrong one, or one whose scale a recipe has moved to its neighbours."""
        return self.snr_db < _LOWEST_SNR_DB[self.encoding.partition("-")[0]]


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    output: what it hands on, bundle's weights against the checkpoint's, both in numpy; None where the weights of the
    bundle cannot be read. keys, values: the runtime's cache against numpy with the bundle's weights (the checkpoint's
    where those cannot be read); None for a layer without a cache of its own.
    departs: whether the runtime computed other keys or values here, and not already in the layer before.
    """

    layer: int
    output: Similarity | None
    keys: Similarity | None
    values: Similarity | None
    departs: bool

    @property
    def cache_snr_db(self) -> float | None:
        """The worse of keys and values; None for a layer without a cache of its own."""
        return min((part.snr_db for part in (self.keys, self.values) if part is not None), default=None)


@dataclass(frozen=True)
class Comparison:
    """What was found. offset_norms: norms that are off by exactly the one that a family stores its norms without.

    weights_kl: mean KL(checkpoint || the same graph with the bundle's weights); None where they cannot be read.
    """

    tensors: tuple[TensorReport, ...]
    layers: tuple[LayerReport, ...]
    offset_norms: tuple[str, ...]
    weights_kl: float | None


def compare_layers(walked: Walked, cached: CachedRows) -> tuple[LayerReport, ...]:
    """cached: what the runtime wrote for the tokens of the sample, of each layer the last n positions."""
    found = {("output", layer): similarity for layer, similarity in walked.outputs.items()}
    for layer in walked.caches.keys() & cached.keys():
        for part, values, rows in zip(("keys", "values"), walked.caches[layer], cached[layer], strict=True):
            if len(rows):
                found[part, layer] = Similarity.between(values[-len(rows) :], rows)
    return tuple(layer_reports(sorted(walked.layers), found))


def weights_kl(expected: Float32, own: Float32) -> float:
    """Mean KL of logits [S, V]."""
    total = 0.0
    for right, found in zip(expected, own, strict=True):
        p, q = log_softmax(right), log_softmax(found)
        total += float(np.exp(p) @ (p - q))
    return max(0.0, total / len(own))


def layer_reports(layers: Sequence[int], found: Mapping[tuple[str, int], Similarity]) -> Iterator[LayerReport]:
    """From what was compared, by ("output", "keys" or "values", layer)."""
    before_db = _FIRST_SNR_DB
    for layer in layers:
        parts = (found.get(("output", layer)), found.get(("keys", layer)), found.get(("values", layer)))
        snr_db = LayerReport(layer, *parts, departs=False).cache_snr_db
        departs = snr_db is not None and snr_db < min(_LOWEST_RUNTIME_SNR_DB, before_db - _LARGEST_DROP_DB)
        before_db = before_db if snr_db is None else snr_db
        yield LayerReport(layer, *parts, departs=departs)


class Meter:
    """evaluate.Substitute that hands out the bundle's weights and measures them on the way."""

    def __init__(self, stored: BundleWeights, specs: Mapping[str, TensorSpec]) -> None:
        self._stored = stored
        self._specs = specs
        self._sums = SimilaritySums()
        self.offset_norms: list[str] = []

    def __call__(self, name: str, first: int, rows: Float32) -> Float32:
        if name not in self._stored:
            return rows
        found = self._stored.substitute(name, first, rows)
        self._sums.add(name, Similarity.between(rows, found))
        spec = self._specs[name]
        if spec.role is Role.NORM and _is_offset(spec, rows, found):
            self.offset_norms.append(name)
        return found

    def reports(self) -> tuple[TensorReport, ...]:
        return tuple(
            TensorReport(name, self._stored.encoding(name), sums.snr_db, sums.cosine, sums.gain)
            for name, sums in self._sums.sums.items()
        )


def _is_offset(spec: TensorSpec, expected: Float32, found: Float32) -> bool:
    """Whether a norm is what the other convention gives: w where w + 1 is right, or the reverse."""
    offset = np.float32(spec.fold.mul * (1.0 - 2.0 * spec.fold.add))
    other = expected + (offset if spec.fold.rows is None else offset * spec.fold.rows.values)
    right, wrong = Similarity.between(expected, found).error, Similarity.between(other, found).error
    return wrong < 0.1 * right
