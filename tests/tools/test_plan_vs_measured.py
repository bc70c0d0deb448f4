"""The planner's constants against every full-size run that was measured."""

from pathlib import Path

import pytest

from tools import fill_context
from tools.plan_vs_measured import ENGINES, Case, Record, load_records, planned, save_records, table

MIB = 1 << 20
LITERT, ONNX = ENGINES.values()
TOLERANCE_BYTES, TOLERANCE = 50 * MIB, 0.10  # whichever is larger


@pytest.mark.parametrize("record", load_records(), ids=lambda r: f"{r.case.name} {r.case.context_tokens} {r.engine}")
def test_the_plan_is_within_10_percent_or_50_mib(record: Record) -> None:
    allowed_bytes = max(TOLERANCE_BYTES, TOLERANCE * record.anon_bytes)
    assert abs(planned(record.case, record.engine).anon_bytes - record.anon_bytes) <= allowed_bytes


def test_every_combination_was_measured() -> None:
    records = [record for record in load_records() if not record.case.more]
    assert {record.case.size for record in records} == {"1b", "e2b", "e4b"}
    assert {record.engine for record in records} == {*LITERT, *ONNX} == set(fill_context.ENGINES)
    assert {record.case.context_tokens for record in records} == {1024, 4096, 32_768}
    for engines, precisions in ((LITERT, {"int4"}), (ONNX, {"int4", "int8"})):  # of LiteRT no part depends on it
        found = {record.case.target.partition("-")[2] for record in records if record.engine in engines}
        assert found == precisions
        assert len([r for r in records if r.engine in engines]) == 3 * 3 * len(precisions) * len(engines)


def test_signatures_that_are_asked_for_were_measured() -> None:
    found = {record.case for record in load_records() if record.case.more}
    wanted = ["1b-int4@1024+batch=2,4,8", "1b-int4@4096+batch=2,4,8", "1b-int4@4096+draft=4,8"]
    wanted += ["e2b-int4@4096+batch=2,4,8", "e2b-int4@4096+draft=4,8"]
    assert found == {*map(Case.parse, wanted)}


def test_a_batch_is_planned_with_all_its_conversations() -> None:
    case = Case.parse("1b-int4@1024+batch=2,4")
    assert (case.name, case.options) == ("1b-int4 --batch 2,4", ("--batch", "2,4"))
    assert (case.rows("batch"), case.rows("draft")) == ((2, 4), ())
    plain = planned(Case.parse("1b-int4@1024"), "litert")
    more = {part.name: part.anon_bytes for part in planned(case, "litert").parts}
    [kv] = (part.anon_bytes for part in plain.parts if part.name == "KV cache")
    assert more["KV cache"] == 4 * kv
    assert more["signatures of batches"] > 0
    assert table([Record(case, "litert", plain.anon_bytes, 0)]).splitlines()[-1].endswith(" |  |  |  |")


def test_the_readme_shows_the_table(repository: Path) -> None:
    assert table(load_records()) in (repository / "README.md").read_text(encoding="utf-8")


def test_a_case_is_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    old, new = (Record(Case("1b-int4", 4096), "litert", anon_bytes, 0) for anon_bytes in (1, 2))
    other = Record(Case("1b-int4", 1024), "litert", 3, 0)
    save_records([old, other, new], path)
    assert load_records(path) == [other, new]
    assert load_records(tmp_path / "none.json") == []


def test_the_worse_engine_counts() -> None:
    case = Case.parse("1b-int4@4096")
    plan, less, onnx = (planned(case, engine).anon_bytes for engine in ("litert", "litert_lm", "onnx"))
    records = [Record(case, "litert", plan, 0), Record(case, "litert_lm", 2 * less, 0), Record(case, "onnx", onnx, 0)]
    one, two, other = (f"{anon_bytes / MIB:.0f}" for anon_bytes in (plan, 2 * less, onnx))
    begin = f"| 1b-int4 | 4096 | {one} | {one} | {two} | -50.0% | {other} |"
    assert table(records).splitlines()[-1] == f"{begin} {other} | +0.0% |"
    assert table(records[:2]).splitlines()[-1] == f"{begin}  |  |"
