"""Digests of sections: remembered while a file stays the same, and a damaged bundle refused before it runs."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.runtime.executors.litert import section_hash
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.executors.litert.section_hash import section_sha256
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.litertlm import Bundle, BundleError, ModelType, SectionKind
from tests.slots import litert_slot

TinyBundle = Callable[[str, str], Path]


@pytest.fixture
def bundle(tiny_bundle: TinyBundle) -> Path:
    return tiny_bundle("gemma3n", "int4")


def test_the_digest_is_remembered_while_the_file_stays(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour_ahead = time.time_ns() + 3_600_000_000_000  # the file seems an hour old
    monkeypatch.setattr(time, "time_ns", lambda: hour_ahead)
    hashed = []
    sha256 = section_hash._sha256

    def counted(section: FileRange) -> str:
        hashed.append(section)
        return sha256(section)

    monkeypatch.setattr(section_hash, "_sha256", counted)
    path = Path(shutil.copy(bundle, tmp_path / "bundle"))
    place = DecoderSections.of(Bundle.open(path)).decoder
    assert {section_sha256(place, tmp_path) for _ in range(3)} == {place.sha256}
    assert len(hashed) == 1
    os.utime(path, ns=(1, 1))
    section_sha256(place, tmp_path)
    assert len(hashed) == 2
    for note in tmp_path.glob("*.json"):
        note.write_text('{"half a no')
    section_sha256(place, tmp_path)
    assert len(hashed) == 3


def test_packed_weights_are_used_where_nothing_can_be_written(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an image of a container: the files are there, and are other files to a note."""
    sections = DecoderSections.of(Bundle.open(bundle))
    litert_slot(sections, 1, tmp_path).close()
    for note in tmp_path.glob("*.json"):
        note.unlink()

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(section_hash, "_RACY_NS", -1)
    assert "weight_cache" in LitertDecoder(sections, 1, tmp_path).mapped_ranges().named
    assert list(tmp_path.glob("*.json")) == []


def test_a_file_that_has_just_changed_is_not_remembered(bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(bundle, tmp_path / "bundle"))
    os.utime(path)
    section_sha256(DecoderSections.of(Bundle.open(path)).decoder, tmp_path)
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.parametrize("model_type", [ModelType.PREFILL_DECODE, ModelType.EMBEDDER, ModelType.PER_LAYER_EMBEDDER])
@pytest.mark.parametrize("cached", [True, False])
def test_a_flipped_byte_in_any_model_of_text_is_refused(
    bundle: Path, tmp_path: Path, model_type: ModelType, cached: bool
) -> None:
    section = Bundle.open(bundle).section(SectionKind.TFLITE_MODEL, model_type)
    content = bytearray(bundle.read_bytes())
    content[section.end - 100] ^= 1  # before that, the embedder's table is the decoder's as well
    damaged = tmp_path / "damaged.litertlm"
    damaged.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        litert_slot(DecoderSections.of(Bundle.open(damaged)), 1, tmp_path / "cache" if cached else None)
    assert str(caught.value).startswith(f"{damaged}: the section at byte {section.begin} has SHA-256 ")
    assert str(caught.value).endswith(f"..., the table records {str(section.sha256)[:16]}...; copy the file again")


def test_a_flipped_byte_in_the_metadata_is_refused(bundle: Path, tmp_path: Path) -> None:
    section = Bundle.open(bundle).section(SectionKind.LLM_METADATA)
    content = bytearray(bundle.read_bytes())
    content[section.begin] ^= 1
    damaged = tmp_path / "damaged.litertlm"
    damaged.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        Bundle.open(damaged).metadata()
    assert str(caught.value) == (
        f"{damaged}: section llm_metadata does not match the SHA-256 in its table; copy the file again"
    )


def test_a_bundle_that_records_nothing_runs_as_it_is(bundle: Path, tmp_path: Path) -> None:
    place = DecoderSections.of(Bundle.open(bundle)).decoder
    unrecorded = FileRange(place.path, place.offset, place.nbytes)
    assert section_sha256(unrecorded, tmp_path) == place.sha256


def test_a_lock_that_a_killed_process_has_left_goes(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the note had its name, and the lock was there still."""
    hour_ahead = time.time_ns() + 3_600_000_000_000  # the file seems an hour old
    monkeypatch.setattr(time, "time_ns", lambda: hour_ahead)
    section, notes = DecoderSections.of(Bundle.open(bundle)).decoder, tmp_path / "notes"
    section_sha256(section, notes)
    [note] = notes.iterdir()
    note.with_suffix(".lock").write_text("1234567")
    assert section_sha256(section, notes) == section.sha256
    assert list(notes.iterdir()) == [note]
