"""Distances between models: the formulas on small tables, and real models end to end."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from click.testing import CliRunner

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.measure import compare_process
from gemma_edge.runtime.measure.compare import ComparisonError, Cost, Logits, compare
from gemma_edge.runtime.measure.compare_cli import compare_main
from gemma_edge.runtime.measure.compare_process import ModelProcess

COST = Cost(1, 2, 3, 4.0)


@dataclass(frozen=True)
class Table:
    """A model that always gives the same logits after a token: those of its row."""

    rows: Logits

    def score(self, token_ids: Sequence[int]) -> Iterator[Logits]:
        return (self.rows[token] for token in token_ids)

    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        found = list(token_ids[-1:])
        for _ in range(count):
            found.append(int(self.rows[found[-1]].argmax()))
        return found[1:]

    def cost(self) -> Cost:
        return COST


def table(*probabilities: Sequence[float]) -> Table:
    return Table(np.log(np.array(probabilities, np.float32)) + 3)  # a constant changes nothing


A = table([0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.8, 0.1, 0.1])
B = table([0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.8, 0.1, 0.1])


def test_distances_are_what_their_names_say() -> None:
    found = compare(A, B, [0, 1, 2, 0, 1], window=3, greedy_tokens=4)  # texts 0 1 2 and 0 1
    assert found.distance.tokens == 5
    half = np.log(2)
    # Two of five rows differ, by 0.5 against 0.25 and the other way around.
    assert found.distance.kl_ab == pytest.approx(2 / 5 * (0.5 * half - 0.25 * half))
    assert found.distance.kl_ba == pytest.approx(2 / 5 * (0.5 * half - 0.25 * half))
    assert found.distance.top1 == 3 / 5
    assert found.distance.largest_logit_difference == pytest.approx(half)
    assert found.distance.perplexity_a == pytest.approx((1 / (0.25 * 0.6 * 0.25)) ** (1 / 3))
    assert found.distance.perplexity_b == pytest.approx((1 / (0.5 * 0.6 * 0.5)) ** (1 / 3))
    assert (found.a, found.b) == (COST, COST)


def test_greedy_text_is_compared_to_the_first_difference() -> None:
    text = [0, 1, 2, 0]
    assert compare(A, A, text, window=4, greedy_tokens=4).greedy_same_tokens == 4
    assert compare(A, B, text, window=4, greedy_tokens=4).greedy_same_tokens == 2  # after 1: 2, 0, then 0 or 1


@pytest.mark.parametrize(
    ("text", "window", "shown"), [([1], 8, "1 tokens in windows of 8"), ([1, 2], 1, "2 tokens in")]
)
def test_too_little_text(text: list[int], window: int, shown: str) -> None:
    with pytest.raises(ComparisonError, match=f"found {shown}.*, expected 2 or more of both; give more text"):
        compare(A, B, text, window, greedy_tokens=1)


def test_other_vocabularies() -> None:
    with pytest.raises(ComparisonError) as caught:
        compare(A, table([0.5, 0.5]), [0, 0], window=2, greedy_tokens=1)
    assert str(caught.value) == ("vocabularies of 3 and 2 tokens, expected the same; compare models of one checkpoint")


# ---------------------------------------------------------------- real models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_gemma3n: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, precision, container in (("bundle", "fp32", "litertlm"), ("directory", "fp32", "onnx")):
        convert(f"custom-{precision}", tiny_gemma3n, folder / name, context=128, prefill=(16,), format=container)
    return {"bundle": folder / "bundle", "directory": folder / "directory", "cache": folder / "cache"}


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(compare_main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_one_checkpoint_in_two_formats(models: dict[str, Path], val_bin: Path) -> None:
    where = (models["bundle"], models["directory"], "--cache-dir", models["cache"], "--threads", "1")
    output = run(*where, "--tokens", val_bin, "--limit", "100", "--window", "60", "--greedy", "8", "--json")
    found = json.loads(output)
    assert found["distance"]["tokens"] == 100
    assert 0 <= found["distance"]["kl_ab"] < 1e-9
    assert found["distance"]["top1"] == 1
    assert 0 < found["distance"]["largest_logit_difference"] < 1e-3
    assert found["distance"]["perplexity_a"] == pytest.approx(found["distance"]["perplexity_b"], rel=1e-5)
    assert found["greedy_same_tokens"] == found["greedy_tokens"] == 8
    for cost, path in ((found["a"], models["bundle"]), (found["b"], models["directory"])):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        assert cost["size_bytes"] == sum(file.stat().st_size for file in files)
        assert cost["anon_bytes"] > 1 << 20
        assert cost["decode_tokens_per_s"] > 0


def test_text_and_a_table(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("He went to the house and saw the people.")
    where = (models["bundle"], models["bundle"], "--cache-dir", models["cache"], "--threads", "1")
    lines = run(*where, "--text", tmp_path / "text", "--greedy", "4").splitlines()
    assert lines[2] == "same most likely token   100.00%"
    assert lines[4] == "greedy text              4 of 4 tokens the same"


def test_what_to_read_must_be_said_once(tmp_path: Path) -> None:
    result = CliRunner().invoke(compare_main, ["a", "b"])
    assert "what to read: give either --text or --tokens" in result.output
    result = CliRunner().invoke(compare_main, ["a", "b", "--text", str(tmp_path / "missing")])
    assert "No such file or directory" in result.output
    (tmp_path / "odd").write_bytes(b"\x80bc")
    result = CliRunner().invoke(compare_main, ["a", "b", "--tokens", str(tmp_path / "odd")])
    assert "odd: found 3 bytes, expected ids of 2 bytes each; --text reads text" in result.output
    result = CliRunner().invoke(compare_main, ["a", "b", "--text", str(tmp_path / "odd")])
    assert "odd: no UTF-8 text (invalid start byte); --tokens reads token ids" in result.output
    for option in ("--limit", "--window", "--greedy"):
        result = CliRunner().invoke(compare_main, ["a", "b", option, "-1"])
        assert (result.exit_code, "-1 is not in the range x>=2" in result.output) == (2, True)


def test_speed_is_that_of_a_model_computing_alone(models: dict[str, Path]) -> None:
    with ModelProcess(str(models["bundle"]), 1, str(models["cache"])) as process:
        for _ in process.score([2, 3, 4]):  # as the other model does at the same time
            pass
        assert process.cost().decode_tokens_per_s == 0
        process.greedy([2, 3], 3)
        assert process.cost().decode_tokens_per_s > 0


def test_an_error_of_a_model_arrives(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError) as caught:
        ModelProcess(str(tmp_path / "missing"), 1, None)
    assert str(caught.value) == f"{tmp_path / 'missing'}: cannot read (No such file or directory); check the path"


def test_a_fault_that_is_no_error_of_ours_arrives_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> NoReturn:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(compare_process, "Engine", broken)
    here, there = Pipe()
    with here, there:
        compare_process._serve(there, "model", 1, None)
        assert here.recv().message == "model: ZeroDivisionError: division by zero"
