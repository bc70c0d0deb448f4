"""Signatures that do not fit each other are refused: LiteRT would read memory that is none of theirs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from ai_edge_litert import schema_py_generated as schema

from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.litert.decoder import DecoderSections
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.litertlm import Bundle
from tests.slots import litert_slot


@pytest.fixture(scope="module")
def sections(tiny_bundle: Callable[[str, str], Path]) -> DecoderSections:
    return DecoderSections.of(Bundle.open(tiny_bundle("gemma3n", "fp32")))


def test_a_span_of_a_prefill_that_is_not_there(sections: DecoderSections, tmp_path: Path) -> None:
    place = sections.decoder
    data = place.path.read_bytes()[place.offset : place.offset + place.nbytes]
    renamed = tmp_path / "renamed.tflite"
    renamed.write_bytes(data.replace(b"until_64_prefill_32", b"until_64_prefill_33"))
    with pytest.raises(BundleMismatchError) as caught:
        litert_slot(dataclasses.replace(sections, decoder=FileRange(renamed, 0, place.nbytes)), 1, tmp_path)
    assert str(caught.value) == (
        f"{renamed}: the inputs of until_64_prefill_33 are not those of prefill_33; "
        "convert the checkpoint with gemma-edge"
    )


def test_a_prefill_over_other_caches(sections: DecoderSections, tmp_path: Path) -> None:
    """They are memory of one size: LiteRT would read and write beyond it."""
    place = sections.decoder
    data = bytearray(place.path.read_bytes()[place.offset : place.offset + place.nbytes])
    model = schema.Model.GetRootAs(data, 0)
    signatures = [model.SignatureDefs(i) for i in range(model.SignatureDefsLength())]
    prefill = next(signature for signature in signatures if signature.SignatureKey() == b"prefill_8")
    named = next(x for x in map(prefill.Inputs, range(prefill.InputsLength())) if x.Name() == b"kv_cache_k_0")
    name = named._tab.Indirect(named._tab.Pos + named._tab.Offset(4)) + 4
    data[name : name + 12] = b"kv_cache_k_9"
    changed = tmp_path / "changed.tflite"
    changed.write_bytes(data)
    with pytest.raises(BundleMismatchError) as caught:
        litert_slot(dataclasses.replace(sections, decoder=FileRange(changed, 0, place.nbytes)), 1, tmp_path)
    assert str(caught.value) == (
        f"{changed}: the inputs of prefill_8 are not those of decode; convert the checkpoint with gemma-edge"
    )


def test_an_input_nobody_fills(sections: DecoderSections, tmp_path: Path) -> None:
    place = sections.decoder
    data = place.path.read_bytes()[place.offset : place.offset + place.nbytes]
    renamed = tmp_path / "renamed.tflite"
    renamed.write_bytes(data.replace(b"input_pos", b"input_xxx"))
    swapped = dataclasses.replace(sections, decoder=FileRange(renamed, 0, place.nbytes))
    with pytest.raises(BundleMismatchError, match=r"decoder inputs \['input_xxx'\] are not known, expected"):
        litert_slot(swapped, 1, None)
