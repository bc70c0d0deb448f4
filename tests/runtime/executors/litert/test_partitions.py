"""What XNNPACK takes, read off LiteRT's own profile of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.runtime.executors.litert.decoder import DecoderSections
from gemma_edge.runtime.executors.litert.partitions import partitions
from gemma_edge.runtime.executors.litert.weight_cache import weight_cache
from gemma_edge.runtime.formats.litertlm import Bundle

INTEGERS_AND_WRITES = {
    "RESHAPE", "SLICE", "SUB", "ADD", "LESS", "SELECT_V2", "FLOOR_MOD", "PACK", "CAST",
    "DYNAMIC_UPDATE_SLICE", "GATHER", "CONCATENATION",
}  # fmt: skip


@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
@pytest.mark.parametrize("cached", [True, False])
def test_each_signature_is_one_partition(
    tiny_bundle: Callable[[str, str], Path], family: str, cached: bool, tmp_path: Path
) -> None:
    decoder = DecoderSections.of(Bundle.open(tiny_bundle(family, "int4"))).decoder
    found = partitions(decoder, 1, weight_cache(decoder, tmp_path, 1) if cached else None)
    assert "decode" in found
    assert any(name.startswith("prefill_") for name in found)
    for signature in found.values():
        assert signature.count == 1
        assert signature.outside.keys() <= INTEGERS_AND_WRITES
        assert signature.outside["DYNAMIC_UPDATE_SLICE"] > 0
    wrapping = {name for name, signature in found.items() if "GATHER" in signature.outside}
    assert wrapping == {name for name in found if "prefill_" in name}  # a single row never wraps around a ring
