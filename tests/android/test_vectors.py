"""The files that the Kotlin tests share with us, held against our own functions."""

import json
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.executors.litert.footprint import BundlePlan
from gemma_edge.runtime.formats.litertlm import Bundle
from tools.android import vectors


def stored(name: str) -> Any:
    return json.loads((vectors.FOLDER / name).read_text())


def test_the_small_bundle_is_what_our_writer_writes() -> None:
    content = vectors.small_bundle()
    assert (vectors.FOLDER / "small.litertlm").read_bytes() == content
    assert stored("small.json") == vectors.describe_bundle(content)


def test_our_reader_finds_in_the_small_bundle_what_its_description_says() -> None:
    bundle = Bundle.open(vectors.FOLDER / "small.litertlm")
    found = [{"name": s.name, "begin": s.begin, "end": s.end, "sha256": s.sha256} for s in bundle.sections]
    assert found == stored("small.json")["sections"]
    assert all(s.sha256 in (None, bundle.sha256(s)) for s in bundle.sections)


def test_our_reader_refuses_the_same_places(tmp_path: Path) -> None:
    content = (vectors.FOLDER / "small.litertlm").read_bytes()
    for case in stored("small.json")["misplaced"]:
        spoiled = bytearray(content)
        spoiled[case["at"] : case["at"] + 8] = bytes(case["bytes"])
        path = tmp_path / "spoiled.litertlm"
        path.write_bytes(spoiled)
        place, _, fault = case["message"].partition(": ")
        with pytest.raises(Exception, match=rf"{place}: {fault.split(' what ')[0]}"):
            Bundle.open(path)


def test_verdicts_are_those_of_our_budgets_and_profiles() -> None:
    verdicts = stored("verdicts.json")
    assert verdicts == vectors.verdicts({name: _planned(plan) for name, plan in verdicts["plans"].items()})


def _planned(plan: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plan.items() if key != "shorter"}


def test_sizes_read_the_same() -> None:
    for case in stored("sizes.json"):
        assert format_bytes(case["bytes"]) == case["text"]


def test_the_signatures_are_what_model_signing_takes(tmp_path: Path) -> None:
    verifying = pytest.importorskip("model_signing.verifying")
    key, bundle, signature = (tmp_path / name for name in ("key.pub", vectors.SIGNED_NAME, "signature"))
    bundle.write_bytes(vectors.small_bundle())
    signed = stored("signed.json")
    for curve, case in signed["curves"].items():
        assert case["key"] == vectors.public_pem(curve)
        key.write_text(case["key"])
        signature.write_text(case["signature"])
        verifying.Config().use_elliptic_key_verifier(public_key=key).verify(bundle, signature)
    key.write_text(signed["curves"]["P-256"]["key"])
    signature.write_text(signed["other"])
    with pytest.raises(ValueError, match="Hash mismatch"):
        verifying.Config().use_elliptic_key_verifier(public_key=key).verify(bundle, signature)


def test_a_benchmark_is_written_as_bench_writes_it() -> None:
    assert stored("bench.json") == vectors.bench()


def test_the_stored_report_has_the_form_of_todays(tiny_gemma3n: Path, tmp_path: Path) -> None:
    report = convert("custom-int4", tiny_gemma3n, tmp_path / "tiny.litertlm", profile="phone-2gb").values
    today = json.loads(json.dumps(dict(report)))
    old = stored("tiny.litertlm.json")
    for key in ("target", "family", "context_tokens", "prefill_tokens", "profile", "kv"):
        assert old[key] == today[key]
    assert [section["name"] for section in old["sections"]] == [section["name"] for section in today["sections"]]
    assert old["output"]["file"] == today["output"]["file"] == "tiny.litertlm"
    assert len(old["output"]["sha256"]) == len(today["output"]["sha256"]) == 64
    assert old["footprint"].keys() == today["footprint"].keys()
    assert old["quality"].keys() == today["quality"].keys()


def test_a_shorter_context_needs_what_the_runtime_says(tiny_gemma3n: Path, tmp_path: Path) -> None:
    """The app has the report, gemma_edge.runtime the bundle: the same memory follows from either."""
    report = convert("custom-int4", tiny_gemma3n, tmp_path / "tiny.litertlm").values
    plan = {"anon_bytes": report["footprint"]["anon_bytes"], "caches": report["kv"]["layers"]}
    bundle = BundlePlan.of(Bundle.open(tmp_path / "tiny.litertlm"))
    full = bundle.footprint().anon_bytes
    for context in (report["context_tokens"], 1024, 256, 128):
        saved = full - bundle.footprint(context).anon_bytes
        assert plan["anon_bytes"] - vectors.anon_bytes_at(plan, context) == saved
    assert saved > 0
