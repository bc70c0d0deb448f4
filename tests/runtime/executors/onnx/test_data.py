"""Weight files: those that are not what was converted are refused; links of the hub's cache are followed."""

import hashlib
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.executors.litert import section_hash
from gemma_edge.runtime.executors.onnx.data import check_data, data_sha256
from gemma_edge.runtime.executors.onnx.decoder import OnnxDecoder
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.onnx_digests import OnnxDirectoryError
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory

LONG_AGO = 1_500_000_000  # what changed a moment ago is not remembered


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, tiny_gemma3n: Path) -> Path:
    """Of the family with two graphs, and weights for each."""
    out = tmp_path_factory.mktemp("onnx") / "model"
    convert("custom-int4", tiny_gemma3n, out, context=64, format="onnx", measure=False)
    return out


@pytest.fixture
def directory(converted: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(converted, tmp_path / "model"))


def logits(path: Path, cache_dir: Path | None) -> list[float]:
    decoder = OnnxDecoder(OnnxDirectory.open(path), 1, cache_dir)
    found: list[float] = decoder.new_slot().decode(5).tolist()
    decoder.close()
    return found


@pytest.mark.parametrize(
    ("where", "has_cache"), [("first byte", True), ("padding", True), ("last byte", True), ("padding", False)]
)
def test_a_flipped_byte_is_refused(directory: Path, where: str, has_cache: bool, tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache" if has_cache else None
    for path in sorted((directory / "onnx").glob("*_data")):
        whole = path.read_bytes()
        at = {"first byte": 0, "last byte": len(whole) - 1}.get(where)
        at = whole.index(b"\0" * 64) if at is None else at  # between weights: what nobody reads counts as well
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(OnnxDirectoryError) as caught:
            logits(directory, cache_dir)
        before, after = (hashlib.sha256(content).hexdigest() for content in (whole, path.read_bytes()))
        assert str(caught.value) == (
            f"{path}: SHA-256 {after[:16]}..., digests.json records {before[:16]}...; copy the file again"
        )
        path.write_bytes(whole)
    assert np.isfinite(logits(directory, cache_dir)).all()


def test_weights_are_read_through_once(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = OnnxDirectory.open(directory)
    for path in (directory / "onnx").iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    notes = tmp_path / "notes"
    notes.mkdir()
    read: list[Path] = []
    whole = section_hash._sha256

    def watched(section: FileRange) -> str:
        read.append(section.path)
        return whole(section)

    monkeypatch.setattr(section_hash, "_sha256", watched)
    monkeypatch.setattr(section_hash, "_RACY_NS", 0)
    graph = opened.graphs[opened.decoder]
    for _ in range(3):
        check_data(opened, graph, notes)
    assert read == opened.decoder_data
    check_data(opened, graph, None)
    assert read == 2 * opened.decoder_data


def test_a_file_that_cannot_be_read(directory: Path) -> None:
    opened = OnnxDirectory.open(directory)
    [path] = opened.decoder_data
    path.unlink()
    with pytest.raises(OnnxDirectoryError) as caught:
        data_sha256(opened, path, None)
    assert str(caught.value) == f"{path}: cannot be read (No such file or directory); copy the file again"


def test_a_directory_without_digests_runs_and_says_so(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As an older gemma-edge wrote it."""
    expected = logits(directory, tmp_path / "cache")
    assert not caplog.records
    (directory / "digests.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert logits(directory, tmp_path / "cache") == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"{directory}: has no digests.json, an older gemma-edge wrote it: damaged weights go unnoticed; "
        "convert it again"
    ]


@pytest.mark.parametrize(("linked", "has_cache"), [("all", True), ("weights", True), ("graphs", True), ("all", False)])
def test_links_of_the_hub_are_followed(directory: Path, linked: str, has_cache: bool, tmp_path: Path) -> None:
    """snapshots/REVISION/onnx/NAME -> ../../../blobs/SHA256, and mixtures of links and files."""
    cache_dir = tmp_path / "cache" if has_cache else None
    expected = logits(directory, cache_dir)
    snapshot = tmp_path / "models--of--somebody" / "snapshots" / "0123abcd"
    shutil.copytree(directory, snapshot)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    for path in sorted(path for path in snapshot.rglob("*") if path.is_file()):
        if linked == "all" or (path.name.endswith("_data"), linked) in ((True, "weights"), (False, "graphs")):
            blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
            path.rename(blob)
            path.symlink_to(os.path.relpath(blob, path.parent))
    np.testing.assert_array_equal(logits(snapshot, cache_dir), expected)
