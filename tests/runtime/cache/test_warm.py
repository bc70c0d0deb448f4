"""Warming up: what is packed is said, once; what is damaged is found before the first start."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from gemma_edge.converter.cli import main
from gemma_edge.runtime.cache.entries import Kind, entries
from gemma_edge.runtime.cache.warm import warm
from gemma_edge.runtime.executors.litert.sections import section_range
from gemma_edge.runtime.formats.litertlm import Bundle, BundleError, ModelType

STARTED = r"started in \d+\.\d s, one token in \d+\.\d\d s"


def test_the_second_time_there_is_nothing_to_pack(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    command = ["warm", str(tiny_bundle("gemma3n", "int4")), "--profile", "phone-2gb", "--cache-dir", str(tmp_path)]
    first, second = (CliRunner().invoke(main, command) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.output
    packed, ready = rf"cache: {tmp_path}\ndecoder: {STARTED}, ", rf"\nready: {STARTED}\n"
    assert re.fullmatch(packed + r"[\d.]+ MiB packed now" + ready, first.stdout)
    assert re.fullmatch(packed + "nothing to pack" + ready, second.stdout)


def test_encoders_are_packed_too(towers_bundle: Path, tmp_path: Path) -> None:
    said = list(warm(str(towers_bundle), cache_dir=str(tmp_path)))
    assert [line.partition(":")[0] for line in said] == ["cache", "decoder", "vision encoder", "audio encoder", "ready"]
    assert all(line.endswith("packed now") for line in said[1:4])
    assert sum(entry.kind is Kind.WEIGHTS for entry in entries(tmp_path)) == 3
    assert sum(line.endswith("nothing to pack") for line in warm(str(towers_bundle), cache_dir=str(tmp_path))) == 3


def test_without_a_cache_it_says_so(tiny_bundle: Callable[[str, str], Path]) -> None:
    assert next(warm(str(tiny_bundle("gemma3n", "int4")), cache_dir=":nocache")) == (
        "cache: none, every start packs all weights into memory"
    )


def test_a_damaged_table_is_found(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    damaged = Path(shutil.copy(tiny_bundle("gemma3n", "int4"), tmp_path / "damaged.litertlm"))
    table = section_range(Bundle.open(damaged), ModelType.PER_LAYER_EMBEDDER)
    with damaged.open("r+b") as file:
        file.seek(table.offset + table.nbytes // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(BundleError, match=r"has SHA-256 .*, the table records .*; copy the file again"):
        list(warm(str(damaged), cache_dir=str(tmp_path / "cache")))
