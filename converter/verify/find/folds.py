"""What conversion did to a bundle's weights without changing what they compute, found in the bundle itself.

Columns that are turned say so in the weight's name. Powers of two that moved from a matrix' columns to the rows before
(see quantize/balance.py) show in how large these rows are beside the checkpoint's, or, where those rows are not the
checkpoint's, in how large the columns are. With both in the model's folds, the checkpoint's weights are comparable.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.quantize.balance import LARGEST_EXPONENT, Place, places, with_factors
from gemma_edge.converter.tensors import TensorSpec
from gemma_edge.converter.verify.find.bundle_weights import BundleWeights
from gemma_edge.runtime.formats import hadamard

Float32 = NDArray[np.float32]

_SAMPLED_ROWS = 256
_SAMPLED_COLUMNS = 256
_NEAR = 0.2  # of a power of two, in powers: int2 moves a row's size by a tenth
_NEAR_OF_FLOATS = 1e-3  # a norm with another offset may be nearly twice as large
_SHARE = 0.9  # of the rows, which have to be that near


def as_in_bundle(model: Model, source: Checkpoint, stored: BundleWeights) -> Model:
    """`model` with the folds that the bundle's weights have; the same object where those are the model's own."""
    found = [
        (place, exponents)
        for place in places(StreamingModel(source, model).graph)
        if (exponents := _exponents(place, model, source, stored)) is not None and exponents.any()
    ]
    return with_turned(with_factors(model, found) if found else model, stored)


def with_turned(model: Model, stored: BundleWeights) -> Model:
    """`model` with columns turned where the bundle's are."""
    turned = {
        name: replace(spec, fold=replace(spec.fold, hadamard=True))
        for name, spec in model.tensors.items()
        if name in stored.turned
    }
    return replace(model, tensors={**model.tensors, **turned}) if turned else model


def _exponents(place: Place, model: Model, source: Checkpoint, stored: BundleWeights) -> NDArray[np.int8] | None:
    """Of a place's columns, [k]; None where neither rows nor columns are powers of two of the checkpoint's."""
    if any(name not in stored for name in (place.source, *place.linears)):
        return None
    spec = model.tensors[place.source]
    rows = _row_gains(spec, source, stored)[place.rows]
    for gains, near in (
        (1 / np.maximum(rows, np.float32(1e-9)), _NEAR if len(spec.shape) == 2 else _NEAR_OF_FLOATS),
        (_column_gains(place, model, source, stored), _NEAR),
    ):
        powers = np.log2(np.maximum(gains, np.float32(1e-9)))
        exponents = np.rint(powers)
        if np.mean(np.abs(powers - exponents) < near) > _SHARE and np.abs(exponents).max() <= LARGEST_EXPONENT:
            return exponents.astype(np.int8)
    return None


def _row_gains(spec: TensorSpec, source: Checkpoint, stored: BundleWeights) -> Float32:
    """How large each row of the bundle's is beside the checkpoint's, [n]; of a vector, each value."""
    if len(spec.shape) == 1:
        expected = spec.fold(source.read(spec.source))
        return _gains(stored.rows(spec.name, 0, 1).T, expected[:, np.newaxis])
    parts = []
    for first, rows in source.rows(spec.source):
        expected = spec.fold(rows, first)[:, :_SAMPLED_COLUMNS]
        found = _straight(stored, spec.name, first, len(rows))[:, : expected.shape[1]]
        parts.append(_gains(found, expected))
    return np.concatenate(parts)


def _column_gains(place: Place, model: Model, source: Checkpoint, stored: BundleWeights) -> Float32:
    """How large each column of the bundle's is beside the checkpoint's, [k].

    Over some rows of the first matrix that reads it: rows of others (v, up) may have factors of their own.
    """
    spec = model.tensors[place.linears[0]]
    found, expected = [], []
    for first, rows in source.rows(spec.source, start=0, stop=min(spec.shape[0], _SAMPLED_ROWS)):
        found.append(_straight(stored, spec.name, first, len(rows)))
        expected.append(spec.fold(rows, first).copy())
    return _gains(np.concatenate(found).T, np.concatenate(expected).T)


def _straight(stored: BundleWeights, name: str, first: int, count: int) -> Float32:
    """Rows of the bundle, turned back where they are turned."""
    rows = stored.rows(name, first, count)
    return np.asarray(hadamard.turn(rows), np.float32) if name in stored.turned else rows


def _gains(found: Float32, expected: Float32) -> Float32:
    """By row: the factor that brings `expected` closest to `found`."""
    products = np.einsum("nk,nk->n", found, expected)
    gains: Float32 = products / np.maximum(np.einsum("nk,nk->n", expected, expected), np.float32(1e-30))
    return np.where(np.any(expected, axis=1), gains, np.float32(1))
