import io
import zipfile
from pathlib import Path

import pytest

from gemma_edge.runtime.formats.task import (
    ALIGNMENT_BYTES,
    METADATA,
    PREFILL_DECODE,
    TOKENIZER,
    Task,
    TaskError,
    TaskLayout,
)

CONTENT = {PREFILL_DECODE: bytes(range(256)) * 100, TOKENIZER: b"token", METADATA: b"meta"}
GIB = 1 << 30


def write_task(path: Path) -> TaskLayout:
    layout = TaskLayout.of({name: len(data) for name, data in CONTENT.items()})
    with path.open("w+b") as file:
        for entry in reversed(layout.entries):
            file.seek(entry.begin)
            file.write(CONTENT[entry.name])
        layout.finish(file)
    assert path.stat().st_size == layout.nbytes
    return layout


def test_round_trip(tmp_path: Path) -> None:
    layout = write_task(tmp_path / "model.task")
    task = Task.open(tmp_path / "model.task")
    assert task.entries == layout.entries
    assert {entry.name: task.read(entry.name) for entry in task.entries} == CONTENT
    assert all(entry.begin % ALIGNMENT_BYTES == 0 for entry in task.entries)


def test_it_is_a_sound_archive(tmp_path: Path) -> None:
    write_task(tmp_path / "model.task")
    with zipfile.ZipFile(tmp_path / "model.task") as archive:
        assert archive.testzip() is None  # reads all and compares the checksums
        assert {info.filename: archive.read(info) for info in archive.infolist()} == CONTENT


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    write_task(tmp_path / "a")
    write_task(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_entries_and_archives_over_4_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse files: the sizes are real, the zeros take no disk. Checksums would take long and are left out."""
    monkeypatch.setattr("gemma_edge.runtime.formats.task._crc32", lambda *_: 0)
    layout = TaskLayout.of({"small": 10, "large": 5 * GIB, "behind": 7})
    path = tmp_path / "model.task"
    with path.open("w+b") as file:
        file.seek(layout.entries[2].begin)
        file.write(b"the end")
        layout.finish(file)
    assert path.stat().st_size == layout.nbytes
    with zipfile.ZipFile(path) as archive:
        assert [info.file_size for info in archive.infolist()] == [10, 5 * GIB, 7]
    task = Task.open(path)
    assert task.entries == layout.entries
    assert task.read("behind") == b"the end"


def test_an_entry_that_was_not_written_is_refused() -> None:
    with pytest.raises(ValueError, match="entry A: 9 of 9 bytes were not written"):
        TaskLayout.of({"A": 9}).finish(io.BytesIO())


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"cannot read \(No such file or directory\); check the path"):
        Task.open(tmp_path / "absent.task")


@pytest.mark.parametrize("keep_bytes", [0, 100, -30])
def test_not_an_archive_or_truncated(tmp_path: Path, keep_bytes: int) -> None:
    path = tmp_path / "model.task"
    write_task(path)
    path.write_bytes(path.read_bytes()[:keep_bytes])
    with pytest.raises(TaskError, match=r"not a \.task bundle \(File is not a zip file\); copy the file again"):
        Task.open(path)


def test_a_version_of_zip_that_python_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "model.task"
    write_task(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(content)
    with pytest.raises(TaskError, match=r"not a \.task bundle \(zip file version 9\.9\); copy the file again"):
        Task.open(path)


def test_an_entry_that_goes_on_behind_the_end(tmp_path: Path) -> None:
    path = tmp_path / "model.task"
    layout = write_task(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 20 : at + 28] = (10**6).to_bytes(4, "little") * 2  # both sizes in the central directory
    path.write_bytes(content)
    end = layout.entries[0].begin + 10**6
    with pytest.raises(TaskError) as caught:
        Task.open(path)
    assert str(caught.value) == (
        f"{path}: entry {PREFILL_DECODE} ends at byte {end} of {layout.nbytes}; copy the file again"
    )


def test_a_compressed_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.task", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(METADATA, b"x" * 100)
    with pytest.raises(TaskError, match="entry METADATA is compressed, expected stored; convert the model again"):
        Task.open(tmp_path / "model.task")


def test_missing_entry(tmp_path: Path) -> None:
    write_task(tmp_path / "model.task")
    with pytest.raises(TaskError, match="has no entry TF_LITE_EMBEDDER, only TF_LITE_PREFILL_DECODE, TOKENIZER_MODEL"):
        Task.open(tmp_path / "model.task").read("TF_LITE_EMBEDDER")
