"""What tells that a job is done: contents, not times; and no digest is trusted that may be old."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gemma_edge.converter.batch.record import BEGUN, Record, Seen, converter, files_of, record_path, why

OPTIONS = {"target": "custom-int4", "prefill": [8, 32]}
LONG_AGO_NS = 10**18


@pytest.fixture
def done(tmp_path: Path) -> tuple[Record, Path, dict[str, Path]]:
    """A record, its output and its inputs."""
    source, out = tmp_path / "model.safetensors", tmp_path / "a.litertlm"
    source.write_bytes(b"weights")
    out.write_bytes(b"bundle")
    record = Record(converter(), OPTIONS, {source.name: Seen.of(source)}, {out.name: Seen.of(out)})
    return record, out, {source.name: source}


def reason(record: Record, out: Path, inputs: dict[str, Path]) -> str:
    return why(record, record.again(inputs, files_of(out, record.outputs)), OPTIONS)


def test_a_record_is_read_as_it_was_written(done: tuple[Record, Path, dict[str, Path]]) -> None:
    record, out, _ = done
    record.save(out)
    assert Record.load(out) == record


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"converter": 1, "options": 2, "inputs": 3, "outputs": 4}'])
def test_what_is_no_record_counts_as_none(text: str, tmp_path: Path) -> None:
    record_path(tmp_path / "a").write_text(text)
    assert Record.load(tmp_path / "a") is None


Change = Callable[[Path, Path], object]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _source, _out: None, ""),
        (lambda source, _out: os.utime(source), ""),
        (lambda source, _out: source.write_bytes(b"Weights"), "input model.safetensors has changed"),
        (lambda _source, out: out.write_bytes(b"bundlf"), "output a.litertlm has changed"),
        (lambda _source, out: out.unlink(), "output a.litertlm is gone"),
    ],
)
def test_contents_are_compared(change: Change, expected: str, done: tuple[Record, Path, dict[str, Path]]) -> None:
    record, out, inputs = done
    change(inputs["model.safetensors"], out)
    assert reason(record, out, inputs) == expected


def test_files_that_come_and_go(done: tuple[Record, Path, dict[str, Path]], tmp_path: Path) -> None:
    record, out, inputs = done
    (tmp_path / "chat_template.jinja").write_text("new")
    more = inputs | {"chat_template.jinja": tmp_path / "chat_template.jinja"}
    assert reason(record, out, more) == "input chat_template.jinja has changed"
    assert reason(record, out, {}) == "input model.safetensors is gone"


def test_another_converter_and_other_options(done: tuple[Record, Path, dict[str, Path]]) -> None:
    record, _, _ = done
    assert why(None, None, OPTIONS) == "new"
    assert why(BEGUN, None, OPTIONS) == "not finished"
    assert why(replace(record, converter="gemma-edge 0.0.1"), record, OPTIONS) == "made by gemma-edge 0.0.1"
    assert why(record, record, OPTIONS | {"target": "custom-int8"}) == "other options"
    assert why(record, None, {**OPTIONS, "prefill": (8, 32)}) == "output is gone"  # a tuple is a list in JSON


def test_a_young_file_is_hashed_again_and_an_old_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a")
    assert Seen.of(path).stat is None
    monkeypatch.setattr("time.time_ns", lambda: path.stat().st_ctime_ns + 3 * 10**9)
    seen = Seen.of(path)
    assert seen.stat is not None
    assert replace(seen, sha256="trusted").again(path).sha256 == "trusted"
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert replace(seen, sha256="trusted").again(path).sha256 == seen.sha256
